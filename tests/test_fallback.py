"""A text that loops, that the model doubts or that nobody said is found out, as openai/whisper finds it out."""

from __future__ import annotations

import dataclasses
import itertools
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from infer.confidence import (
    compression_ratio,
    is_silence,
    needs_fallback,
    tail_repetitions,
    without_tail_repetitions,
)
from infer.decoding import Decoded, Decoder, DecodeSettings
from infer.encoder import WindowedWhisper

LADDER = (0.0, 0.4, 0.8)
SETTINGS = DecodeSettings(language="en", max_new_tokens=20)


@pytest.fixture
def decoder(lively: WindowedWhisper, tokenizer: PreTrainedTokenizerBase) -> Decoder:
    return Decoder(lively, tokenizer)


def _features(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    colour = 3 * torch.randn(batch, 80, 1, generator=generator)
    return colour + torch.randn(batch, 80, 100, generator=generator)


def _openai(
    ratio: float, avg_logprob: float, no_speech_prob: float, limits: tuple[float | None, ...]
) -> tuple[bool, bool]:
    """What `transcribe.py` of openai/whisper does with one result: (decode again, leave out)."""
    compression_ratio_threshold, logprob_threshold, no_speech_threshold = limits
    again = False
    if compression_ratio_threshold is not None and ratio > compression_ratio_threshold:
        again = True
    if logprob_threshold is not None and avg_logprob < logprob_threshold:
        again = True
    if (
        no_speech_threshold is not None
        and no_speech_prob > no_speech_threshold
        and logprob_threshold is not None
        and avg_logprob < logprob_threshold
    ):
        again = False
    skip = False
    if no_speech_threshold is not None:
        skip = no_speech_prob > no_speech_threshold
        if logprob_threshold is not None and avg_logprob > logprob_threshold:
            skip = False
    return again, skip


@pytest.mark.parametrize("limits", list(itertools.product([None, 2.4], [None, -1.0], [None, 0.6])))
def test_the_guards_are_those_of_openai(limits: tuple[float | None, ...]) -> None:
    settings = dataclasses.replace(
        SETTINGS,
        compression_ratio_threshold=limits[0],
        logprob_threshold=limits[1],
        no_speech_threshold=limits[2],
    )
    for ratio, avg_logprob, no_speech_prob in itertools.product([1.0, 2.4, 3.0], [-2.0, -1.0, -0.1], [0.0, 0.6, 0.9]):
        again = needs_fallback(
            settings, ratio=ratio, avg_logprob=avg_logprob, no_speech_prob=no_speech_prob, repetitions=9
        )
        skip = is_silence(settings, no_speech_prob=no_speech_prob, avg_logprob=avg_logprob)
        assert (again, skip) == _openai(ratio, avg_logprob, no_speech_prob, limits)


def test_the_compression_ratio_is_that_of_zlib() -> None:
    for text in ("", "one", "no no no no no no no no no no no no no no no no no no no no no", "Ünïcode 你好 " * 9):
        data = text.encode()
        assert compression_ratio(text) == len(data) / len(zlib.compress(data))
    assert compression_ratio("thank you. " * 30) > 2.4 > compression_ratio("blue roses grow near the river")


def _repetitions_by_hand(ids: list[int]) -> int:
    """The most tokens that a phrase covers at the end, said at least twice."""
    best = 0
    for period in range(1, len(ids) // 2 + 1):
        count = 1
        while ids[len(ids) - (count + 1) * period : len(ids) - count * period] == ids[-period:]:
            count += 1
        best = max(best, count * period if count > 1 else 0)
    return best


def test_loops_are_found_at_the_end_only() -> None:
    assert tail_repetitions([]) == (0, 0)
    assert tail_repetitions([1, 2, 3]) == (1, 1)
    assert tail_repetitions([7, 1, 2, 1, 2, 1, 2]) == (2, 3)
    assert tail_repetitions([5, 5, 5, 5]) == (1, 4)
    assert tail_repetitions([5, 5, 5, 5, 1]) == (1, 1)
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(0, 2, rng.integers(0, 14)).tolist()
        period, count = tail_repetitions(ids)
        assert (period * count if count > 1 else 0) == _repetitions_by_hand(ids)


def test_a_loop_is_written_once_where_it_is_too_long() -> None:
    assert without_tail_repetitions([7, 1, 2, 1, 2, 1, 2], 2) == [7, 1, 2]
    assert without_tail_repetitions([7, 1, 2, 1, 2, 1, 2], 3) == [7, 1, 2, 1, 2, 1, 2]
    assert without_tail_repetitions([], 1) == []


def test_only_windows_that_fail_are_decoded_again(decoder: Decoder) -> None:
    """The threshold lies between what the clips reach: some pass at once, some go up the ladder."""
    features = _features(8)
    greedy = decoder.decode(features, SETTINGS)
    threshold = sorted(decoded.avg_logprob for decoded in greedy)[4]
    settings = dataclasses.replace(SETTINGS, temperature=LADDER, logprob_threshold=threshold)
    found = decoder.decode(features, settings)
    for before, after in zip(greedy, found, strict=True):
        if before.avg_logprob >= threshold:
            assert (after.tokens, after.temperature) == (before.tokens, 0.0)
        else:
            assert after.temperature > 0
            assert after.temperature == LADDER[-1] or after.avg_logprob >= threshold
    assert 0 < sum(decoded.temperature == 0.0 for decoded in found) < 8
    alone = [decoder.decode(features[i : i + 1], settings)[0] for i in range(8)]
    assert [(d.tokens, d.temperature) for d in alone] == [(d.tokens, d.temperature) for d in found]


def test_the_ladder_ends_at_its_top(decoder: Decoder) -> None:
    settings = dataclasses.replace(SETTINGS, temperature=LADDER, compression_ratio_threshold=0.01)
    found = decoder.decode(_features(3), settings)
    assert {decoded.temperature for decoded in found} == {LADDER[-1]}
    top = decoder.decode(_features(3), dataclasses.replace(SETTINGS, temperature=(LADDER[-1],), seed=0))
    assert {decoded.temperature for decoded in top} == {LADDER[-1]}


def test_beams_fall_back_to_draws(decoder: Decoder) -> None:
    settings = dataclasses.replace(SETTINGS, num_beams=3, temperature=(0.0, 0.5), compression_ratio_threshold=0.01)
    assert {decoded.temperature for decoded in decoder.decode(_features(2), settings)} == {0.5}


def test_silence_is_left_out(decoder: Decoder) -> None:
    features = _features(4)
    usual = decoder.decode(features, SETTINGS)
    sure = min(decoded.avg_logprob for decoded in usual) - 1.0
    guarded = dataclasses.replace(SETTINGS, no_speech_threshold=0.0)
    for decoded in decoder.decode(features, guarded):
        assert (decoded.text, decoded.tokens, decoded.segments, decoded.no_speech) == ("", (), (), True)
    kept = decoder.decode(features, dataclasses.replace(guarded, logprob_threshold=sure))
    assert [decoded.text for decoded in kept] == [decoded.text for decoded in usual]


def _looping(decoder: Decoder, said: int) -> None:
    """Make one letter the only thing that can be said."""
    vocabulary = decoder.model.config.vocab_size
    decoder.model.generation_config.suppress_tokens = [i for i in range(vocabulary) if i != said]


def test_a_loop_goes_up_the_ladder_and_is_cut_at_its_end(decoder: Decoder) -> None:
    _looping(decoder, 20)
    free: list[Decoded] = decoder.decode(_features(2), SETTINGS)
    assert all(decoded.tokens == (20,) * 20 for decoded in free)
    settings = dataclasses.replace(SETTINGS, temperature=(0.0, 1.0), max_repetitions=3)
    guarded = decoder.decode(_features(2), settings)
    assert all((decoded.tokens, decoded.temperature) == ((20,), 1.0) for decoded in guarded)
    assert all(len(decoded.text) == 1 for decoded in guarded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": ()}, r"decoding\.temperature=\[\] must rise"),
        ({"temperature": (0.2, 0.1)}, "must rise"),
        ({"temperature": (-0.1,)}, "must rise"),
        ({"temperature": (0.0, 0.2)}, "needs a threshold"),
        ({"compression_ratio_threshold": 0.0}, "must be above 0, as 2.4"),
        ({"logprob_threshold": 1.0}, "must be 0 or less, as -1.0"),
        ({"no_speech_threshold": 1.5}, "must lie in 0 to 1, as 0.6"),
        ({"max_repetitions": 0}, "must be 1 or more, or null"),
        ({"max_new_tokens": 0}, "must be 1 or more, or null"),
        ({"long_form": "whole"}, "must be one of chunked, sequential"),
        ({"long_form": "sequential"}, r"give decoding\.timestamps=true as well"),
        ({"condition_on_previous_text": True}, r"needs decoding\.long_form=sequential"),
    ],
)
def test_settings_that_cannot_work_say_what_to_type(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeSettings(**options)
