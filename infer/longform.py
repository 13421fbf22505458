"""Recordings longer than a window: cut at the quietest points, decoded as windows, joined again."""

from __future__ import annotations

import numpy as np

from data.audio import SAMPLING_RATE, Waveform
from data.features import MAX_WINDOW_S

SEARCH_S = 10.0  # the cut falls into the last third of 30 s
SEARCH_SHARE = 2 / 3  # of a piece, where pieces are short: a pause is worth more than a long piece
FRAME_S = 0.05


def cut_at_quiet(waveform: Waveform, *, max_duration_s: float = float(MAX_WINDOW_S)) -> list[tuple[float, Waveform]]:
    """Cut a recording into pieces of at most 30 s, at the quietest 50 ms in the last 10 s of each.

    In pieces under 15 s it is looked for in the last two thirds.

    Args:
        waveform: (num_samples,) float32 at 16 kHz.
        max_duration_s: longest piece, in seconds.

    Returns:
        (start in seconds, piece); the pieces join to the whole recording, sample for sample.
    """
    pieces: list[tuple[float, Waveform]] = []
    longest = int(max_duration_s * SAMPLING_RATE)
    start = 0
    while len(waveform) - start > longest:
        end = start + _quietest(waveform[start : start + longest])
        pieces.append((start / SAMPLING_RATE, waveform[start:end]))
        start = end
    pieces.append((start / SAMPLING_RATE, waveform[start:]))
    return pieces


def _quietest(window: Waveform) -> int:
    frame = int(FRAME_S * SAMPLING_RATE)
    first = max(frame, len(window) - int(min(SEARCH_S * SAMPLING_RATE, SEARCH_SHARE * len(window))))
    num_frames = (len(window) - first) // frame
    energy = np.square(window[first : first + num_frames * frame].reshape(num_frames, frame)).mean(axis=1)
    return first + int(energy.argmin()) * frame + frame // 2
