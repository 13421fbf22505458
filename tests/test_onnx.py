"""An artefact under ONNX Runtime says what it says in torch, in any window, whichever type its graphs store."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infer.artefact import load_artefact
from infer.decoding import Decoder, DecodeSettings
from infer.encoder import encode

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `runtimes` is not installed")
pytest.importorskip("onnxscript", reason="the extra `runtimes` is not installed")

import infer.export.onnx  # noqa: E402
from infer.backends.onnx import OnnxArtefact, OnnxDecoder, load_onnx  # noqa: E402
from infer.export.onnx import convert_to_onnx  # noqa: E402
from infer.export.onnx_files import WEIGHTS_FILE  # noqa: E402
from infer.export.onnx_int8 import quantise_rows  # noqa: E402
from infer.transcriber import Transcriber  # noqa: E402

SETTINGS = DecodeSettings(max_new_tokens=24)


@pytest.fixture(scope="module")
def artefact_dir(lay_artefact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests here, which only read it: the export takes seconds."""
    return lay_artefact(tmp_path_factory.mktemp("onnx") / "export")


@pytest.fixture(scope="module")
def traced(artefact_dir: Path) -> Path:
    """The FP32 graphs as they are traced, which takes seconds; what is made of them are copies."""
    folder = artefact_dir.parent / "traced"
    folder.mkdir()
    assert not infer.export.onnx._export_graphs(load_artefact(artefact_dir, compute="fp32").model, folder)
    return folder


def convert_traced(traced: Path, artefact_dir: Path, target: Path, **options: bool) -> Path:
    """Convert as `convert_to_onnx` does, with graphs that are traced."""

    def copy(model: torch.nn.Module, folder: Path) -> bool:
        shutil.copytree(traced, folder, dirs_exist_ok=True)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer.export.onnx, "_export_graphs", copy)
        return convert_to_onnx(artefact_dir, target, **options)


@pytest.fixture(scope="module")
def converted(artefact_dir: Path, traced: Path) -> Path:
    return convert_traced(traced, artefact_dir, artefact_dir.parent / "onnx-fp32")


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


def stored_tensors(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every initializer of each graph, by name."""
    import onnx

    graphs = {file.name: onnx.load(str(file)).graph for file in folder.glob("*.onnx")}
    return {
        name: {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for name, graph in graphs.items()
    }


def test_half_precision_graphs_hold_half_the_weights_when_traced_into_files_beside_them(
    artefact_dir: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("infer.export.onnx.MAX_PROTOBUF_BYTES", 0)  # as the weights of large-v3 are
    half = convert_to_onnx(artefact_dir, tmp_path / "onnx-fp16", dtype="fp16")
    largest = {
        folder: max(stored_tensors(folder)["decoder.onnx"].values(), key=lambda tensor: tensor.size).dtype
        for folder in (half, converted)
    }
    assert largest == {half: np.float16, converted: np.float32}
    heard = features(100, 2)
    single = OnnxDecoder(load_onnx(converted, num_threads=1)).decode(heard, SETTINGS)
    found = OnnxDecoder(load_onnx(half, num_threads=1)).decode(heard, SETTINGS)
    assert [d.language_probability for d in found] == pytest.approx([d.language_probability for d in single], rel=0.05)
    assert json.loads((half / "mezzavoce.json").read_text())["stored"] == "fp16"


def test_the_weights_of_both_decoders_are_stored_once(artefact_dir: Path, converted: Path):
    """So the file is no larger than the model, plus the gaps that align it and constants of the trace."""
    model = load_artefact(artefact_dir, compute="fp32").model
    model_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    tensors = stored_tensors(converted)
    large = [t for graph in tensors.values() for t in graph.values() if t.nbytes >= 1024]
    assert sum(t.nbytes for t in large) > 1.2 * model_bytes  # the graphs name more than the model has
    gaps = 4096 * len({t.tobytes() for t in large})
    assert 0.9 * model_bytes < (converted / WEIGHTS_FILE).stat().st_size < model_bytes + gaps
    assert WEIGHTS_FILE in json.loads((converted / "mezzavoce.json").read_text())["files"]


def test_rows_in_8_bits_are_off_by_half_a_step_at_most():
    values = np.random.default_rng(0).normal(0, 1, (7, 3, 50)).astype("f4")
    values[4] = 0
    found, scales = quantise_rows(values)
    assert found.dtype == np.int8 and scales.shape == (7,)
    error = np.abs(found * scales[:, None, None] - values)
    step = np.abs(values).max(axis=(1, 2), keepdims=True) / 127
    assert (error <= 0.5001 * step).all() and (found[4] == 0).all()


def test_int8_graphs_hold_no_matrix_in_floats_and_hear_nearly_the_same(
    artefact_dir: Path, converted: Path, traced: Path, tmp_path: Path
):
    folder = convert_traced(traced, artefact_dir, tmp_path / "int8", int8=True)
    floats = {
        f"{graph}: {name}"
        for graph, tensors in stored_tensors(folder).items()
        for name, tensor in tensors.items()
        if tensor.dtype == np.float32 and tensor.ndim > 1 and tensor.size >= 1024
    }
    assert floats == set()
    # A model this narrow has a scale for every 16 weights, and vectors; the wider, the nearer to a quarter.
    assert (folder / WEIGHTS_FILE).stat().st_size < 0.5 * (converted / WEIGHTS_FILE).stat().st_size
    heard = features(100, 2)
    int8, single = load_onnx(folder, num_threads=1), load_onnx(converted, num_threads=1)
    (expected,) = single.encoder.run(None, {"input_features": heard.numpy()})
    (found,) = int8.encoder.run(None, {"input_features": heard.numpy()})
    assert 0 < np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    feed = {"input_ids": np.array([[5, 9, 2], [7, 7, 1]]), "encoder_hidden_states": expected}
    expected, *past = single.decoder.run(None, feed)
    found = int8.decoder.run(None, feed)[0]
    assert 0 < np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    given = dict(zip([f"past.{name[8:]}" for name in _present(single)], past, strict=True))
    feed = {
        "input_ids": np.array([[3], [8]]),
        **{i.name: given[i.name] for i in single.decoder_with_past.get_inputs() if i.name in given},
    }
    expected = single.decoder_with_past.run(["logits"], feed)[0]
    found = int8.decoder_with_past.run(["logits"], feed)[0]
    assert 0 < np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


def _present(loaded: OnnxArtefact) -> list[str]:
    return [output.name for output in loaded.decoder.get_outputs()][1:]


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
