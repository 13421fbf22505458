"""When a forward or backward runs out of memory: say what would fit, or go on with smaller micro-batches.

An update is weighed by one count of label tokens, so cutting its micro-batches changes how it is computed, not what.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence

import torch

from data.batches import SpeechBatch
from train.memory.device import explain_shortage, workload_of
from train.memory.workload import Workload

logger = logging.getLogger(__name__)


class Shortage:
    """What to do about `torch.OutOfMemoryError`."""

    def __init__(self, work: Workload, device: torch.device, *, may_split: bool) -> None:
        """Remember the case.

        Args:
            work: the training, as it was planned.
            device: where it runs.
            may_split: cut micro-batches and go on, as `trainer.micro_batch_size=auto` asks for; on one process alone,
                since the others could not know.
        """
        self.work = work
        self.device = device
        self.may_split = may_split and work.num_processes == 1
        self._max_frames: int | None = None

    def cut(self, batches: Sequence[SpeechBatch]) -> list[SpeechBatch]:
        """Cut micro-batches down to what an earlier shortage left possible."""
        if self._max_frames is None:
            return list(batches)
        pieces: list[SpeechBatch] = []
        for batch in batches:
            clips = len(batch.labels)
            size = max(1, self._max_frames // batch.input_features.shape[-1])
            starts = range(0, clips, size)
            # A batch without clips keeps its place.
            pieces += [batch.select(range(i, min(i + size, clips))) for i in starts] if clips > size else [batch]
        return pieces

    def resolve(self, batches: Sequence[SpeechBatch], message: str) -> list[SpeechBatch]:
        """Return smaller micro-batches for the update that failed.

        Call it outside the handler of the error, which holds on to what the failed forward had made.

        Args:
            batches: of the update.
            message: of the error.

        Raises:
            RuntimeError: where they may not be cut, or are of one clip, with what would fit.
        """
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        largest = max(batches, key=lambda batch: len(batch.labels) * batch.input_features.shape[-1])
        explained = explain_shortage(message, workload_of(self.work, batches), self.device)
        if not self.may_split or len(largest.labels) == 1:
            raise RuntimeError(explained)
        clips = -(-len(largest.labels) // 2)
        self._max_frames = clips * largest.input_features.shape[-1]
        logger.warning("%s", explained)
        logger.warning("trainer.micro_batch_size=auto: forwards of at most %d such clips from now on", clips)
        return self.cut(batches)
