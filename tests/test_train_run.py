"""A whole run, from manifest to artefact, on ten made clips: what it leaves behind, and that stopping changes nothing.

Stopped and resumed runs are compared with uninterrupted ones bit for bit: weights, optimizer, average and metrics, with
dropout and augmentation on, so that every generator counts.
"""

import copy
import functools
import hashlib
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone
from safetensors.torch import load_file

from infer.artefact import load_artefact
from scripts.settings import compose_config
from scripts.train import build_settings
from train.checkpoint import DamagedError, list_checkpoints, load_checkpoint
from train.guard import NonFiniteError
from train.loop import Loop
from train.run import run_training
from train.standing import Standing

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "kept_logging", "kept_switches")

LOG_KEYS = {
    "train/loss",
    "train/grad_norm",
    "train/lr",
    "train/loss_scale",
    "train/skipped_steps",
    "train/audio_s_per_s",
}
TINY = [
    "model=scratch",
    "model.geometry.d_model=16",
    "model.geometry.encoder_layers=2",
    "model.geometry.decoder_layers=1",
    "model.geometry.attention_heads=2",
    "model.geometry.ffn_dim=32",
    "dataset=manifest",
    "tracker=none",
    "window.edges_s=[1,3,30]",
    "trainer.micro_batch_size=2",
    "trainer.accumulation_steps=2",
    "trainer.max_steps=6",
    "trainer.eval_every_steps=3",
    "trainer.save_every_steps=2",
    "trainer.log_every_steps=1",
    "trainer.num_workers=0",
    "schedule.warmup_steps=2",
    "decoding.max_new_tokens=4",
]


@pytest.fixture
def kept_switches(monkeypatch):
    """Put torch's process-wide switches back; let one weight in a hundred flush to zero in FP16.

    The gate allows one in a hundred thousand: in a model of 74,000 weights not a single one.
    """
    monkeypatch.setattr("infer.half.MAX_FLUSHED_SHARE", 1e-2)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def train(corpus, tmp_path, fresh_accelerate, write_manifest, request, monkeypatch):
    """Run with overrides; three of the ten clips are the validation set. Only one test draws curves: a second each."""
    if "leaves_a_whole_folder[fp32]" not in request.node.name:
        monkeypatch.setattr("train.run.draw_curves", lambda *_args, **_options: None)
    lines = corpus.read_text(encoding="utf-8").splitlines()
    validation = write_manifest(lines[:3], "validation.jsonl")

    def run(name, *overrides):
        fresh_accelerate()
        config = copy.deepcopy(_compose(overrides))
        config.run.dir = str(tmp_path / name)
        for key, path in (("train", corpus), ("validation", validation)):
            if not any(override.startswith(f"dataset.{key}=") for override in overrides):
                config.dataset[key] = [str(path)]
        return run_training(build_settings(config))

    return run


@functools.cache
def _compose(overrides):
    return compose_config("train", [*TINY, "run.name=tested", *overrides])


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _metrics(run_dir):
    """Return the log without what the clock measures."""
    clocked = ("_per_s", "_s", "_share", "_gib", "rtfx")
    return [{k: v for k, v in line.items() if not k.endswith(clocked)} for line in _lines(run_dir / "metrics.jsonl")]


def _hashes(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_leaves_a_whole_folder(train, precision):
    result = train("run", f"precision={precision}")
    run_dir = result.run_dir
    assert (result.step, result.stop_signal, result.export_dir) == (6, None, run_dir / "export")
    assert json.loads((run_dir / "config.yaml").read_text())["precision"]["name"] == precision

    lines = _lines(run_dir / "metrics.jsonl")
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    for line in training:
        assert line.keys() >= LOG_KEYS
        assert 0 < line["train/loss"] < 20
        assert (line["train/loss_scale"] is None) == (precision != "fp16")
        assert line["train/audio_s_per_s"] > 0
    assert training[-1]["train/loss"] < training[0]["train/loss"]
    # 1 / 2, 2 / 2 of the peak, then falling to 0 at update 6; the rate is that of the update it stands beside
    assert [line["train/lr"] / 1.5e-3 for line in training] == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])

    valid = [line for line in lines if "valid/validation/wer" in line]
    assert [line["step"] for line in valid] == [3, 6]
    for line in valid:
        assert line.keys() >= {"valid/validation/cer", "valid/validation/loss", "valid/validation/headline"}
    best = min(valid, key=lambda line: line["valid/validation/headline"])
    assert (result.best_step, result.best_headline) == (best["step"], best["valid/validation/headline"])

    names = [path.name for path in list_checkpoints(run_dir / "checkpoints")]
    assert names[-1] == "step-000006"
    assert f"step-{result.best_step:06d}" in names

    artefact = load_artefact(result.export_dir)
    assert artefact.stored == "float16"
    assert artefact.windows.edges_s == (1.0, 3.0, 30.0)
    assert artefact.record["trained_steps"] == result.best_step
    assert artefact.record["precision"] == precision
    stored = load_file(result.export_dir / "model.safetensors")
    masters = load_checkpoint(run_dir / "checkpoints" / f"step-{result.best_step:06d}").model
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    assert all(torch.equal(stored[name], tensor.half()) for name, tensor in masters.items())

    log = (run_dir / "train.log").read_text()
    assert f"precision={precision}: weights stored in FP32" in log
    assert (run_dir / "curves.png").is_file() == (precision == "fp32")  # drawn in one of the three: it takes a second
    assert not (run_dir / "quarantine.jsonl").exists()


