"""What a caller asks for is refused where the model's runtime does not have it, with the names of those that do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infer.decoding import DecodeSettings
from serve.errors import ServiceError
from serve.options import Options, resolve, verify_profiles
from serve.warming import Facts

FACTS = Facts(
    description={"runtime": "onnx"},
    edges_s=(30.0,),
    languages=("en",),
    profiles=("greedy",),
    has_timestamps=False,
    has_words=False,
    has_prompts=False,
    mixes_lengths=False,
    self_test="",
)
PROFILES = {"greedy": DecodeSettings()}


def test_times_of_words_are_refused_by_a_runtime_that_finds_none():
    with pytest.raises(ServiceError, match="runtime onnx finds no times of words; torch and ctranslate2 do") as caught:
        resolve(Options(words=True), FACTS, PROFILES)
    assert (caught.value.status, caught.value.param) == (400, "timestamp_granularities")
    assert not resolve(Options(), FACTS, PROFILES).word_times


def test_times_of_words_need_no_model_that_predicts_times():
    settings = resolve(Options(words=True), replace(FACTS, has_words=True), PROFILES)
    assert (settings.word_times, settings.timestamps) == (True, False)


def test_a_profile_does_not_ask_for_times_that_no_caller_asked_for():
    with pytest.raises(ValueError, match=r"decoding\.word_times=false"):
        verify_profiles({"greedy": DecodeSettings(word_times=True)})
