"""An artefact under ONNX Runtime says what it says in torch, in any window, whichever type its graphs store."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.windows import build_windows
from infer.artefact import cast_to_half, load_artefact, write_artefact
from infer.decoding import Decoder, DecodeSettings
from infer.encoder import encode

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `runtimes` is not installed")
pytest.importorskip("onnxscript", reason="the extra `runtimes` is not installed")

from infer.backends.onnx import OnnxDecoder, load_onnx  # noqa: E402
from infer.export.onnx import convert_to_onnx, quantise_graphs  # noqa: E402
from infer.transcriber import Transcriber  # noqa: E402
from tests.conftest import tiny_whisper  # noqa: E402

SETTINGS = DecodeSettings(max_new_tokens=24)


@pytest.fixture(scope="module")
def artefact_dir(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the fixture `lively`, as an artefact; the export takes seconds, so it is made once."""
    whisper = tiny_whisper()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in whisper.named_parameters():
            if "encoder.embed_positions" not in name and parameter.ndim > 1:
                parameter.normal_(0, 0.35)
        whisper.model.decoder.embed_tokens.weight[tokenizer.convert_tokens_to_ids("<|endoftext|>") :] *= 0.3
    return write_artefact(
        tmp_path_factory.mktemp("onnx") / "export",
        cast_to_half(whisper.state_dict()),
        config=whisper.config,
        generation_config=whisper.generation_config,
        tokenizer=tokenizer,
        windows=build_windows([1, 3, 30]),
        record={"trained_steps": 3},
    )


@pytest.fixture(scope="module")
def converted(artefact_dir: Path) -> Path:
    return convert_to_onnx(artefact_dir, artefact_dir.parent / "onnx-fp32")


def features(num_frames: int, num_clips: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(num_frames).normal(0, 1, (num_clips, 80, num_frames)).astype("f4"))


@pytest.mark.parametrize(("num_frames", "num_clips"), [(100, 6), (160, 1), (300, 6), (3000, 2)])
def test_encoder_and_texts_are_those_of_torch_in_every_window(
    artefact_dir: Path, converted: Path, num_frames: int, num_clips: int
):
    loaded = load_onnx(converted, artefact_dir, num_threads=1)
    reference = load_artefact(artefact_dir, compute="fp32")
    heard = features(num_frames, num_clips)
    with torch.inference_mode():
        expected = encode(reference.model.model.encoder, heard).numpy()
    (hidden,) = loaded.encoder.run(None, {"input_features": heard.numpy()})
    assert np.abs(hidden - expected).max() < 2e-4 * np.abs(expected).max()
    ours = Decoder(reference.model, reference.tokenizer).decode(heard, SETTINGS)
    theirs = OnnxDecoder(loaded, artefact_dir=artefact_dir).decode(heard, SETTINGS)
    assert [d.tokens for d in theirs] == [d.tokens for d in ours]
    assert [d.text for d in theirs] == [d.text for d in ours]
    assert [d.detected_language for d in theirs] == [d.detected_language for d in ours]
    assert [d.language_probability for d in theirs] == pytest.approx([d.language_probability for d in ours], rel=1e-3)
    assert [d.avg_logprob for d in theirs] == pytest.approx([d.avg_logprob for d in ours], rel=1e-3)
    assert [d.is_cut for d in theirs] == [d.is_cut for d in ours]
    assert num_clips == 1 or len({d.text for d in ours}) > 1


def test_a_language_that_is_given_is_used_and_need_not_be_detected(artefact_dir: Path, converted: Path):
    reference = load_artefact(artefact_dir, compute="fp32")
    heard, wanted = features(100, 3), ["en", "ja", "ru"]
    decoder = OnnxDecoder(load_onnx(converted, num_threads=1))
    given = decoder.decode(heard, replace(SETTINGS, detect_language=False), languages=wanted)
    assert [d.language for d in given] == wanted
    assert all(np.isnan(d.language_probability) for d in given)
    expected = Decoder(reference.model, reference.tokenizer).decode(heard, SETTINGS, languages=wanted)
    assert [d.text for d in given] == [d.text for d in expected]