def test_validation_is_generated_text_in_the_half_copy(train, monkeypatch):
    import train.rehearsal as module

    seen = []

    def spy(artefact, clips, label_builder, settings, *, batch_size):
        found = real(artefact, clips, label_builder, settings, batch_size=batch_size)
        weights = artefact.model.state_dict()
        seen.append(
            (artefact.stored, all(torch.equal(w, w.half().float()) for w in weights.values()), found.predictions)
        )
        return found

    real = module.validate
    monkeypatch.setattr(module, "validate", spy)
    result = train("run", "trainer.max_steps=3")
    ((stored, is_half, predictions),) = seen
    assert (stored, is_half) == ("float16", True)
    assert [p.id for p in predictions] == ["c0", "c1", "c2"]
    # The same weights, read back from disk, say the same: what is validated is what ships.
    from infer.decoding import DecodeSettings
    from infer.transcriber import Clip, Transcriber

    transcriber = Transcriber(load_artefact(result.export_dir), DecodeSettings(max_new_tokens=4), batch_size=2)
    clips = [Clip(result.run_dir.parent / "audio" / f"{i}.wav") for i in range(3)]
    assert [t.text for t in transcriber.transcribe(clips)] == [p.hypothesis for p in predictions]


def _stop_after(monkeypatch, num_updates):
    """Send this process a real SIGINT in the given update."""
    real = Loop._update
    count = []

    def update(loop, updates):
        count.append(1)
        if len(count) == num_updates:
            signal.raise_signal(signal.SIGINT)
        return real(loop, updates)

    monkeypatch.setattr(Loop, "_update", update)


RICH = ["model.dropout=0.2", "augment=strong", "trainer.ema_decay=0.9", "trainer.keep_checkpoints=9"]


@pytest.mark.parametrize(
    ("precision", "options"),
    [("fp32", []), ("fp16", ["precision.init_scale=16384", "precision.growth_interval=2"])],
)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_was_stopped_ends_in_the_same_bits(train, monkeypatch, precision, options, stop):
    options = [*RICH, f"precision={precision}", *options]
    whole = train("whole", *options)
    handler = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    with monkeypatch.context() as patch:
        _stop_after(patch, stop)
        stopped = train("parts", *options)
    assert (stopped.step, stopped.stop_signal, stopped.export_dir) == (stop, signal.SIGINT, None)
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = train("parts", *options)
    assert (resumed.step, resumed.stop_signal) == (6, None)
    assert (resumed.best_step, resumed.best_headline) == (whole.best_step, whole.best_headline)

    first, second = (run.run_dir / "checkpoints" / "step-000006" for run in (whole, resumed))
    assert _hashes(first).keys() == {"model.safetensors", "optimizer.safetensors", "average.safetensors"}
    assert _hashes(first) == _hashes(second)
    states = [json.loads((path / "state.json").read_text()) for path in (first, second)]
    for key in ("progress", "guard", "quarantine", "scaler", "random", "optimizer"):
        assert states[0][key] == states[1][key], key
    assert _metrics(whole.run_dir) == _metrics(resumed.run_dir)
    assert _hashes(whole.export_dir) == _hashes(resumed.export_dir)
    assert f"resumed at step {stop} of 6" in (resumed.run_dir / "train.log").read_text()


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_and_repeats_no_line(train, monkeypatch):
    """Killed in update 4, so steps 3 and the half of 4 are in no checkpoint of ours."""
    options = ["trainer.eval_every_steps=0"]
    whole = train("whole", *options)
    real = Loop._update

    def die(loop, updates):
        if loop.progress.attempted == 3:
            (loop.parts.run_dir / "metrics.jsonl").open("a").write('{"step": 4, "train/l')
            raise SystemExit(9)
        return real(loop, updates)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_update", die)
        with pytest.raises(SystemExit):
            train("parts", *options)
    assert [path.name for path in list_checkpoints(whole.run_dir.parent / "parts" / "checkpoints")] == ["step-000002"]
    resumed = train("parts", *options)
    assert _metrics(resumed.run_dir) == _metrics(whole.run_dir)
    assert _hashes(resumed.export_dir) == _hashes(whole.export_dir)


