"""The folder that ships: whole or not there, FP16 and only FP16, readable by stock transformers, checked on loading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tone
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

import infer.artefact
from data.windows import Windows
from infer.artefact import amend_record, load_artefact, resolve_compute, write_artefact
from infer.decoding import DecodeSettings
from infer.encoder import WindowedWhisper
from infer.generation_config import clean_generation_config
from infer.half import RejectedError, cast_to_half
from infer.transcriber import Transcriber
from infer.weights import file_sha256

WINDOWS = Windows((1.0, 5.0, 30.0))


@pytest.fixture
def write(lively: WindowedWhisper, tokenizer, tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny model to `export/`."""

    def write(name: str = "export", **changes: Any) -> Path:
        arguments: dict[str, Any] = {
            "config": lively.config,
            "generation_config": lively.generation_config,
            "tokenizer": tokenizer,
            "windows": WINDOWS,
            "record": {"source": {"name": "scratch"}, "trained_steps": 7},
            **changes,
        }
        return write_artefact(tmp_path / name, cast_to_half(lively.state_dict()), **arguments)

    return write


def test_round_trip_keeps_every_weight_and_fact(write: Callable[..., Path], lively: WindowedWhisper) -> None:
    path = write()
    artefact = load_artefact(path)
    assert artefact.windows == WINDOWS
    assert (artefact.stored, artefact.compute) == ("float16", "float32")
    assert artefact.sha256 == file_sha256(path / "model.safetensors")
    assert artefact.describe()["windows_s"] == [1.0, 5.0, 30.0]
    assert artefact.describe()["trained_steps"] == 7
    assert artefact.describe()["source"] == {"name": "scratch"}
    assert not artefact.model.training
    loaded = artefact.model.state_dict()
    for name, tensor in lively.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().float()), name
    assert loaded["proj_out.weight"].data_ptr() == loaded["model.decoder.embed_tokens.weight"].data_ptr()


