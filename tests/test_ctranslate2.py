"""An artefact under CTranslate2 says what it says in torch, in any window, from the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infer.artefact import load_artefact
from infer.decoding import Decoder, DecodeSettings
from infer.encoder import encode
from infer.export.ctranslate2 import convert_to_ctranslate2

ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra `runtimes` is not installed")

from infer.backends.ctranslate2 import CTranslate2Decoder, load_ctranslate2  # noqa: E402

SETTINGS = DecodeSettings(max_new_tokens=24)


@pytest.fixture
def converted(artefact_dir: Path, tmp_path: Path) -> Path:
    return convert_to_ctranslate2(artefact_dir, tmp_path / "ct2")


def features(num_frames: int, num_clips: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(num_frames).normal(0, 1, (num_clips, 80, num_frames)).astype("f4"))


@pytest.mark.parametrize("num_frames", [100, 160, 300, 3000])
def test_encoder_and_texts_are_those_of_torch_in_every_window(artefact_dir: Path, converted: Path, num_frames: int):
    # at 160 frames there are as many positions as mel bins, and CTranslate2 would take hidden states for features
    loaded = load_ctranslate2(converted, artefact_dir, compute_type="float32", num_threads=1)
    reference = load_artefact(artefact_dir, compute="fp32")
    heard = features(num_frames, 2 if num_frames == 3000 else 6)
    with torch.inference_mode():
        expected = encode(reference.model.model.encoder, heard).numpy()
    hidden = loaded.runtime.encode(ctranslate2.StorageView.from_array(heard.numpy()))
    assert np.abs(np.array(hidden) - expected).max() < 2e-4 * np.abs(expected).max()
    ours = Decoder(reference.model, reference.tokenizer).decode(heard, SETTINGS)
    theirs = CTranslate2Decoder(loaded, artefact_dir=artefact_dir).decode(heard, SETTINGS)
    assert [d.text for d in theirs] == [d.text for d in ours]
    assert len({d.text for d in ours}) > 1
    assert [d.detected_language for d in theirs] == [d.detected_language for d in ours]
    assert [d.language_probability for d in theirs] == pytest.approx([d.language_probability for d in ours], rel=1e-3)
    assert [d.is_cut for d in theirs] == [d.is_cut for d in ours]


def test_a_language_that_is_given_is_used_and_need_not_be_detected(artefact_dir: Path, converted: Path):
    loaded = load_ctranslate2(converted, artefact_dir, compute_type="float32", num_threads=1)
    reference = load_artefact(artefact_dir, compute="fp32")
    heard, wanted = features(100, 3), ["en", "ja", "ru"]
    decoder = CTranslate2Decoder(loaded, artefact_dir=artefact_dir)
    given = decoder.decode(heard, replace(SETTINGS, detect_language=False), languages=wanted)
    assert [d.language for d in given] == wanted
    assert all(np.isnan(d.language_probability) for d in given)
    expected = Decoder(reference.model, reference.tokenizer).decode(heard, SETTINGS, languages=wanted)
    assert [d.text for d in given] == [d.text for d in expected]


def test_the_record_says_what_it_was_made_of(artefact_dir: Path, converted: Path):
    record = json.loads((converted / "mezzavoce.json").read_text())
    source = json.loads((artefact_dir / "mezzavoce.json").read_text())
    assert record["made_of"]["sha256"] == source["files"]["model.safetensors"]
    assert (record["format"], record["stored"], record["windows_s"]) == ("ctranslate2", "float16", [1.0, 3.0, 30.0])
    assert {"model.bin", "tokenizer.json", "preprocessor_config.json"} <= record["files"].keys()


def test_settings_that_would_search_otherwise_are_refused(artefact_dir: Path, converted: Path):
    loaded = load_ctranslate2(converted, artefact_dir, compute_type="float32", num_threads=1)
    decoder = CTranslate2Decoder(loaded, artefact_dir=artefact_dir)
    for changed in (
        {"timestamps": True},
        {"temperature": (0.0, 0.4), "compression_ratio_threshold": 2.4},
        {"no_speech_threshold": 0.6},
        {"max_repetitions": 3},
    ):
        with pytest.raises(ValueError, match=rf"decoding\.{next(iter(changed))}.*decoding=greedy"):
            decoder.decode(features(100, 1), replace(SETTINGS, **changed))


def test_what_cannot_be_converted_says_why_and_leaves_nothing(artefact_dir: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="float16, float32, int8"):
        convert_to_ctranslate2(artefact_dir, tmp_path / "out", quantization="fp16")
    (artefact_dir / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        convert_to_ctranslate2(artefact_dir, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"export"}