def test_killed_before_the_first_checkpoint_it_begins_anew_without_old_lines(train, monkeypatch):
    def die(*_args):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "save", die)
        with pytest.raises(SystemExit):
            train("run")
    result = train("run")
    assert [line["step"] for line in _metrics(result.run_dir) if "train/loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_passed_over_with_a_word(train, monkeypatch):
    options = ["trainer.eval_every_steps=0", "trainer.keep_checkpoints=9"]
    whole = train("whole", *options)
    with monkeypatch.context() as patch:
        _stop_after(patch, 4)
        stopped = train("parts", *options)
    newest = stopped.run_dir / "checkpoints" / "step-000004" / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    resumed = train("parts", *options)
    log = (resumed.run_dir / "train.log").read_text()
    assert "checkpoint skipped" in log
    assert "resumed at step 2 of 6" in log
    assert _metrics(resumed.run_dir) == _metrics(whole.run_dir)
    assert _hashes(resumed.export_dir) == _hashes(whole.export_dir)
    for path in list_checkpoints(resumed.run_dir / "checkpoints"):
        (path / "state.json").write_text("{}")
    with pytest.raises(DamagedError, match="none of the 3 checkpoints"):
        train("parts", *options)


def test_skips_leave_the_schedule_and_the_average_behind(train):
    """A loss scale so high that the first backwards overflow in FP16, for real."""
    result = train("run", "precision=fp16", "precision.init_scale=1048576", "trainer.eval_every_steps=0")
    lines = _metrics(result.run_dir)
    state = load_checkpoint(result.run_dir / "checkpoints" / "step-000006").state
    skipped = [line for line in lines if line["train/grad_norm"] is None]
    num_skipped = len(skipped)
    assert 0 < num_skipped < 5
    assert (state["progress"]["attempted"], state["progress"]["applied"]) == (6, 6 - num_skipped)
    assert lines[-1]["train/skipped_steps"] == state["guard"]["num_skipped"] == num_skipped
    assert [line["train/loss_scale"] for line in skipped] == [2.0 ** (20 - i) for i in range(1, num_skipped + 1)]
    applied = 0
    for line in lines:
        share = (applied + 1) / 2 if applied < 2 else 1 - (applied - 2) / 4
        assert line["train/lr"] == pytest.approx(1.5e-3 * share)
        applied += line not in skipped
    assert all(line["train/loss"] > 0 for line in lines)


def test_five_overflows_in_a_row_stop_the_run(train):
    with pytest.raises(NonFiniteError, match="5 updates in a row"):
        train("run", "precision=fp16", "precision.init_scale=1e30", "trainer.eval_every_steps=0")


def test_a_used_folder_is_refused_by_never_and_emptied_by_overwrite(train):
    options = ["trainer.max_steps=1", "trainer.eval_every_steps=0"]
    first = train("run", *options)
    before = _hashes(first.export_dir)
    with pytest.raises(ValueError, match=r"holds a run; name another one, or add run\.overwrite=true"):
        train("run", "run.resume=never", *options)
    assert _hashes(first.export_dir) == before
    again = train("run", "run.overwrite=true", "trainer.seed=7", *options)
    assert _hashes(again.export_dir) != before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("optimizer.lr=0.5", r"optimizer\.lr"),
        ("trainer.seed=9", r"trainer\.seed"),
        ("augment=light", r"augment\.gain_db"),
    ],
)
def test_changed_settings_are_refused_on_resume(train, monkeypatch, changed, named):
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        stopped = train("run")
    config = (stopped.run_dir / "config.yaml").read_text()
    with pytest.raises(ValueError, match=rf"made with other values of .*{named}.*run\.overwrite=true"):
        train("run", changed)
    assert (stopped.run_dir / "config.yaml").read_text() == config


