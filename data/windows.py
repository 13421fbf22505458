"""Which window a clip is padded to: 30 s as stock Whisper, or the smallest edge that holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.features import FRAMES_PER_S, HOP_LENGTH, MAX_WINDOW_S

FULL_FRAMES = MAX_WINDOW_S * FRAMES_PER_S


@dataclass(frozen=True)
class Windows:
    """The window rule of a model: training, validation, evaluation and service all use it."""

    edges_s: tuple[float, ...]
    """Window lengths in seconds, rising, the last one 30. `(30,)` is the stock model."""
    full_share: float = 0.0
    """Share of training batches that are padded to 30 s all the same, so that stock runtimes keep working."""

    def __post_init__(self) -> None:
        edges = self.edges_s
        if not edges or list(edges) != sorted(set(edges)) or edges[0] <= 0 or edges[-1] != MAX_WINDOW_S:
            raise ValueError(f"window.edges_s={list(edges)} must rise and end at {MAX_WINDOW_S}, as [5, 10, 20, 30]")
        if not all(abs(math.remainder(edge, 0.02)) < 1e-9 for edge in edges):
            raise ValueError(f"window.edges_s={list(edges)}: each edge must be a multiple of 0.02 s")
        if not 0.0 <= self.full_share <= 1.0:
            raise ValueError(f"window.full_share={self.full_share} must lie in 0 to 1")

    @property
    def is_stock(self) -> bool:
        """True if every clip is padded to 30 s."""
        return self.edges_s == (MAX_WINDOW_S,)

    def num_frames(self, duration_s: float) -> int:
        """Return the frames of the smallest window that holds a clip.

        Raises:
            ValueError: if the clip is longer than 30 s.
        """
        return int(self.frames_of(np.array([duration_s]))[0])

    def frames_of(self, durations_s: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return the frames of each clip's smallest window.

        Raises:
            ValueError: if a clip is longer than 30 s.
        """
        # In whole samples, rounded as the resampler does: 2 s and one sample more at 44.1 kHz are 32000 at 16 kHz.
        num_samples = np.round(durations_s * (FRAMES_PER_S * HOP_LENGTH))
        frames = np.array([round(edge * FRAMES_PER_S) for edge in self.edges_s], dtype=np.int64)
        index = np.searchsorted(frames, np.ceil(num_samples / HOP_LENGTH))
        if len(index) and index.max() == len(frames):
            longest_s = float(durations_s.max())
            raise ValueError(f"a clip of {longest_s:.2f} s is longer than {MAX_WINDOW_S} s, and is never cut")
        return frames[index]


def full_windows() -> Windows:
    """Return the rule of stock Whisper: 30 s for every clip."""
    return Windows((float(MAX_WINDOW_S),))


def build_windows(edges_s: Sequence[float], *, full_share: float = 0.0) -> Windows:
    """Return the rule for the given edges, in seconds."""
    return Windows(tuple(float(edge) for edge in edges_s), full_share)
