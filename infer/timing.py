"""Wall time as the Open ASR Leaderboard takes it: the device brought to a stop at both ends."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Seconds of wall time, the device brought to a stop at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.elapsed_s = 0.0

    def __enter__(self) -> Stopwatch:
        self._synchronise()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._synchronise()
        self.elapsed_s = time.perf_counter() - self._start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