def test_told_to_it_goes_on_with_other_settings_and_data_and_the_artefact_says_so(train, monkeypatch, corpus):
    options = ["trainer.max_steps=3", "trainer.eval_every_steps=0"]
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        stopped = train("run", *options)
    assert stopped.exit_code == 130
    metrics = (stopped.run_dir / "metrics.jsonl").read_text()
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text.replace("one two three", "three two one"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"other values of the content of .*train\.jsonl"):
        train("run", *options)
    assert (stopped.run_dir / "metrics.jsonl").read_text() == metrics
    result = train("run", "run.inexact=true", "optimizer=adafactor", "precision=bf16", *options)
    record = load_artefact(result.export_dir).record
    assert all(entry.startswith("step 1: ") for entry in record["inexact"])
    said = " ".join(record["inexact"])
    assert "optimizer.name" in said and "precision.name" in said and str(corpus) in said
    again = train("run", "run.inexact=true", "optimizer=adafactor", "precision=bf16", *options)
    assert load_artefact(again.export_dir).record["inexact"] == record["inexact"]


def test_a_run_that_is_stopped_before_its_first_line_ends_with_its_code(train, monkeypatch):
    from train.curves import draw_curves

    _stop_after(monkeypatch, 2)
    monkeypatch.setattr("train.run.draw_curves", draw_curves)  # refuses a log without a loss
    result = train("run", "trainer.log_every_steps=5", "trainer.eval_every_steps=0")
    assert (result.step, result.exit_code) == (2, 130)


def test_hours_that_are_over_stop_with_a_checkpoint(train):
    result = train("run", "trainer.max_hours=1e-9")
    assert (result.step, result.exit_code, result.export_dir) == (0, 124, None)
    assert train("run", "trainer.max_hours=1").exit_code == 0


def test_a_folder_in_which_another_process_trains_is_refused(train, tmp_path):
    (tmp_path / "run").mkdir()
    program = (
        "import sys, time; from pathlib import Path; from train.runtime import lock_run_dir\n"
        "with lock_run_dir(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process trains in run"):
            train("run")
        holder.kill()
    assert train("run", "trainer.max_steps=1", "trainer.eval_every_steps=0").step == 1


def test_free_settings_may_change_on_resume(train, monkeypatch):
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        train("run", "trainer.max_steps=2")
    assert train("run", "trainer.max_steps=2", "trainer.log_every_steps=5", "trainer.keep_checkpoints=1").step == 2


@pytest.mark.parametrize("eval_every", [2, 3])
def test_a_finished_run_exports_again_and_changes_nothing(train, eval_every):
    options = ["trainer.max_steps=2", f"trainer.eval_every_steps={eval_every}"]
    first = train("run", *options)
    metrics, hashes = (first.run_dir / "metrics.jsonl").read_text(), _hashes(first.export_dir)
    shutil.rmtree(first.export_dir)
    again = train("run", *options)
    assert again == first
    assert _hashes(again.export_dir) == hashes
    assert (first.run_dir / "metrics.jsonl").read_text() == metrics


def test_a_run_that_gets_no_better_ends_early_and_stays_ended(train):
    options = ["trainer.max_steps=9", "trainer.eval_every_steps=1", "trainer.patience=2", "optimizer.lr=1e-6"]
    first = train("run", *options)
    assert (first.step, first.best_step) == (3, 1)  # two validations no better than the first
    assert "no better score in 2 validations; stopping early" in (first.run_dir / "train.log").read_text()
    assert load_artefact(first.export_dir).record["trained_steps"] == 1
    assert train("run", *options).step == 3


def test_resume_from_a_named_checkpoint_in_a_new_folder(train):
    options = ["trainer.eval_every_steps=0", "trainer.keep_checkpoints=9"]
    whole = train("whole", *options)
    resumed = train("other", f"run.resume={whole.run_dir / 'checkpoints' / 'step-000004'}", *options)
    assert _hashes(resumed.export_dir) == _hashes(whole.export_dir)
    assert [line["step"] for line in _metrics(resumed.run_dir)] == [5, 6]
    with pytest.raises(
        FileNotFoundError, match=r"run\.resume=nowhere must be auto, never or the folder of a checkpoint"
    ):
        train("third", "run.resume=nowhere", *options)


def test_a_mistake_in_the_first_try_does_not_block_the_folder(train):
    with pytest.raises(FileNotFoundError):
        train("run", "dataset.train=nowhere.jsonl")
    assert train("run", "trainer.max_steps=1", "trainer.eval_every_steps=0").step == 1


def _plant_nan(corpus, index):
    waveform = tone(1.0)
    waveform[100] = np.nan
    soundfile.write(corpus.parent / "audio" / f"{index}.wav", waveform, 16_000, subtype="FLOAT")


