"""A model that hears wrong does not start to serve; one that computes otherwise is held against torch in FP32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infer.decoding import DecodeSettings
from serve.runtime import load_runtime
from serve.warming import Load, prepare
from tests.conftest import PROJECT

BASE = PROJECT / "data" / "demo" / "base"
CORPUS = PROJECT / "data" / "demo" / "corpus" / "home"


class Changed:
    """A decoder that tells something else than what it heard, for windows with sound."""

    def __init__(self, decoder, change):
        self._decoder, self._change, self.num_calls = decoder, change, 0

    def decode(self, input_features, settings, **options):
        self.num_calls += 1
        found = self._decoder.decode(input_features, settings, **options)
        return [replace(decoded, text=self._change(decoded.text, self.num_calls)) for decoded in found]


@pytest.fixture(scope="module")
def clip():
    row = json.loads((CORPUS / "test.jsonl").read_text(encoding="utf-8").splitlines()[1])
    return CORPUS / row["audio"], row["text"]


@pytest.fixture
def load(clip, tmp_path):
    return Load(
        path=str(BASE),
        runtime="torch",
        compute="fp32",
        num_threads=1,
        cache_dir=str(tmp_path),
        profiles={"greedy": DecodeSettings(), "beam5": DecodeSettings(num_beams=5)},
        max_batch=4,
        max_batch_audio_s=60.0,
        self_test=str(clip[0]),
        self_test_text="",
        tests=True,
    )


def _runtime(load, compute="fp32"):
    return load_runtime(Path(load.path), "torch", compute=compute, cache_dir=Path(load.cache_dir), device="cpu")


def test_a_sound_model_says_what_it_can(load, clip):
    facts = prepare(_runtime(load), replace(load, self_test_text=clip[1]))
    assert facts.profiles == ("greedy", "beam5") and {"en", "zh", "ar"} <= set(facts.languages)
    assert facts.edges_s[-1] == 30.0 and facts.description["compute"] == "float32"
    assert not facts.has_timestamps  # the demo learnt none
    assert "characters differ from the text given" in facts.self_test
    assert prepare(_runtime(load), replace(load, tests=False)).self_test == "not repeated"


def test_half_arithmetic_is_held_against_torch_in_fp32(load):
    facts = prepare(_runtime(load, "fp16"), replace(load, compute="fp16"))
    assert facts.description["compute"] == "float16"
    assert facts.self_test.endswith("characters differ from torch in FP32")
    assert facts.self_test.startswith("0 of ")


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (lambda text, call: "", "", "nothing was heard"),
        (lambda text, call: "", "open the window", "where the text given is"),
        (lambda text, call: text[::-1], "open the window", "self-test failed"),
        (lambda text, call: f"{text} {call}", "", "the same clip gave"),
    ],
    ids=["empty", "empty-known", "garbled", "unsteady"],
)
def test_a_model_that_hears_wrong_does_not_start(load, change, given, message):
    runtime = _runtime(load)
    with pytest.raises(RuntimeError, match=message):
        prepare(replace(runtime, decoder=Changed(runtime.decoder, change)), replace(load, self_test_text=given))


def test_silence_of_another_arithmetic_is_noticed_without_a_known_text(load):
    runtime = _runtime(load, "bf16")
    assert runtime.artefact.model.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match=r"heard '' where torch in FP32 is"):
        prepare(replace(runtime, decoder=Changed(runtime.decoder, lambda text, call: "")), load)


def test_what_a_runtime_does_not_have_is_not_offered(load):
    runtime = _runtime(load)

    class Plain(Changed):
        def decode(self, input_features, settings, **options):
            if settings.num_beams > 1 or settings.timestamps:
                raise ValueError("not offered")
            return super().decode(input_features, settings, **options)

    facts = prepare(replace(runtime, decoder=Plain(runtime.decoder, lambda text, call: text)), load)
    assert facts.profiles == ("greedy",) and not facts.has_timestamps


def test_the_same_model_under_ctranslate2_passes(load):
    pytest.importorskip("ctranslate2", reason="the extra `runtimes` is not installed")
    other = replace(load, runtime="ctranslate2", profiles={"greedy": DecodeSettings()})
    runtime = load_runtime(
        Path(load.path), "ctranslate2", compute="auto", cache_dir=Path(load.cache_dir), num_threads=1, device="cpu"
    )
    facts = prepare(runtime, other)
    assert facts.description["runtime"] == "ctranslate2" and not facts.has_prompts and not facts.mixes_lengths
    assert facts.self_test.startswith("0 of ")
    again = load_runtime(Path(load.path), "ctranslate2", compute="fp32", cache_dir=Path(load.cache_dir), device="cpu")
    assert again.artefact.path == runtime.artefact.path  # converted once


def test_an_unknown_runtime_names_those_that_are(load):
    with pytest.raises(ValueError, match="must be one of torch, ctranslate2, onnx"):
        load_runtime(BASE, "tensorrt", compute="auto", cache_dir=Path(load.cache_dir))
