"""A long recording is cut where it is quiet, into pieces that fit a window and join to the whole, sample for sample."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import tone

from data.audio import SAMPLING_RATE, load_waveform
from infer.longform import cut_at_quiet

LONGEST = 30 * SAMPLING_RATE


def _assert_whole(waveform: np.ndarray, *, longest: int = LONGEST) -> list[tuple[float, np.ndarray]]:
    pieces = cut_at_quiet(waveform, max_duration_s=longest / SAMPLING_RATE)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), waveform)
    position = 0
    for start_s, piece in pieces:
        assert start_s == position / SAMPLING_RATE
        assert 0 < len(piece) <= longest
        position += len(piece)
    return pieces


@pytest.mark.parametrize("num_samples", [1, 1600, LONGEST - 1, LONGEST])
def test_what_fits_is_not_cut(num_samples: int) -> None:
    (piece,) = _assert_whole(tone(num_samples / SAMPLING_RATE))
    assert piece[0] == 0.0


@pytest.mark.parametrize("num_samples", [LONGEST + 1, LONGEST + 160, 2 * LONGEST, 70 * SAMPLING_RATE + 7, 3 * LONGEST])
def test_pieces_join_to_the_whole(num_samples: int) -> None:
    rng = np.random.default_rng(num_samples)
    pieces = _assert_whole(rng.normal(0, 0.1, num_samples).astype(np.float32))
    # Every cut falls into the last 10 s of a window, so no more pieces than windows of 20 s.
    assert all(len(piece) >= 20 * SAMPLING_RATE for _, piece in pieces[:-1])
    assert len(pieces) <= -(-num_samples // (20 * SAMPLING_RATE))


def test_cuts_fall_into_the_pauses() -> None:
    """Hand-made: noise with pauses of 0.2 s at 24.0 s and 50.0 s, and a quieter one too early to be of use."""
    waveform = np.random.default_rng(0).normal(0, 0.1, 70 * SAMPLING_RATE).astype(np.float32)
    for pause_s, level in ((10.0, 0.0), (24.0, 0.01), (50.0, 0.01)):
        start = round(pause_s * SAMPLING_RATE)
        waveform[start : start + SAMPLING_RATE // 5] *= level
    pieces = _assert_whole(waveform)
    assert [start_s for start_s, _ in pieces[:3]] == [0.0, pytest.approx(24.1, abs=0.1), pytest.approx(50.1, abs=0.1)]
    assert len(pieces) == 3


def test_silence_and_constant_sound_are_cut_too() -> None:
    for waveform in (np.zeros(65 * SAMPLING_RATE, np.float32), np.full(65 * SAMPLING_RATE, 0.5, np.float32)):
        assert len(_assert_whole(waveform)) >= 3


@pytest.mark.parametrize("max_duration_s", [0.2, 1.0, 5.0, 12.0])
def test_shorter_windows_work_as_well(max_duration_s: float) -> None:
    pieces = _assert_whole(tone(33.3), longest=int(max_duration_s * SAMPLING_RATE))
    assert len(pieces) >= 33.3 / max_duration_s


def test_short_pieces_are_cut_in_the_pause_between_sentences() -> None:
    """Hand-made: 2 s of noise and 0.3 s of near silence in turn; pieces of at most 4 s hold one sentence each."""
    rng = np.random.default_rng(0)
    sentence = rng.normal(0, 0.1, 2 * SAMPLING_RATE)
    pause = rng.normal(0, 1e-4, 3 * SAMPLING_RATE // 10)
    waveform = np.concatenate([sentence, pause] * 8).astype(np.float32)
    starts_s = [start_s for start_s, _ in _assert_whole(waveform, longest=4 * SAMPLING_RATE)]
    assert len(starts_s) >= 8
    assert all(2.0 <= start_s % 2.3 <= 2.3 for start_s in starts_s[1:])


def test_real_speech_is_cut_where_it_is_quieter_than_usual(speech) -> None:
    row = json.loads((speech / "ljspeech_en" / "longform.jsonl").read_text(encoding="utf-8").splitlines()[0])
    waveform = load_waveform(speech / "ljspeech_en" / row["audio"], max_duration_s=None)
    pieces = _assert_whole(waveform)
    assert len(pieces) >= 3
    half = round(0.025 * SAMPLING_RATE)
    usual = np.sqrt(np.mean(waveform**2))
    for start_s, _ in pieces[1:]:
        middle = round(start_s * SAMPLING_RATE)
        assert np.sqrt(np.mean(waveform[middle - half : middle + half] ** 2)) < 0.1 * usual
