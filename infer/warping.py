"""Dynamic time warping of tokens onto frames, for a whole batch at once, and the filter that comes before it.

Shapes: `B` rows, `N` tokens, `M` frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MEDIAN_OF_SEVEN = (
    *((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5)),
    *((2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)),
)
"""Pairs to put in order, one after the other; the middle one of seven values then stands in the middle.

Source: Devillard 1998, Fast median search, `opt_med7`. A test tries all orders of seven values.
"""


def first_frames(costs: np.ndarray[Any, Any], sizes: Sequence[tuple[int, int]]) -> list[np.ndarray[Any, Any]]:
    """Return at which frame each token begins on the cheapest way through a matrix of costs.

    The way goes from the first token and frame to the last ones; each step is to the next token, the next frame, or
    both. Of a token, all frames are taken together: the cheapest way to frame `j` came down from the token before at
    some frame up to `j`, and what it cost since then is a difference of two running sums. So the least over all of
    them is a running minimum, and the only loop is over tokens.

    Args:
        costs: (B, N, M); what lies beyond a row's size is not looked at.
        sizes: (tokens, frames) of each row, 1 or more.

    Returns:
        Of each row, (tokens,) frames, rising; the first is 0.

    Source: openai/whisper `timing.py`, `dtw_cpu`.
    """
    num_rows, num_tokens, num_frames = costs.shape
    frames = np.arange(num_frames, dtype=np.int32)
    entries = np.zeros((num_tokens, num_rows, num_frames), dtype=np.int32)
    """Where a way that is at this frame came to this token."""
    diagonals = np.zeros((num_tokens, num_rows, num_frames), dtype=bool)
    """Whether it came from the frame before."""
    total = costs[:, 0].astype(np.float64).cumsum(axis=1)
    for i in range(1, num_tokens):
        before = np.full_like(total, np.inf)
        before[:, 1:] = total[:, :-1]
        diagonals[i] = before < total
        sums = costs[:, i].astype(np.float64).cumsum(axis=1)
        entering = np.minimum(before, total)
        entering[:, 1:] -= sums[:, :-1]
        least = np.minimum.accumulate(entering, axis=1)
        entries[i] = np.maximum.accumulate(np.where(entering == least, frames, 0), axis=1)
        total = sums + least
    ends = np.array([size[1] for size in sizes]) - 1
    rows = np.arange(num_rows)
    found = np.zeros((num_rows, num_tokens), dtype=np.int32)
    for i in range(num_tokens - 1, 0, -1):
        entry = entries[i, rows, ends]
        is_in = np.array([i < size[0] for size in sizes])
        found[:, i] = entry
        ends = np.where(is_in, entry - diagonals[i, rows, entry], ends)
    return [found[row, : size[0]] for row, size in enumerate(sizes)]


def median_of_seven(values: Tensor) -> Tensor:
    """Return the median of each value and the three on either side of it, the ends mirrored.

    Seven shifted copies are put in order by a few comparisons of whole tensors, which takes a fraction of the time of
    sorting seven values at each place.

    Args:
        values: (..., M); with 3 or fewer they are returned as they are, as by openai/whisper.
    """
    if values.shape[-1] <= 3:
        return values
    flat = values.reshape(1, -1, values.shape[-1])
    padded = torch.nn.functional.pad(flat, (3, 3), mode="reflect")
    shifted = [padded[..., i : i + values.shape[-1]] for i in range(7)]
    for low, high in MEDIAN_OF_SEVEN:
        shifted[low], shifted[high] = (
            torch.minimum(shifted[low], shifted[high]),
            torch.maximum(shifted[low], shifted[high]),
        )
    return shifted[3].reshape(values.shape)
