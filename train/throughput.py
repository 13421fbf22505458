"""Speed and memory between two log lines: what was done a second, as a share of the card's rate, and waits for data."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from data.batches import SpeechBatch
from train.flops import FlopCount, Flops

NOTHING = Flops(0.0, 0.0, 0.0)


class Throughput:
    """Count what was done since the last report."""

    def __init__(
        self,
        device: torch.device,
        *,
        flops: FlopCount | None = None,
        matmul_flops_per_s: float | None = None,
        num_ranks: int = 1,
    ) -> None:
        """Begin with nothing done.

        Args:
            device: whose memory is looked at.
            flops: counts the operations of a micro-batch; None leaves them out.
            matmul_flops_per_s: what this device was measured to do; see `measure_matmul_rate`.
            num_ranks: processes that do as much as this one.
        """
        self.device = device
        self.flops = flops
        self.matmul_flops_per_s = matmul_flops_per_s
        self.num_ranks = num_ranks
        self._num_paused = 0
        self._begin = time.perf_counter()
        self._validated_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._waited_s = 0.0
        self._audio_s = 0.0
        self._num_windows = 0
        self._num_tokens = 0
        self._num_updates = 0
        self._flops = NOTHING

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
        try:
            yield
        finally:
            self._validated_s += time.perf_counter() - start

    @property
    def validation_share(self) -> float:
        """Share of the wall time since the start, or the resume, that validation took."""
        return self._validated_s / max(1e-9, time.perf_counter() - self._begin)

    def record(self, micro_batches: Sequence[SpeechBatch], *, num_label_tokens: int, waited_s: float) -> None:
        """Take in one update.

        Args:
            micro_batches: of this rank.
            num_label_tokens: over all ranks.
            waited_s: seconds for which it waited for data.
        """
        self._audio_s += self.num_ranks * sum(batch.audio_s for batch in micro_batches)
        self._num_windows += self.num_ranks * sum(len(batch.clips) for batch in micro_batches)
        self._num_tokens += num_label_tokens
        self._num_updates += 1
        self._waited_s += waited_s
        if self.flops is not None:
            for batch in micro_batches:
                shape = len(batch.labels), batch.num_frames, batch.labels.shape[1]
                self._flops += self.flops.of(*shape, num_label_tokens=batch.num_label_tokens)

    def report(self) -> dict[str, float]:
        """Return the figures since the last report, and begin anew."""
        elapsed_s = max(1e-9, time.perf_counter() - self._start)
        num_updates = max(1, self._num_updates)
        figures = {
            "train/audio_s_per_s": self._audio_s / elapsed_s,
            "train/windows_per_s": self._num_windows / elapsed_s,
            "train/label_tokens_per_s": self._num_tokens / elapsed_s,
            "train/update_s": elapsed_s / num_updates,
            "train/data_wait_share": self._waited_s / elapsed_s,
            "train/peak_memory_gib": peak_memory_gib(self.device),
        }
        if self.flops is not None:
            figures["train/tflop_per_update"] = self._flops.needed / num_updates / 1e12
            figures["train/tflop_recomputed_per_update"] = self._flops.recomputed / num_updates / 1e12
        if self.matmul_flops_per_s is not None:
            figures["train/mfu"] = self._flops.needed / elapsed_s / self.matmul_flops_per_s
        self._reset()
        return figures


def measure_matmul_rate(device: torch.device, dtype: torch.dtype, *, size: int = 8192, seconds: float = 0.3) -> float:
    """Return how many operations a second the device does in a large matrix product, two for each multiply-add.

    Model FLOPs are measured against this, not against the data sheet: cards run at other clocks than it says.

    Args:
        device: where.
        dtype: of both factors.
        size: rows and columns of both.
        seconds: how long to measure, at least.
    """
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    rate, spent_s = 0.0, 0.0
    while spent_s < seconds:
        num_products = 8 if device.type == "cuda" else 1
        a @ b  # brings the clocks up, and picks the kernel
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(num_products):
            a @ b
        _synchronize(device)
        elapsed_s = time.perf_counter() - start
        rate, spent_s = max(rate, num_products * 2 * size**3 / elapsed_s), spent_s + 2 * elapsed_s
    return rate


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory used so far, in GiB: of the CUDA allocator, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
