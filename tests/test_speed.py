"""The draw of a row is SplitMix64's and its own; a changed clip has the pitch and length of its factor."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tone

from data.audio import SAMPLING_RATE
from data.speed import GOLDEN_GAMMA, change_speed, draw_uniform, split_mix
from data.windows import build_windows


def test_the_hash_is_split_mix():
    """The sequence that the reference implementation in C gives for the seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = np.uint64(1234567) + np.arange(4, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    assert split_mix(states).tolist() == expected


def test_a_row_gets_its_number_in_whatever_company():
    rows = np.arange(10_000)
    whole = draw_uniform(3, 7, 2, rows)
    shuffled = np.random.default_rng(0).permutation(rows)[:500]
    np.testing.assert_array_equal(draw_uniform(3, 7, 2, shuffled), whole[shuffled])
    assert draw_uniform(3, 7, 2, np.array([123]))[0] == whole[123]


def test_draws_are_even_and_unrelated_across_rows_epochs_seeds_and_streams():
    rows = np.arange(100_000)
    base = draw_uniform(3, 0, 0, rows)
    counts = np.histogram(base, bins=20, range=(0.0, 1.0))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 45.3  # chi-square, 19 degrees of freedom, p = 0.0006
    others = [draw_uniform(3, 0, 1, rows), draw_uniform(3, 1, 0, rows), draw_uniform(4, 0, 0, rows), np.roll(base, 1)]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.015  # 4.7 standard deviations
    assert not np.array_equal(draw_uniform(3, 1, 2, rows), draw_uniform(3, 2, 1, rows))


@pytest.mark.parametrize("speed", [0.8, 0.9, 0.95, 1.05, 1.1, 1.25])
def test_a_faster_clip_is_shorter_and_higher(speed: float):
    waveform = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(SAMPLING_RATE) / SAMPLING_RATE).astype(np.float32)
    changed = change_speed(waveform, speed)
    assert changed.dtype == np.float32
    assert len(changed) == round(SAMPLING_RATE / speed)
    spectrum = np.abs(np.fft.rfft(changed * np.hanning(len(changed)), 2**18))
    assert spectrum.argmax() * SAMPLING_RATE / 2**18 == pytest.approx(1000 * speed, abs=0.5)
    inner = changed[1000:-1000]
    assert np.abs(inner).max() == pytest.approx(0.5, abs=1e-3)


def test_a_clip_at_its_own_speed_is_the_clip():
    waveform = tone(0.3)
    assert change_speed(waveform, 1.0) is waveform


def test_full_scale_is_kept():
    square = np.sign(tone(0.5)).astype(np.float32)
    for speed in (0.9, 1.1):
        assert np.abs(change_speed(square, speed)).max() <= 1.0


def test_the_window_planned_from_the_duration_holds_the_changed_clip():
    windows = build_windows([0.5, 0.6, 1, 2, 30])
    rng = np.random.default_rng(0)
    near_edges = [round(e * SAMPLING_RATE * f) + d for e in (0.5, 0.6, 1) for f in (0.9, 1.1) for d in range(-3, 4)]
    for num_samples in [*near_edges, *rng.integers(1600, 32_000, 100).tolist()]:
        for speed in (0.9, 0.95, 1.05, 1.1):
            changed = change_speed(np.zeros(num_samples, np.float32), speed)
            assert len(changed) <= windows.num_frames(num_samples / SAMPLING_RATE / speed) * 160
