"""A recording fed to a live stream at the pace of speech, on a clock of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.streaming_model import Word
from data.audio import SAMPLING_RATE, Waveform
from serve.stream_settings import StreamSettings
from serve.streaming import Heard, Stream, Update, Window
from serve.voice import load_detector

PIECE = SAMPLING_RATE // 10  # samples that come in at once
UTTERANCE_PAUSE_S = 1.0
Hear = Callable[[Window], Heard]


def listen(
    waveform: Waveform, hear: Hear, settings: StreamSettings, *, pass_s: float | None = None
) -> tuple[list[tuple[float, Update]], list[float]]:
    """Feed a recording at the pace of speech.

    Args:
        waveform: (num_samples,) float32 at 16 kHz.
        hear: a model.
        settings: of the stream.
        pass_s: that each pass is taken to last; None measures it.

    Returns:
        (seconds on the clock, update) of each pass, and the seconds that it took.
    """
    stream = Stream(settings, detector=load_detector())
    updates: list[tuple[float, Update]] = []
    passes: list[float] = []
    now_s, fed = 0.0, 0
    while True:
        due = min(len(waveform), int(now_s * SAMPLING_RATE + 0.5) // PIECE * PIECE)
        if due + PIECE > len(waveform) and now_s * SAMPLING_RATE >= len(waveform):
            due = len(waveform)
        begin = time.perf_counter()
        if due > fed:
            stream.add(waveform[fed:due])
            fed = due
        is_over = fed == len(waveform)
        window = stream.next_window(is_over=is_over)
        if pass_s is None:
            now_s += time.perf_counter() - begin  # the detector of voices counts, too
        if window is None:
            if is_over:
                return updates, passes
            now_s = max(now_s, min(fed + PIECE, len(waveform)) / SAMPLING_RATE)
            continue
        begin = time.perf_counter()
        heard = hear(window)
        passes.append(time.perf_counter() - begin if pass_s is None else pass_s)
        now_s += passes[-1]
        updates.append((now_s, stream.take(window, heard)))


def find_delays(updates: list[tuple[float, Update]], words: list[Word]) -> list[float]:
    """Return how many seconds behind its end each word became final; words are matched by their order."""
    times = [now_s for now_s, update in updates for _ in update.delta.split()]
    return [now_s - word.end_s for now_s, word in zip(times, words, strict=False)]


def summarise(values: list[float]) -> dict[str, float] | None:
    """Return median, 95th percentile and largest; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "max": round(ordered[-1], 3),
    }


def with_silence(waveform: Waveform) -> Waveform:
    """Return it with a second of silence before and behind it."""
    return np.pad(waveform, round(UTTERANCE_PAUSE_S * SAMPLING_RATE))