def test_a_clip_with_nan_samples_is_quarantined_once_and_listed(train, corpus, monkeypatch):
    _plant_nan(corpus, 4)
    options = ["dataset.max_bad_share=0.2", "trainer.eval_every_steps=0"]
    result = train("whole", *options)
    (record,) = _lines(result.run_dir / "quarantine.jsonl")
    assert (record["id"], record["line"], record["code"]) == ("c4", 5, "A05")
    assert all(line["train/loss"] > 0 for line in _metrics(result.run_dir))

    with monkeypatch.context() as patch:
        _stop_after(patch, 4)  # the second epoch: it was met by then
        train("parts", *options)
    resumed = train("parts", *options)
    (record,) = _lines(resumed.run_dir / "quarantine.jsonl")
    assert (record["id"], record["code"]) == ("c4", "A05")
    assert _hashes(resumed.export_dir) == _hashes(result.export_dir)


def test_too_many_bad_clips_stop_the_run_and_point_to_the_list(train, corpus):
    _plant_nan(corpus, 4)
    with pytest.raises(ValueError, match=r"1 of 10 clips, 1 of 12 s, cannot be used, more than"):
        train("run")


def test_a_clip_whose_loss_is_not_finite_is_named_and_left_out_from_then_on(train, monkeypatch):
    """A forward that overflows for one clip alone: its features are made infinite after they were read."""
    from data.loaders import UpdateDataset

    real = UpdateDataset.__getitem__
    seen = []

    def poisoned(dataset, position):
        found = real(dataset, position)
        for batch in found.micro_batches:
            if 7 in batch.clips:
                seen.append(position)
                batch.input_features[batch.clips.index(7)] = float("inf")
        return found

    monkeypatch.setattr(UpdateDataset, "__getitem__", poisoned)
    result = train(
        "run", "precision=fp16", "precision.init_scale=1024", "dataset.max_bad_share=0.2", "trainer.eval_every_steps=0"
    )
    assert len(seen) >= 2
    (record,) = _lines(result.run_dir / "quarantine.jsonl")
    assert (record["id"], record["line"], record["code"]) == ("c7", 8, "L01")
    lines = _metrics(result.run_dir)
    assert all(line["train/loss"] > 0 and line["train/loss_scale"] == 1024 for line in lines)
    assert lines[-1]["train/skipped_steps"] == 0


def test_without_a_validation_set_the_last_step_is_exported(train):
    result = train("run", "dataset.validation=[]", "trainer.max_steps=2")
    assert (result.best_step, result.best_headline) == (None, None)
    assert "dataset.validation= is empty: the last step is exported" in (result.run_dir / "train.log").read_text()
    assert load_artefact(result.export_dir).record["trained_steps"] == 2
    assert not any("valid/validation/wer" in line for line in _metrics(result.run_dir))


@pytest.mark.parametrize("options", [["finetune=lora", "finetune.rank=2"], ["finetune=frozen_encoder"]])
def test_other_methods_train_and_export_a_stock_whisper(train, options):
    from transformers import WhisperForConditionalGeneration

    result = train("run", *options, "trainer.gradient_checkpointing=true")
    whisper, report = WhisperForConditionalGeneration.from_pretrained(result.export_dir, output_loading_info=True)
    assert whisper.dtype is torch.float16
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    learnt = load_checkpoint(result.run_dir / "checkpoints" / "step-000006").model
    if "finetune=lora" in options:
        assert all("lora_" in name for name in learnt)
    else:
        assert not any("encoder.layers" in name and "decoder" not in name for name in learnt)


def test_no_source_at_all_says_what_is_missing(train):
    with pytest.raises(ValueError, match="names no source"):
        train("run", "dataset.train=[]")


def test_weights_that_do_not_fit_fp16_go_to_rejected_with_the_reason(train, monkeypatch, tmp_path):
    from infer.half import RejectedError

    real = Standing.weights_to_ship

    def too_large(loop):
        return {name: tensor * 1e9 if "conv1.weight" in name else tensor for name, tensor in real(loop).items()}

    monkeypatch.setattr(Standing, "weights_to_ship", too_large)
    with pytest.raises(RejectedError, match=r"conv1\.weight reaches"):
        train("run", "trainer.max_steps=1", "trainer.eval_every_steps=0")
    reason = json.loads((tmp_path / "run" / "rejected" / "reason.json").read_text())
    assert "FP16 ends at 65504" in reason["reason"]
    assert not (tmp_path / "run" / "export").exists()