def test_files_are_those_that_runtimes_look_for(write: Callable[..., Path], lively: WindowedWhisper) -> None:
    path = write()
    names = {file.name for file in path.iterdir()}
    assert names >= {
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("processor_config.json", "preprocessor_config.json", "mezzavoce.json"),
    }
    assert not any(name.endswith((".bin", ".pt", ".py", ".tmp")) for name in names)
    stored = load_file(path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert stored.keys() == lively.state_dict().keys() - {"proj_out.weight"}
    assert json.loads((path / "preprocessor_config.json").read_text())["feature_size"] == 80
    assert json.loads((path / "config.json").read_text())["dtype"] == "float16"
    record = json.loads((path / "mezzavoce.json").read_text())
    assert record["files"].keys() == names - {"mezzavoce.json"}
    assert all(file_sha256(path / name) == sha256 for name, sha256 in record["files"].items())
    assert {"torch", "transformers"} <= record["versions"].keys()
    modes = {file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert modes == {0o666 & ~_umask()}  # safetensors alone would leave 0600


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_mel_count_of_another_model_is_written(write: Callable[..., Path], lively: WindowedWhisper) -> None:
    lively.config.num_mel_bins = 128
    path = write(config=lively.config)
    assert json.loads((path / "preprocessor_config.json").read_text())["feature_size"] == 128
    assert WhisperProcessor.from_pretrained(path).feature_extractor.feature_size == 128


def test_stock_transformers_loads_the_folder_and_computes_the_same(write: Callable[..., Path], tokenizer) -> None:
    path = write()
    stock = WhisperForConditionalGeneration.from_pretrained(path).eval()
    processor = WhisperProcessor.from_pretrained(path)
    assert {parameter.dtype for parameter in stock.parameters()} == {torch.float16}
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    features = processor(tone(1.0), sampling_rate=16_000, return_tensors="pt").input_features
    assert features.shape == (1, 80, 3000)
    artefact = load_artefact(path)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = stock.float()(input_features=features, decoder_input_ids=ids).logits
        found = artefact.model(input_features=features, decoder_input_ids=ids).logits
    assert torch.equal(found, expected)
    generated = stock.generate(features, language="zh", task="translate", max_new_tokens=4)
    assert generated.shape[0] == 1


def test_nothing_is_forced_and_ids_are_kept(write: Callable[..., Path], lively: WindowedWhisper) -> None:
    given = lively.generation_config
    given.forced_decoder_ids = [[1, 2]]
    given.language = "<|en|>"
    given.task = "transcribe"
    given.suppress_tokens = [1, 2, 7]
    given.begin_suppress_tokens = [220]
    written = json.loads((write() / "generation_config.json").read_text())
    assert all(written.get(name) is None for name in ("forced_decoder_ids", "language", "task"))
    assert written["suppress_tokens"] == [1, 2, 7]
    assert written["begin_suppress_tokens"] == [220]
    for name in ("lang_to_id", "task_to_id", "alignment_heads", "no_timestamps_token_id", "is_multilingual"):
        assert written[name] == getattr(given, name), name
    assert len(written["lang_to_id"]) == 100
    assert given.language == "<|en|>"  # the caller's own is left alone


def test_settings_of_the_search_are_not_taken_from_a_folder(write: Callable[..., Path]) -> None:
    """`generate` fills in from the model's own settings whatever it was not told."""
    path = write("plain")
    clips = [tone(1.0, hz=200.0 * i) for i in range(1, 4)]
    settings = DecodeSettings(language="en", max_new_tokens=12)
    expected = Transcriber(load_artefact(path), settings).transcribe(clips)
    foreign = json.loads((path / "generation_config.json").read_text())
    steering = {"no_repeat_ngram_size": 1, "repetition_penalty": 5.0, "num_beams": 4, "max_new_tokens": 2}
    foreign.update(steering, do_sample=True, temperature=9.0)
    (path / "generation_config.json").write_text(json.dumps(foreign))
    (path / "mezzavoce.json").unlink()
    assert GenerationConfig.from_pretrained(path).repetition_penalty == 5.0
    artefact = load_artefact(path)
    assert all(getattr(artefact.model.generation_config, name) is None for name in steering)
    found = Transcriber(infer.artefact.Artefact(**{**vars(artefact), "windows": WINDOWS}), settings).transcribe(clips)
    assert found == expected
    assert any(transcript.text for transcript in expected)


def test_cleaning_keeps_what_it_does_not_know() -> None:
    config = GenerationConfig(eos_token_id=5, num_beams=7, length_penalty=3.0)
    config.prev_sot_token_id = 9
    cleaned = clean_generation_config(config)
    assert (cleaned.eos_token_id, cleaned.prev_sot_token_id) == (5, 9)
    assert (cleaned.num_beams, cleaned.length_penalty) == (None, None)
    assert config.num_beams == 7


def test_a_changed_file_is_refused(write: Callable[..., Path]) -> None:
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        path = write()
        content = bytearray((path / name).read_bytes())
        content[-20] ^= 1
        (path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not the file that was exported"):
            load_artefact(path)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json", "preprocessor_config.json"]
)
def test_a_missing_file_is_named(name: str, write: Callable[..., Path]) -> None:
    path = write()
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_artefact(path)


def test_no_folder_is_said_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a folder; artefact="):
        load_artefact(tmp_path / "absent")


def test_pickled_weights_are_never_loaded(write: Callable[..., Path]) -> None:
    path = write()
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    (path / "mezzavoce.json").unlink()
    with pytest.raises(FileNotFoundError, match="never loaded"):
        load_artefact(path)


def test_code_in_a_folder_is_refused_and_not_run(write: Callable[..., Path]) -> None:
    path = write()
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSpeechSeq2Seq": "evil.Evil"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "evil.py").write_text(f"open({str(path / 'ran')!r}, 'w')\n")
    (path / "mezzavoce.json").unlink()
    with pytest.raises(ValueError, match="auto_map"):
        load_artefact(path)
    assert not (path / "ran").exists()


@pytest.mark.parametrize(("field", "value"), [("decoder_start_token_id", 3), ("eos_token_id", 3)])
def test_a_tokenizer_of_another_model_is_refused(field: str, value: int, write: Callable[..., Path]) -> None:
    path = write()
    config = json.loads((path / "config.json").read_text())
    config[field] = value
    (path / "config.json").write_text(json.dumps(config))
    (path / "mezzavoce.json").unlink()
    with pytest.raises(ValueError, match=f"{field} is 3"):
        load_artefact(path)


def test_a_folder_of_another_tool_loads_as_stock(write: Callable[..., Path], lively: WindowedWhisper) -> None:
    path = write()
    (path / "mezzavoce.json").unlink()
    save_file({k: v.float() for k, v in load_file(path / "model.safetensors").items()}, path / "model.safetensors")
    artefact = load_artefact(path)
    assert artefact.windows.is_stock
    assert artefact.stored == "float32"
    assert artefact.sha256 == file_sha256(path / "model.safetensors")
    assert artefact.record == {}


NAME = "model.decoder.layers.0.fc1.weight"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "holds NaN or infinity"),
        (float("inf"), "holds NaN or infinity"),
        (7e4, "reaches 7e[+]04"),
        (-7e4, "reaches 7e[+]04"),
        (65510.0, "reaches"),
        (1e-9, "would become zero"),
    ],
)
def test_a_weight_that_fp16_cannot_hold_is_rejected_by_name(
    value: float, message: str, lively: WindowedWhisper
) -> None:
    state = {name: tensor.clone() for name, tensor in lively.state_dict().items()}
    state[NAME][3:5] = value  # two rows: 32 weights, above the 16 that may flush to zero in any model
    with pytest.raises(RejectedError, match=message) as e:
        cast_to_half(state)
    assert NAME in str(e.value)


def test_every_fault_is_named_at_once(lively: WindowedWhisper) -> None:
    state = {name: tensor.clone() for name, tensor in lively.state_dict().items()}
    state[NAME][0, 0] = 7e4
    state["model.encoder.conv1.bias"][0] = torch.nan
    with pytest.raises(RejectedError) as e:
        cast_to_half(state)
    assert NAME in str(e.value)
    assert "model.encoder.conv1.bias" in str(e.value)


