"""A clip gets the smallest window that holds it, to the sample; a rule that no encoder can follow is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soxr

from data.features import HOP_LENGTH
from data.windows import FULL_FRAMES, Windows, build_windows, full_windows

EDGES = (2.0, 5.0, 10.0, 30.0)


def _smallest(num_samples: int, edges_s: tuple[float, ...]) -> int:
    """Return the frames of the smallest window, by trying one after the other in whole numbers."""
    return next(round(edge * 100) for edge in edges_s if num_samples <= round(edge * 16_000))


def test_smallest_edge_that_holds_the_clip() -> None:
    windows = Windows(EDGES)
    rng = np.random.default_rng(0)
    near = [round(edge * 16_000) + i for edge in EDGES for i in (-161, -160, -1, 0, 1, 160)]
    for num_samples in [*rng.integers(1, 480_001, 300).tolist(), *(n for n in near if n <= 480_000)]:
        frames = windows.num_frames(num_samples / 16_000)
        assert frames == _smallest(num_samples, EDGES), num_samples
        assert num_samples <= frames * HOP_LENGTH


@pytest.mark.parametrize("duration_s", [2.0, 1.9999999, 2.0000001, 0.1 * 20, 2 - 1e-12, math.nextafter(2.0, 3.0)])
def test_an_edge_holds_a_clip_of_its_own_length(duration_s: float) -> None:
    assert Windows(EDGES).num_frames(duration_s) == 200


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 3])
def test_duration_from_a_header_leads_to_the_window_of_the_resampled_clip(rate: int, extra: int) -> None:
    """The plan knows frames / rate of the file, the features get what the resampler made of it."""
    num_source = 2 * rate + extra
    num_samples = len(soxr.resample(np.zeros(num_source, np.float32), rate, 16_000))
    assert Windows(EDGES).num_frames(num_source / rate) == _smallest(num_samples, EDGES)


def test_more_than_thirty_seconds_is_refused() -> None:
    for windows in (Windows(EDGES), full_windows()):
        assert windows.num_frames(30.0) == FULL_FRAMES == 3000
        for duration_s in (30.0001, 31.0, 3600.0):
            with pytest.raises(ValueError, match="never cut"):
                windows.num_frames(duration_s)


def test_stock_rule_pads_everything_to_thirty_seconds() -> None:
    assert full_windows().is_stock
    assert not Windows(EDGES).is_stock
    assert {full_windows().num_frames(duration_s) for duration_s in (0.1, 5.0, 29.99, 30.0)} == {3000}


def test_edges_from_a_config_may_be_whole_numbers() -> None:
    assert build_windows([5, 30], full_share=0.1) == Windows((5.0, 30.0), 0.1)
    assert build_windows([30]) == full_windows()
    assert build_windows([30]).is_stock


def test_every_multiple_of_two_frames_is_an_edge() -> None:
    """0.14 s is 7 steps of 0.02 s, whatever 0.14 * 100 is in floating point."""
    for step in range(1, 1500):
        edge_s = float(f"{step * 0.02:.2f}")
        assert Windows((edge_s, 30.0)).num_frames(edge_s) == 2 * step


@pytest.mark.parametrize(
    "edges_s",
    [
        (),
        (5.0,),
        (10.0, 5.0, 30.0),
        (5.0, 5.0, 30.0),
        (0.0, 30.0),
        (-5.0, 30.0),
        (5.0, 40.0),
        (5.0, 30.0, 40.0),
        (0.01, 30.0),
        (5.001, 30.0),
        (5.03, 30.0),
        (math.nan, 30.0),
        (5.0, math.inf),
    ],
)
def test_bad_edges_are_refused(edges_s: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"window\.edges_s"):
        Windows(edges_s)


@pytest.mark.parametrize("full_share", [-0.1, 1.1, math.nan])
def test_bad_share_is_refused(full_share: float) -> None:
    with pytest.raises(ValueError, match=r"window\.full_share"):
        Windows(EDGES, full_share)
