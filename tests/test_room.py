"""A room convolves, keeps the clip's place and power, and a made one decays as stated."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tone

from data.audio import SAMPLING_RATE
from data.room import add_room, draw_room, make_room
from data.sounds import Piece, Sounds


def _sounds(response: np.ndarray) -> Sounds:
    return Sounds([Piece(None, 0.0, len(response) / SAMPLING_RATE)], [np.round(response * 32767).astype(np.int16)])


@pytest.mark.parametrize("num_samples", [1600, 12_345])
@pytest.mark.parametrize("delay", [0, 37, 400])
def test_it_is_a_convolution_aligned_at_the_direct_sound(num_samples: int, delay: int):
    waveform = 0.2 * tone(1.0)[:num_samples]
    room = make_room(0.3, 3.0, np.random.default_rng(0))
    response = np.concatenate([np.random.default_rng(1).normal(0, 0.01, delay), room]).astype(np.float32)
    heard = add_room(waveform, response)
    whole = np.convolve(waveform.astype(np.float64), response.astype(np.float64))
    expected = whole[delay : delay + num_samples]
    expected *= np.sqrt(np.square(waveform).mean() / np.square(expected).mean())
    assert heard.dtype == np.float32
    np.testing.assert_allclose(heard, expected, atol=2e-6)


def test_a_room_without_reverberation_is_no_room():
    waveform = tone(0.4)
    for response in (np.float32([1.0]), np.float32([0.0, 0.0, 0.3, 0.0]), np.float32([0.0, -2.0])):
        sign = np.sign(response[np.abs(response).argmax()])
        np.testing.assert_allclose(add_room(waveform, response), sign * waveform, atol=1e-6)


def test_power_and_full_scale_are_kept():
    waveform = 0.2 * tone(0.7)
    for seed in range(20):
        heard = add_room(waveform, make_room(0.5, 0.0, np.random.default_rng(seed)))
        assert np.square(heard).mean() == pytest.approx(np.square(waveform).mean(), rel=1e-3)
    loud = np.sign(waveform).astype(np.float32)
    assert np.abs(add_room(loud, make_room(0.5, 0.0, np.random.default_rng(0)))).max() <= 1.0


def test_silence_stays_and_so_does_a_clip_under_a_silent_response():
    silence, waveform = np.zeros(1600, np.float32), tone(0.1)
    assert add_room(silence, make_room(0.2, 0.0, np.random.default_rng(0))) is silence
    assert add_room(waveform, np.zeros(100, np.float32)) is waveform


@pytest.mark.parametrize("rt60_s", [0.2, 0.5, 1.0])
def test_a_made_room_decays_by_60_db_in_its_time(rt60_s: float):
    """Measured as ISO 3382 has it: backward integration, from -5 to -25 dB, extended to 60 dB."""
    found = []
    for seed in range(10):
        reverberation = make_room(rt60_s, 6.0, np.random.default_rng(seed)).astype(np.float64)[1:]
        decay_db = 10 * np.log10(np.cumsum(np.square(reverberation)[::-1])[::-1])
        decay_db -= decay_db[0]
        start, end = np.searchsorted(-decay_db, [5.0, 25.0])
        found.append(60 / 20 * (end - start) / SAMPLING_RATE)
    assert np.mean(found) == pytest.approx(rt60_s, rel=0.05)


@pytest.mark.parametrize("ratio_db", [0.0, 6.0, 12.0])
def test_a_made_room_has_its_direct_sound_first_and_strongest(ratio_db: float):
    response = make_room(0.05, ratio_db, np.random.default_rng(0))
    assert response.dtype == np.float32
    assert np.abs(response).argmax() == 0
    assert -10 * np.log10(np.square(response[1:].astype(np.float64)).sum()) == pytest.approx(ratio_db, abs=0.01)


def test_a_drawn_room_is_the_recorded_one_or_within_its_times():
    recorded = np.float32([0.0, 1.0, -0.5, 0.25])
    np.testing.assert_allclose(draw_room(np.random.default_rng(0), (0.2, 0.8), _sounds(recorded)), recorded, atol=2e-5)
    lengths = [len(draw_room(np.random.default_rng(seed), (0.2, 0.8))) / SAMPLING_RATE for seed in range(100)]
    assert 0.2 <= min(lengths) < 0.25
    assert 0.75 < max(lengths) <= 0.8
