"""Worker processes, or a thread, that read updates ahead from any position."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Sampler

from data.ahead import read_ahead
from data.plan import Position

if TYPE_CHECKING:
    from data.loaders import UpdateBatches, UpdateDataset


class _PositionSampler(Sampler[Position]):
    def __init__(self, dataset: UpdateDataset, start: Position) -> None:
        self.dataset = dataset
        self.start = start

    def __iter__(self) -> Iterator[Position]:
        epoch, update = self.start.epoch, self.start.update
        while True:
            for index in range(update, len(self.dataset.updates_of(epoch))):
                yield Position(epoch, index)
            epoch, update = epoch + 1, 0


def open_updates(
    dataset: UpdateDataset, *, start: Position, num_workers: int | None, pin_memory: bool, prefetch: int = 2
) -> Iterator[UpdateBatches]:
    """Read updates without end, beginning at a position; the number of workers never changes what comes.

    Args:
        dataset: reads one update.
        start: first position; found at once, nothing is replayed.
        num_workers: processes that decode. With 0 a thread of this one does, ahead of the training: decoders and the
            model leave Python to each other. None leaves two cores to the training and takes the others, at most 8: on
            two cores a second process costs more than it reads ahead.
        pin_memory: pin the tensors for copies to a CUDA device.
        prefetch: updates read ahead by each worker, or by the thread.
    """
    if num_workers is None:
        num_workers = max(0, min(8, len(os.sched_getaffinity(0)) - 2))
    loader: DataLoader[UpdateBatches] = DataLoader(
        dataset,
        batch_size=None,
        sampler=_PositionSampler(dataset, start),
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        pin_memory=pin_memory,
        multiprocessing_context=_context() if num_workers else None,
        # Its seed for the workers, which we have no use for, would else come from the state that drives dropout: a run
        # that is taken up again opens the loader once more than one that was never stopped.
        generator=torch.Generator(),
    )
    updates = iter(loader)
    return updates if num_workers else read_ahead(updates, count=prefetch)


def _context() -> BaseContext:
    """Return how worker processes begin: as copies of a server that has computed nothing.

    A copy of this process can hang: MKL keeps its memory by threads, and where one has computed features and ended, as
    those that read ahead do, the copy looks for it for ever. Seen in 1 of 30 copies.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.loaders"])
    return context