def test_half_precision_graphs_hold_half_the_weights_in_a_file_of_their_own_where_they_are_large(
    artefact_dir: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
):
    import onnx

    monkeypatch.setattr("infer.export.onnx.MAX_PROTOBUF_BYTES", 0)
    half = convert_to_onnx(artefact_dir, artefact_dir.parent / "onnx-fp16", dtype="fp16")
    assert {"encoder.onnx.data", "decoder.onnx.data"} <= {file.name for file in half.iterdir()}
    assert not list(converted.glob("*.data"))
    largest = {
        folder: max(onnx.load(str(folder / "decoder.onnx")).graph.initializer, key=lambda t: int(np.prod(t.dims)))
        for folder in (half, converted)
    }
    assert largest[half].data_type == onnx.TensorProto.FLOAT16
    assert largest[converted].data_type == onnx.TensorProto.FLOAT
    heard = features(100, 2)
    single = OnnxDecoder(load_onnx(converted, num_threads=1)).decode(heard, SETTINGS)
    found = OnnxDecoder(load_onnx(half, num_threads=1)).decode(heard, SETTINGS)
    assert [d.language_probability for d in found] == pytest.approx([d.language_probability for d in single], rel=0.05)
    assert json.loads((half / "mezzavoce.json").read_text())["stored"] == "fp16"


def test_int8_graphs_are_smaller_and_hear_nearly_the_same(artefact_dir: Path, converted: Path, tmp_path: Path):
    import onnx

    folder = tmp_path / "int8"
    shutil.copytree(converted, folder)
    quantise_graphs(converted, folder)
    kinds = {tensor.data_type for tensor in onnx.load(str(folder / "decoder.onnx")).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert (folder / "decoder.onnx").stat().st_size < 0.6 * (converted / "decoder.onnx").stat().st_size
    heard = features(100, 2)
    single = load_onnx(converted, num_threads=1).encoder.run(None, {"input_features": heard.numpy()})[0]
    found = load_onnx(folder, num_threads=1).encoder.run(None, {"input_features": heard.numpy()})[0]
    assert 0 < np.abs(found - single).max() < 0.2 * np.abs(single).max()


def test_the_folder_is_complete_and_says_what_it_was_made_of(artefact_dir: Path, converted: Path):
    record = json.loads((converted / "mezzavoce.json").read_text())
    source = json.loads((artefact_dir / "mezzavoce.json").read_text())
    assert record["made_of"]["sha256"] == source["files"]["model.safetensors"]
    assert (record["format"], record["stored"], record["windows_s"]) == ("onnx", "fp32", [1.0, 3.0, 30.0])
    assert {"encoder.onnx", "decoder.onnx", "decoder_with_past.onnx", "tokenizer.json"} <= record["files"].keys()


def test_settings_that_would_search_otherwise_are_refused(converted: Path):
    decoder = OnnxDecoder(load_onnx(converted, num_threads=1))
    for changed in ({"num_beams": 5}, {"timestamps": True}, {"no_speech_threshold": 0.6}, {"max_repetitions": 3}):
        with pytest.raises(ValueError, match=rf"decoding\.{next(iter(changed))}.*decoding=greedy"):
            decoder.decode(features(100, 1), replace(SETTINGS, **changed))
    transcriber = Transcriber(decoder.artefact, replace(SETTINGS, word_times=True), decoder=decoder)
    with pytest.raises(ValueError, match=r"word_times=true is not offered under ONNX Runtime; torch and CTranslate2"):
        transcriber.transcribe([np.zeros(16_000, np.float32)])


def test_a_provider_that_is_not_there_is_not_replaced_in_silence(converted: Path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(RuntimeError, match=r"provider=cuda.*CPUExecutionProvider"):
        load_onnx(converted, provider="cuda")


def test_what_cannot_be_converted_says_why_and_leaves_nothing(artefact_dir: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="fp16, fp32"):
        convert_to_onnx(artefact_dir, tmp_path / "out", dtype="float16")
    with pytest.raises(ValueError, match="int8=true needs dtype=fp32"):
        convert_to_onnx(artefact_dir, tmp_path / "out", dtype="fp16", int8=True)
    copy = shutil.copytree(artefact_dir, tmp_path / "export")
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        convert_to_onnx(copy, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"export"}
