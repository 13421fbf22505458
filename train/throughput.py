"""Speed and memory between two log lines: audio-seconds a second, share of time spent waiting for data, peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Throughput:
    """Count what was done since the last report."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._num_paused = 0
        self._begin = time.perf_counter()
        self._validated_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._waited_s = 0.0
        self._audio_s = 0.0
        self._num_tokens = 0
        self._num_updates = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time that is spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that belongs to no update: validation, checkpoints; one within the other counts once."""
        start = time.perf_counter()
        self._num_paused += 1
        try:
            yield
        finally:
            self._num_paused -= 1
            if self._num_paused == 0:
                self._start += time.perf_counter() - start

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Time that is spent on scoring the held-out set."""
        start = time.perf_counter()
        yield
        self._validated_s += time.perf_counter() - start

    @property
    def validation_share(self) -> float:
        """Share of the wall time since the start, or the resume, that validation took."""
        return self._validated_s / max(1e-9, time.perf_counter() - self._begin)

    def record(self, *, audio_s: float, num_label_tokens: int) -> None:
        """Take in one update."""
        self._audio_s += audio_s
        self._num_tokens += num_label_tokens
        self._num_updates += 1

    def report(self) -> dict[str, float]:
        """Return the figures since the last report, and begin anew."""
        elapsed_s = max(1e-9, time.perf_counter() - self._start)
        figures = {
            "train/audio_s_per_s": self._audio_s / elapsed_s,
            "train/label_tokens_per_s": self._num_tokens / elapsed_s,
            "train/update_s": elapsed_s / max(1, self._num_updates),
            "train/data_wait_share": self._waited_s / elapsed_s,
            "train/peak_memory_gib": peak_memory_gib(self.device),
        }
        self._reset()
        return figures


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory used so far, in GiB: of the CUDA allocator, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
