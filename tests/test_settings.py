"""Every file in `conf/` becomes settings, and every mistake stops before a model is loaded and names what was meant."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from infer.compare.arithmetic import ARITHMETICS
from infer.export.hub import HubSettings
from infer.gate.settings import GateSettings
from scripts import compare_precision, evaluate, export, gate, serve, sweep_strength, transcribe
from scripts.settings import (
    CONF,
    ENVIRONMENT_NAMES,
    OTHER_FOLDERS,
    PROJECT,
    SettingsError,
    build,
    compose_config,
    run_guarded,
    to_plain,
    verify_overrides,
)
from scripts.train import GROUPS, build_settings
from train.settings import TrainSettings

OPTIONS = [(p.parent.name, p.stem) for p in sorted(CONF.glob("*/*.yaml")) if p.parent.name not in OTHER_FOLDERS]
EVALUATE_ONLY = {"scoring"}
GATE_ONLY = {"gate", "hub"}
NEEDED = {  # what a data set of the hub cannot know
    "hub": ["dataset.hub.path=org/name"],
    "common_voice": ["dataset.hub.config=ar"],
    "fleurs": ["dataset.hub.config=cmn_hans_cn", "dataset.hub.language=zh"],
    "voxpopuli": ["dataset.hub.config=de"],
}
HUB_SOURCES = {  # name on the hub, configuration, training split, language, and the columns that are renamed
    "hub": ("org/name", None, "train", None, {}),
    "aishell1": ("AISHELL/AISHELL-1", None, "train", "zh", {}),
    "common_voice": (
        "mozilla-foundation/common_voice_17_0",
        "ar",
        "train",
        "ar",
        {"text": "sentence", "speaker": "client_id"},
    ),
    "fleurs": ("google/fleurs", "cmn_hans_cn", "train", "zh", {"text": "raw_transcription"}),
    "gigaspeech": ("speechcolab/gigaspeech", "xs", "train", "en", {"id": "segment_id", "speaker": "speaker"}),
    "librispeech": ("openslr/librispeech_asr", "clean", "train.100", "en", {"speaker": "speaker_id"}),
    "reazonspeech": ("reazon-research/reazonspeech", "tiny", "train", "ja", {"text": "transcription", "id": "name"}),
    "voxpopuli": (
        "facebook/voxpopuli",
        "de",
        "train",
        "de",
        {"id": "audio_id", "text": "normalized_text", "speaker": "speaker_id"},
    ),
}


def _settings(*overrides):
    verify_overrides("train", overrides)
    return build_settings(compose_config("train", overrides))


def _fails(*overrides, name="train"):
    try:
        verify_overrides(name, overrides)
        build_settings(compose_config(name, overrides))
    except (ValueError, HydraException) as e:  # SettingsError, or the ValueError of a dataclass
        return str(e)
    pytest.fail(f"{overrides} became settings")


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option_of_every_group_becomes_settings(group, option):
    if group in EVALUATE_ONLY:
        overrides = [f"{group}={option}", "artefact=x", "dataset.test=t.jsonl"]
        assert evaluate.build_settings(compose_config("evaluate", overrides)).artefact == ("x",)
        return
    if group in GATE_ONLY:
        judged = gate.build_settings(compose_config("gate", [f"{group}={option}", "artefact=x"]))
        # Defaults of the dataclasses serve tests and other callers; they must be those of YAML.
        assert (judged.gate, judged.hub) == (GateSettings(), HubSettings())
        return
    needed = NEEDED.get(option, []) if group == "dataset" else []
    settings = build_settings(compose_config("train", [f"{group}={option}", *needed]))
    assert isinstance(settings, TrainSettings)
    chosen = getattr(settings, group, None)
    if hasattr(chosen, "name"):
        is_choice_of_model = (group, option) == ("finetune", "auto")
        assert chosen.name == ("full" if is_choice_of_model else option)
    json.dumps(settings.config, allow_nan=False)  # travels inside checkpoints


def test_every_group_of_settings_has_its_folder_and_the_other_way_round():
    folders = {group for group, _ in OPTIONS} - EVALUATE_ONLY - GATE_ONLY
    assert folders == (GROUPS.keys() - {"run", "trainer"}) | {"experiment", "debug", "trainer"}


def test_yaml_gives_every_field_of_the_training_groups():
    """Defaults live in YAML; those of the dataclasses serve tests and other callers."""
    config = _settings("model=scratch", "finetune=lora", "optimizer=adamw").config
    for group in (*GROUPS.keys() - {"model", "decoding", "tracker"},):
        known = {field.name for field in dataclasses.fields(GROUPS[group])}
        assert config[group].keys() == known, group


@pytest.mark.parametrize("option", HUB_SOURCES)
def test_a_data_set_of_the_hub_becomes_sources(option):
    path, config, split, language, columns = HUB_SOURCES[option]
    dataset = _settings(f"dataset={option}", *NEEDED.get(option, [])).dataset
    (source,) = dataset.sources("train")
    assert (source.path, source.format, source.config, source.split) == (path, "hub", config, split)
    assert (source.language, source.columns, source.revision, source.streaming) == (language, columns, None, False)
    assert [found.split for found in dataset.sources("validation")] == list(dataset.validation)
    assert {found.path for kind in ("validation", "test") for found in dataset.sources(kind)} <= {path}
    (streamed,) = _settings(f"dataset={option}", *NEEDED.get(option, []), "dataset.hub.streaming=true").dataset.sources(
        "train"
    )
    assert streamed == dataclasses.replace(source, streaming=True)


def test_every_data_set_of_the_hub_is_looked_at():
    of_hub = {path.stem for path in CONF.glob("dataset/*.yaml") if OmegaConf.load(path).get("hub") is not None}
    assert of_hub == HUB_SOURCES.keys()


@pytest.mark.parametrize(("option", "override"), [(o, override) for o, needed in NEEDED.items() for override in needed])
def test_what_a_data_set_of_the_hub_cannot_know_is_asked_for(option, override):
    others = [other for other in NEEDED[option] if other != override]
    key = override.partition("=")[0]
    assert f"missing: {key}" in _fails(f"dataset={option}", *others)


def test_pieces_of_a_transcript_are_replaced_as_the_configuration_says():
    (source,) = _settings("dataset=gigaspeech").dataset.sources("train")
    text = "WELL <COMMA> WHO IS IT <QUESTIONMARK>"
    for old, new in source.replace.items():
        text = text.replace(old, new)
    assert text == "WELL, WHO IS IT?"


def test_a_source_may_be_a_path_or_a_group_of_keys():
    dataset = _settings(
        "dataset=manifest",
        "dataset.train=[a.jsonl,{path: b.tsv, weight: 2, columns: {text: sentence}, language: de, max_hours: 3.5}]",
        "dataset.replay=[{path: c.jsonl, max_clips: 7}]",
        "dataset.replay_share=0.1",
        "dataset.language=en",
        "dataset.root=speech",
    ).dataset
    first, second = dataset.sources("train")
    assert (first.path, first.weight, first.language, first.root) == ("a.jsonl", 1.0, "en", "speech")
    assert (second.path, second.weight, second.language, second.root) == ("b.tsv", 2.0, "de", "speech")
    assert (second.columns, second.max_hours, second.max_clips) == ({"text": "sentence"}, 3.5, None)
    (replay,) = dataset.sources("replay")
    assert (replay.path, replay.max_clips) == ("c.jsonl", 7)
    assert (dataset.mixture().replay_share, dataset.mixture().temperature) == (0.1, 1.0)


def test_the_demo_is_what_it_was_with_replay():
    dataset = _settings().dataset
    assert [source.path.rpartition("corpus/")[2] for source in dataset.sources("train")] == ["clinic/train.jsonl"]
    assert [source.path.rpartition("corpus/")[2] for source in dataset.sources("replay")] == ["home/train.jsonl"]
    assert (dataset.on_bad, dataset.max_bad_share) == ("strict", 0.0)


def test_settings_are_frozen():
    settings = _settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.trainer.max_steps = 3


def test_what_is_typed_arrives():
    settings = _settings(
        "model=tiny",
        "optimizer.lr=3e-5",
        "dataset=manifest",
        "dataset.train=[a.jsonl,b.jsonl]",
        "dataset.validation=v.jsonl",
    )
    assert settings.model.path == "openai/whisper-tiny"
    assert settings.optimizer.lr == 3e-5
    assert settings.dataset.train == ("a.jsonl", "b.jsonl")
    assert settings.dataset.validation == ("v.jsonl",)  # one manifest needs no brackets
    assert settings.run.dir == "runs/tiny"


@pytest.mark.parametrize("finetune", ["full", "lora", "frozen_encoder"])
def test_the_rate_follows_model_and_method(finetune):
    recommended = OmegaConf.load(CONF / "model" / "large_v3.yaml").recommended
    settings = _settings("model=large_v3", f"finetune={finetune}")
    assert settings.optimizer.lr == recommended.lr[finetune]
    assert settings.trainer.max_steps == recommended.max_steps
    assert _settings("model=large_v3", "trainer.max_steps=7").trainer.max_steps == 7


FIXED_KEYS = [  # people and other programs rely on them
    *("model.path", "dataset.train", "dataset.validation", "dataset.test", "window.full_share", "optimizer.lr"),
    *("trainer.max_steps", "trainer.micro_batch_size", "trainer.accumulation_steps", "trainer.seed"),
    *("trainer.eval_every_steps", "trainer.save_every_steps", "tracker.mode", "run.dir", "run.resume"),
    *("precision.fallback", "window.edges_s"),
]
FIXED_CHOICES = {
    "model": "demo tiny base small medium large_v3 large_v3_turbo scratch",
    "dataset": "demo manifest hub common_voice fleurs",
    "precision": "auto fp16 bf16 tf32 fp32 bf16_pure",
    "finetune": "full lora frozen_encoder",
    "window": "full bucketed",
    "augment": "none light strong",
    "optimizer": "adamw adamw_8bit adafactor",
    "tracker": "wandb none",
    "debug": "smoke overfit",
}


def test_the_fixed_keys_and_choices_exist():
    config = compose_config("train")
    for key in FIXED_KEYS:
        assert OmegaConf.select(config, key, default="none") != "none", key
    for group, choices in FIXED_CHOICES.items():
        assert set(choices.split()) <= {option for g, option in OPTIONS if g == group}, group


def test_the_fixed_keys_of_the_other_programs_exist():
    settings = evaluate.build_settings(
        compose_config("evaluate", ["artefact=a", "infer.compute=fp16", "report.dir=r", "dataset.test=t.jsonl"])
    )
    assert (settings.artefact, settings.infer.compute, settings.report.dir) == (("a",), "fp16", "r")
    assert settings.dataset.test == ("t.jsonl",)
    several = evaluate.build_settings(
        compose_config("evaluate", ["artefact=[a,b]", "dataset.test=[x.jsonl,y.jsonl]", "tracker=wandb"])
    )
    assert (several.artefact, several.dataset.test) == (("a", "b"), ("x.jsonl", "y.jsonl"))
    assert several.tracker.name == "wandb"
    served = serve.build_settings(
        compose_config("serve", ["artefact=a", "precision=fp16", "serve.host=0.0.0.0", "serve.port=1"])
    )
    assert (served.artefact, served.precision.name) == (("a",), "fp16")
    assert (served.serve.host, served.serve.port) == ("0.0.0.0", 1)
    compared = compare_precision.build_settings(
        compose_config("compare_precision", ["artefact=a", "report.dir=r", "dataset.test=t.jsonl"])
    )
    assert compared.rows == tuple(ARITHMETICS)
    swept = sweep_strength.build_settings(
        compose_config("sweep_strength", ["run.dir=r", "strengths=[0,0.5,1]", "retention.sets=[o.jsonl]"])
    )
    assert (swept.run.dir, swept.strengths) == ("r", (0.0, 0.5, 1.0))
    for name, overrides in [
        ("transcribe", ["artefact=a", "audio=x.wav", "formats=[txt]", "infer.compute=fp32"]),
        ("export", ["run.dir=r", "export.dir=e", "formats=[hf]"]),
        ("export", ["artefact=a", "formats=[onnx,ggml]", "options.onnx.int8=true", "options.ggml.stored=q5_0"]),
    ]:
        verify_overrides(name, overrides)
        to_plain(compose_config(name, overrides))
    assert transcribe
    assert export


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_stepss=3", "unknown key trainer.max_stepss; did you mean trainer.max_steps?"),
        ("optimizer.learning_rat=1", "unknown key optimizer.learning_rat; did you mean "),
        ("optimzer=adamw", "unknown key optimzer; did you mean optimizer?"),
        ("seed=3", "unknown key seed; "),
        ("+trainer.max_step=3", "unknown key trainer.max_step; did you mean trainer.max_steps?"),
        ("+model.geometry.width=3", "unknown key model.geometry.width; "),
        (
            "precision=fp61",
            "precision=fp61 is none of auto, bf16, bf16_pure, fp16, fp32, tf32; did you mean precision=fp16?",
        ),
        ("model=large-v3", "model=large-v3 is none of "),
        ("model=large-v3", "did you mean model=large_v3?"),
        ("experiment=demo_bas", "did you mean experiment=demo_base?"),
        ("trainer.max_steps=abc", "trainer.max_steps='abc' must be a whole number"),
        ("trainer.max_steps=1.5", "trainer.max_steps=1.5 must be a whole number"),
        ("trainer.max_steps=true", "trainer.max_steps=True must be a whole number"),
        ("trainer.max_steps=null", "trainer.max_steps=None must be a whole number"),
        ("trainer.max_steps=0", "trainer.max_steps=0 must be 1 or more"),
        ("optimizer.lr=fast", "optimizer.lr='fast' must be a number"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] must have 2 entries"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9 must be a list"),
        ("precision.fallback=1", "precision.fallback=1 must be true or false"),
        ("model.path=3", "model.path=3 must be text"),
        ("dataset.train=[1]", "dataset.train[0]=1 must be text"),
        ("dataset.train=[{pth: a.jsonl}]", "unknown key dataset.train[0].pth; did you mean dataset.train[0].path?"),
        ("dataset.train=[{path: a.jsonl, columns: 3}]", "dataset.train[0].columns=3 must be a group of keys"),
        ("dataset.train=[{path: a.jsonl, weight: 0}]", "weight=0.0 of a.jsonl must be above 0"),
        ("dataset.on_bad=ignore", "dataset.on_bad=ignore must be one of strict, quarantine, report"),
        ("dataset.max_bad_share=1", "dataset.max_bad_share=1.0 must lie in 0 to 1"),
        ("dataset.temperature=0.5", "dataset.temperature=0.5 must be 1 or more"),
        ("dataset.replay_share=1", "dataset.replay_share=1.0 must lie in 0 to 1"),
        ("labels.timestamp_share=2", "labels.timestamp_share=2.0 must lie in 0 to 1"),
        ("window.edges_s=[5,10]", "window.edges_s=[5.0, 10.0] must rise and end at 30"),
        ("trainer=3", "trainer=3 is none of default"),
        ("model=null", "model=None is none of base"),
        ("run.dir=???", "missing: run.dir; type run.dir=..."),
        ("run.name=${nowhere.at.all}", "nowhere"),
        ("trainer.max_steps=", "trainer.max_steps='' must be a whole number"),
    ],
)
def test_a_mistake_names_the_key_and_what_was_meant(override, message):
    overrides = [override, "model=scratch"] if "geometry" in override else [override]
    found = _fails(*overrides)
    assert message in found
    assert "\n" not in found


def test_a_wrong_line_is_one_clean_line():
    assert "\n" not in _fails("trainer.max_steps=[1,")


def test_a_value_that_only_the_user_knows_is_asked_for():
    verify_overrides("evaluate", [])
    with pytest.raises(SettingsError, match=r"missing: artefact; type artefact=\.\.\."):
        to_plain(compose_config("evaluate"))


@pytest.mark.parametrize("key", ["_target_", "_partial_", "_args_"])
@pytest.mark.parametrize(
    "override", ["+{}=os.system", "+model.{}=os.system", "+model.geometry.{}=x", "dataset.train=[{{{}: os.system}}]"]
)
def test_a_configuration_is_never_code(key, override):
    found = _fails("model=scratch", override.format(key))
    assert key in found
    assert "a configuration is data, never code" in found


def test_no_file_in_conf_names_code():
    for path in CONF.rglob("*.yaml"):
        text = path.read_text()
        assert not any(key in text for key in ("_target_", "_partial_", "_args_")), path


def test_the_environment_is_fenced(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("USER", "ada")
    found = _fails("run.name=${oc.env:WANDB_API_KEY}")
    assert "oc.env:WANDB_API_KEY is not allowed" in found
    assert "hunter2" not in found
    assert _settings("run.name=${oc.env:USER}").run.name == "ada"
    assert _settings("run.name=${oc.env:SLURM_JOB_ID,none}").run.name in ("none", os.environ.get("SLURM_JOB_ID"))
    assert not any(word in name for name in ENVIRONMENT_NAMES for word in ("KEY", "TOKEN", "SECRET", "PASS"))


def test_hydras_own_flags_and_keys_pass():
    verify_overrides("train", ["--cfg", "job", "hydra.verbose=true", "-m", "optimizer.lr=1e-5,1e-6", "model=tiny,base"])


def test_keys_of_the_chosen_option_are_known():
    verify_overrides("train", ["model=scratch", "model.geometry.d_model=32", "finetune=lora", "finetune.rank=4"])
    with pytest.raises(SettingsError, match=r"unknown key finetune\.rank"):
        verify_overrides("train", ["finetune=full", "finetune.rank=4"])


@dataclasses.dataclass(frozen=True)
class _Needs:
    must: int
    may: int = 3


def test_build_wants_every_field_without_a_default():
    assert build(_Needs, {"must": 1}, path="group") == _Needs(1, 3)
    with pytest.raises(SettingsError, match=r"group\.must is missing"):
        build(_Needs, {}, path="group")
    with pytest.raises(SettingsError, match="group must be a group of keys, found 3"):
        build(_Needs, 3, path="group")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("wrong"), 2), (FileNotFoundError("gone"), 2), (RuntimeError("cannot"), 2), (KeyboardInterrupt(), 130)],
)
def test_a_users_mistake_is_one_line_and_a_status(capsys, monkeypatch, error, status):
    monkeypatch.delenv("MEZZAVOCE_TRACEBACK", raising=False)

    def action():
        raise error

    assert run_guarded(action) == status
    printed = capsys.readouterr().err
    assert printed == ("stopped\n" if status == 130 else f"error: {error}\n")


def test_our_own_mistake_keeps_its_traceback():
    def action():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run_guarded(action)


def test_the_traceback_is_there_for_who_asks(capsys, monkeypatch):
    monkeypatch.setenv("MEZZAVOCE_TRACEBACK", "1")

    def action():
        raise ValueError("wrong")

    assert run_guarded(action) == 2
    assert "Traceback" in capsys.readouterr().err


def _python(arguments, cwd, **environment):
    environment = {**os.environ, "MEZZAVOCE_TRACEBACK": "", "PYTHONPATH": "", **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_misspelt_key_exits_with_2_and_one_line_from_any_folder(tmp_path):
    """By path, where `scripts/` would hide the package `train` from the imports of the script."""
    done = _python([str(PROJECT / "scripts" / "train.py"), "trainer.max_stepss=3"], tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown key trainer.max_stepss; did you mean trainer.max_steps?\n"
    assert list(tmp_path.iterdir()) == []


def test_as_a_module_it_fails_in_one_line_too_and_leaves_no_folders_of_hydras(tmp_path):
    """As far as into `train.run`, which says that there is nothing to train on."""
    overrides = ["model=scratch", "dataset=manifest", "tracker=none", "precision=fp32"]
    done = _python(["-m", "scripts.train", *overrides], tmp_path, PYTHONPATH=str(PROJECT))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: dataset.train= names no source; type dataset.train=train.jsonl"
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*")] == ["runs"]
    assert (tmp_path / "runs" / "scratch" / "config.yaml").is_file()
    assert "names no source" in (tmp_path / "runs" / "scratch" / "train.log").read_text()
