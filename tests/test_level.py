"""The active level is that of the speech whatever silence surrounds it, and nothing passes full scale."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import tone

from data.audio import SAMPLING_RATE, load_waveform
from data.level import change_gain, compute_active_power, fit_full_scale, overdrive


def _p56_db(waveform: np.ndarray) -> float:
    """Active speech level by ITU-T P.56 method B, sample by sample as the recommendation states it, in dB."""
    thresholds = [2.0**-k for k in range(1, 16)]
    counts, hang = [0] * 15, [math.inf] * 15
    decay, hangover = math.exp(-1 / (0.03 * SAMPLING_RATE)), 0.2 * SAMPLING_RATE
    p = q = total = 0.0
    for x in waveform.tolist():
        total += x * x
        p = decay * p + (1 - decay) * abs(x)
        q = decay * q + (1 - decay) * p
        for j, threshold in enumerate(thresholds):
            hang[j] = 0 if q >= threshold else hang[j] + 1
            counts[j] += hang[j] < hangover
    levels = [(10 * math.log10(total / a), 20 * math.log10(c)) for a, c in zip(counts, thresholds, strict=True) if a]
    for (above, c_above), (below, c_below) in itertools.pairwise(levels):
        high, low = above - c_above - 15.9, below - c_below - 15.9
        if high <= 0.0 <= low:
            return above + (below - above) * -high / (low - high)
    pytest.fail("no threshold lies 15.9 dB below the level")


def test_silence_around_speech_does_not_change_its_level():
    """Beyond the 0.2 s behind it, that is, which P.56 counts as a pause of the speech."""
    speech = tone(1.0)
    expected = float(np.square(speech).mean()) / 1.2
    levels = []
    for before_s, behind_s in ((0.0, 0.2), (1.0, 0.2), (1.0, 2.0), (3.0, 9.0)):
        silence = [np.zeros(round(seconds * SAMPLING_RATE), np.float32) for seconds in (before_s, behind_s)]
        levels.append(compute_active_power(np.concatenate([silence[0], speech, silence[1]])))
    assert levels == pytest.approx([expected] * 4, rel=1e-5)
    hiss = np.random.default_rng(0).normal(0, 1e-3, 5 * SAMPLING_RATE).astype(np.float32)
    hiss[SAMPLING_RATE : 2 * SAMPLING_RATE] += speech
    assert compute_active_power(hiss) == pytest.approx(expected, rel=1e-2)
    assert compute_active_power(speech) == pytest.approx(1.2 * expected, rel=1e-5)


def test_speech_at_two_levels_is_the_mean_of_both_within_the_margin_and_the_louder_beyond():
    loud = np.full(3200, 0.5, np.float32)
    for distance_db, expected in ((10.0, (0.25 + 0.025) / 2), (30.0, 0.25)):
        quiet = loud * np.float32(10 ** (-distance_db / 20))
        assert compute_active_power(np.concatenate([quiet, loud])) == pytest.approx(expected, rel=1e-5)


def test_the_level_agrees_with_p56_on_human_speech(speech: Path):
    differences = []
    for path in sorted((speech / "ljspeech_en" / "audio").glob("*.opus"))[:4]:
        waveform = load_waveform(path)[: 3 * SAMPLING_RATE]
        differences.append(10 * math.log10(compute_active_power(waveform)) - _p56_db(waveform))
    assert len(differences) == 4
    assert np.abs(differences).max() < 0.2


@pytest.mark.parametrize("num_samples", [1, 319, 320, 321])
def test_clips_about_one_frame_long_have_a_level(num_samples: int):
    assert compute_active_power(np.full(num_samples, 0.5, np.float32)) == pytest.approx(0.25)
    assert compute_active_power(np.zeros(num_samples, np.float32)) == 0.0


def test_full_scale_makes_a_clip_quieter_as_a_whole_or_leaves_it():
    waveform = np.float32([0.5, -1.0, 0.25])
    assert fit_full_scale(waveform) is waveform
    np.testing.assert_allclose(fit_full_scale(waveform * 3), waveform, rtol=1e-6)
    for seed in range(50):
        loud = (tone(0.1, seed=seed) * np.float32(10 + seed)).astype(np.float32)
        fitted = fit_full_scale(loud)
        assert fitted.dtype == np.float32
        assert 1.0 - 1e-6 < np.abs(fitted).max() <= 1.0


def test_gain_is_in_decibels_and_stops_at_full_scale():
    waveform = np.float32([0.1, -0.4])
    np.testing.assert_allclose(change_gain(waveform, 6.0206), waveform * 2, rtol=1e-5)
    np.testing.assert_allclose(change_gain(waveform, -6.0206), waveform / 2, rtol=1e-5)
    np.testing.assert_allclose(change_gain(waveform, 40.0), [0.25, -1.0], rtol=1e-6)


def test_overdrive_cuts_peaks_alone():
    waveform = tone(0.5)
    cut = overdrive(waveform, 6.0206)
    limit = np.abs(waveform).max() / 2
    is_peak = np.abs(waveform) > limit
    assert is_peak.any()
    np.testing.assert_array_equal(cut[~is_peak], waveform[~is_peak])
    np.testing.assert_allclose(np.abs(cut[is_peak]), limit, rtol=1e-5)
    np.testing.assert_array_equal(overdrive(waveform, 0.0), waveform)
