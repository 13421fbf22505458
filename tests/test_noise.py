"""Noise has the colour, level and place that were drawn; a clip and its noise keep their ratio whatever the peak."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import tone

from data.audio import SAMPLING_RATE
from data.level import compute_active_power
from data.noise import SLOPES, add_noise, draw_noise, fast_length, make_noise
from data.sounds import Piece, Sounds


def _sounds(*recordings: np.ndarray) -> Sounds:
    kept = [np.round(recording * 32767).astype(np.int16) for recording in recordings]
    return Sounds([Piece(None, 0.0, len(recording) / SAMPLING_RATE) for recording in recordings], kept)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0, 25.0])
@pytest.mark.parametrize("pause_s", [0.0, 0.2, 1.0])
def test_the_ratio_is_that_of_active_speech_to_noise(snr_db: float, pause_s: float):
    waveform = np.concatenate([0.2 * tone(1.0), np.zeros(round(pause_s * SAMPLING_RATE), np.float32)])
    noise = make_noise(len(waveform), -0.5, np.random.default_rng(1)) * np.float32(0.01)
    added = add_noise(waveform, noise, snr_db=snr_db).astype(np.float64) - waveform
    found_db = 10 * math.log10(compute_active_power(waveform) / np.square(added).mean())
    assert found_db == pytest.approx(snr_db, abs=0.1)
    active = waveform[: SAMPLING_RATE + SAMPLING_RATE // 5]  # of the pause only what belongs to the speech
    speech_power = np.square(active.astype(np.float64)).mean()
    assert 10 * math.log10(speech_power / np.square(added).mean()) == pytest.approx(snr_db, abs=0.1)


def test_where_the_sum_would_pass_full_scale_both_get_quieter():
    waveform = (tone(0.5) / np.abs(tone(0.5)).max()).astype(np.float32)
    noise = make_noise(len(waveform), 0.0, np.random.default_rng(0))
    mixed = add_noise(waveform, noise, snr_db=0.0)
    assert np.abs(mixed).max() == pytest.approx(1.0, abs=1e-6)
    basis = np.stack([waveform, noise], axis=1).astype(np.float64)
    (a, b), residual, *_ = np.linalg.lstsq(basis, mixed.astype(np.float64), rcond=None)
    assert residual[0] < 1e-6
    found_db = 10 * math.log10(a**2 * compute_active_power(waveform) / (b**2 * np.square(basis[:, 1]).mean()))
    assert found_db == pytest.approx(0.0, abs=0.1)


def test_silence_on_either_side_changes_nothing():
    silence, sound = np.zeros(1600, np.float32), tone(0.1)
    assert add_noise(silence, sound, snr_db=5.0) is silence
    assert add_noise(sound, silence, snr_db=5.0) is sound


@pytest.mark.parametrize("slope", SLOPES)
def test_made_noise_has_its_colour_and_power_1(slope: float):
    noise = make_noise(20 * SAMPLING_RATE, slope, np.random.default_rng(0))
    assert noise.dtype == np.float32
    assert np.square(noise).mean() == pytest.approx(1.0, rel=1e-4)
    power = np.square(np.abs(np.fft.rfft(noise)))
    hz = np.fft.rfftfreq(len(noise), 1 / SAMPLING_RATE)
    bands = [(100 * 2**k, 200 * 2**k) for k in range(6)]
    levels_db = [10 * math.log10(power[(hz >= low) & (hz < high)].mean()) for low, high in bands]
    assert np.diff(levels_db) == pytest.approx(20 * slope * math.log10(2), abs=0.5)  # dB an octave
    assert abs(noise.mean()) < 0.05


def test_every_colour_is_drawn():
    shares = []
    for seed in range(60):
        power = np.square(np.abs(np.fft.rfft(draw_noise(8000, np.random.default_rng(seed)))))
        shares.append(power[: len(power) // 8].sum() / power.sum())  # below 1 kHz
    counts = np.histogram(shares, bins=[0.0, 0.3, 0.9, 1.0])[0]  # white about 0.125, pink 0.6, brown 0.99
    assert (counts >= 10).all()


def test_a_recording_that_is_long_enough_is_cut_without_a_seam():
    ramp = np.linspace(-1.0, 1.0, 4000, dtype=np.float32)
    starts = []
    for seed in range(200):
        noise = draw_noise(1000, np.random.default_rng(seed), _sounds(ramp))
        assert len(noise) == 1000
        np.testing.assert_allclose(np.diff(noise), np.diff(ramp[:2])[0], atol=5e-5)
        starts.append(round((float(noise[0]) + 1) / 2 * 3999))
    assert min(starts) < 150
    assert 2850 < max(starts) <= 3000
    assert len(draw_noise(4000, np.random.default_rng(0), _sounds(ramp))) == 4000


def test_a_short_recording_goes_on_from_its_beginning():
    ramp = np.linspace(0.1, 1.0, 700, dtype=np.float32)
    noise = draw_noise(2500, np.random.default_rng(3), _sounds(ramp))
    assert len(noise) == 2500
    np.testing.assert_array_equal(noise[700:], noise[:-700])
    np.testing.assert_allclose(np.sort(noise[:700]), ramp, atol=5e-5)


def test_every_recording_is_drawn():
    recordings = _sounds(*(np.full(2000, level, np.float32) for level in (0.25, 0.5, 1.0)))
    drawn = [round(float(draw_noise(100, np.random.default_rng(s), recordings)[0]), 2) for s in range(60)]
    assert {0.25, 0.5, 1.0} == set(drawn)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 1600, 16_001, 479_999, 480_000])
def test_fast_lengths_are_long_enough_even_and_smooth(num_samples: int):
    length = fast_length(num_samples)
    assert num_samples <= length < max(4, 1.34 * num_samples)
    assert length % 2 == 0
    for prime in (2, 3, 5):
        while length % prime == 0:
            length //= prime
    assert length == 1
