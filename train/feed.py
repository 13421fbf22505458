"""Updates on the training device: the next one is read and copied while the present one computes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from data.batches import SpeechBatch
from data.loaders import UpdateBatches


class Feed:
    """Hand out updates; on CUDA one ahead, copied from pinned memory on a stream of its own."""

    def __init__(self, updates: Iterator[UpdateBatches], device: torch.device) -> None:
        self._updates = updates
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None
        self._ahead: UpdateBatches | None = None
        self._error: Exception | None = None
        self._idle: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._waited_s = 0.0

    def next(self) -> UpdateBatches:
        """Return the next update, with its tensors on the device; the present stream waits until they are there."""
        if self._error is not None:
            raise self._error
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            start = time.perf_counter()
            ahead = self._fetch()
            self._waited_s += time.perf_counter() - start
        if self._stream is not None:
            present = torch.cuda.current_stream(self._device)
            present.wait_stream(self._stream)
            for batch in ahead.micro_batches:
                for tensor in _tensors(batch):
                    tensor.record_stream(present)  # else its memory could be given to the next copy too early
        return ahead

    def read_ahead(self) -> None:
        """Read and copy one update more; called while the device computes. On a CPU there is nothing to gain.

        What goes wrong here is raised when the update's turn comes.
        """
        if not self._is_cuda or self._ahead is not None:
            return
        # What is waited for data shows on the device alone: it stands idle between these two marks.
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        try:
            self._ahead = self._fetch()
        except Exception as e:
            self._error = e
        end.record()
        self._idle = begin, end

    def take_waited_s(self) -> float:
        """Return the seconds for which the device waited for data since the last call; after an update's own wait."""
        if self._idle is not None and self._idle[1].query():
            self._waited_s += self._idle[0].elapsed_time(self._idle[1]) / 1000
            self._idle = None
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def _fetch(self) -> UpdateBatches:
        batches = next(self._updates)
        if self._stream is None:
            return batches
        with torch.cuda.stream(self._stream):
            copied = tuple(batch.to(self._device) for batch in batches.micro_batches)
        return dataclasses.replace(batches, micro_batches=copied)


def _tensors(batch: SpeechBatch) -> list[Tensor]:
    tensors = [batch.input_features, batch.decoder_input_ids, batch.labels]
    if batch.pending is not None:
        tensors += [batch.pending.num_samples, batch.pending.bins, batch.pending.frames]
    return tensors