def test_cast_is_round_to_nearest_and_takes_what_fits() -> None:
    """By hand: 65504 is the last finite FP16; halfway cases go to the even neighbour; zeros are no loss."""
    weights = torch.tensor([65504.0, -65504.0, 1 + 2**-11, 1 + 3 * 2**-11, 6e-8, 0.0])
    half = cast_to_half({"a": weights, "proj_out.weight": torch.full((1,), torch.nan)})
    assert list(half) == ["a"]
    assert half["a"].dtype == torch.float16
    expected = [65504.0, -65504.0, 1.0, 1 + 2**-9, 2**-24, 0.0]
    assert half["a"].tolist() == expected


def test_a_few_tiny_weights_among_many_are_tolerated() -> None:
    weights = torch.full((3_000_000,), 0.5)
    weights[:30] = 1e-9
    assert int((cast_to_half({"a": weights})["a"] == 0).sum()) == 30
    weights[30] = 1e-9
    with pytest.raises(RejectedError, match="31 of 3000000 non-zero weights would become zero, 31 of them in a"):
        cast_to_half({"a": weights})


def test_in_a_small_model_sixteen_weights_may_flush_to_zero() -> None:
    weights = torch.full((1000,), 0.5)
    weights[:16] = 1e-9
    assert int((cast_to_half({"a": weights})["a"] == 0).sum()) == 16
    weights[16] = 1e-9
    with pytest.raises(RejectedError, match="17 of 1000 non-zero"):
        cast_to_half({"a": weights})


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def _full_disk_in_rust(*_: object, **__: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("save_weights", _full_disk),
        ("save_weights", _full_disk_in_rust),
        ("_write_configs", _full_disk),
        ("_write_processor", _full_disk),
        ("_finish_record", _full_disk),
        ("replace_folder", _full_disk),
    ],
)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_full_disk_leaves_the_old_folder_and_nothing_else(
    name: str, fault: Callable[..., None], is_there: bool, write: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = {file.name: file_sha256(file) for file in write().iterdir()} if is_there else {}
    monkeypatch.setattr(infer.artefact, name, fault)
    with pytest.raises(RuntimeError, match=r"cannot write .*export: .*No space left on device"):
        write(record={"trained_steps": 8})
    assert [file.name for file in tmp_path.iterdir()] == (["export"] if is_there else [])
    if is_there:
        assert {file.name: file_sha256(file) for file in (tmp_path / "export").iterdir()} == before
        assert load_artefact(tmp_path / "export").record["trained_steps"] == 7


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RuntimeError, match="Input/output error"):
        write(record={"trained_steps": 8})
    assert [file.name for file in tmp_path.iterdir()] == ["export"]
    assert load_artefact(tmp_path / "export").record["trained_steps"] == 7


def test_an_interrupted_save_leaves_no_temporary_folder(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(infer.artefact, "_write_processor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_writing_again_replaces_the_whole_folder(write: Callable[..., Path], tmp_path: Path) -> None:
    (write() / "left-over.txt").write_text("old")
    write(record={"trained_steps": 8})
    assert [file.name for file in tmp_path.iterdir()] == ["export"]
    assert not (tmp_path / "export" / "left-over.txt").exists()
    assert load_artefact(tmp_path / "export").record["trained_steps"] == 8


def test_record_takes_further_facts_and_nothing_that_is_no_json(write: Callable[..., Path]) -> None:
    path = write()
    amend_record(path, evaluation={"wer": 0.25})
    record = load_artefact(path).record
    assert record["evaluation"] == {"wer": 0.25}
    assert record["trained_steps"] == 7
    with pytest.raises(ValueError, match="JSON compliant"):
        amend_record(path, evaluation={"wer": float("nan")})
    assert load_artefact(path).record == record


def test_resolve_compute_says_what_and_why() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_compute("auto", cpu) == (torch.float32, "half-precision matmuls are slower than FP32 on a CPU")
    assert resolve_compute("auto", cuda)[0] is torch.float16
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        assert resolve_compute(name, cpu) == resolve_compute(name, cuda) == (dtype, "asked for")
    with pytest.raises(ValueError, match=r"infer\.compute=half must be one of auto, fp32, fp16, bf16"):
        resolve_compute("half", cpu)


@pytest.mark.parametrize(("compute", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_compute_really_multiplies_in_half(compute: str, dtype: torch.dtype, write: Callable[..., Path]) -> None:
    artefact = load_artefact(write(), compute=compute)
    assert {parameter.dtype for parameter in artefact.model.parameters()} == {dtype}
    assert artefact.compute == str(dtype).removeprefix("torch.")
    seen: set[torch.dtype] = set()
    for module in artefact.model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d):
            module.register_forward_hook(lambda _, inputs, output: seen.update((inputs[0].dtype, output.dtype)))
    (transcript,) = Transcriber(artefact, DecodeSettings(max_new_tokens=4)).transcribe([tone(1.0)])
    assert seen == {dtype}
    assert 0 < transcript.language_probability <= 1
