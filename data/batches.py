"""Which clips form an update, in which order and window, and the tensors of one micro-batch.

The plan of an epoch is a function of (seed, epoch) and of nothing else. One update takes clips of one window edge, so a
result never depends on which clips shared its batch, and accumulation only cuts an update into smaller forwards.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `T` label positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data.labels import IGNORE_INDEX, Labels
from data.reasons import Rejected
from data.windows import FULL_FRAMES, Windows


@dataclass(frozen=True)
class SpeechBatch:
    """The tensors of one micro-batch."""

    input_features: Tensor
    """(B, M, F) float32."""
    decoder_input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64, IGNORE_INDEX where there is no loss."""
    rows: tuple[int, ...]
    """Index of each clip in the data set."""
    audio_s: float
    """Seconds of speech, without padding."""
    rejected: tuple[Rejected, ...] = ()
    """Clips of the plan that could not be read; they are in no tensor."""

    @property
    def num_label_tokens(self) -> int:
        """Positions that carry loss; on the host, so counting never waits for a device."""
        return self._num_label_tokens

    _num_label_tokens: int = field(default=0, repr=False)

    def to(self, device: torch.device) -> SpeechBatch:
        """Copy the tensors to a device, without waiting where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> SpeechBatch:
        """Pin the tensors; called by the DataLoader."""
        return self._map(lambda tensor: tensor.pin_memory())

    def select(self, kept: Sequence[int]) -> SpeechBatch:
        """Return the batch with only the given positions of B."""
        index = torch.tensor(list(kept), dtype=torch.long, device=self.labels.device)
        labels = self.labels[index]
        return dataclasses.replace(
            self,
            input_features=self.input_features[index],
            decoder_input_ids=self.decoder_input_ids[index],
            labels=labels,
            rows=tuple(self.rows[i] for i in kept),
            _num_label_tokens=int((labels != IGNORE_INDEX).sum()),
        )

    def blank(self) -> SpeechBatch:
        """Return a batch of the same shape without any clip, which only keeps ranks in step."""
        return dataclasses.replace(
            self,
            input_features=torch.zeros_like(self.input_features),
            labels=torch.full_like(self.labels, IGNORE_INDEX),
            rows=(),
            audio_s=0.0,
            _num_label_tokens=0,
        )

    def _map(self, function: object) -> SpeechBatch:
        assert callable(function)
        return dataclasses.replace(
            self,
            input_features=function(self.input_features),
            decoder_input_ids=function(self.decoder_input_ids),
            labels=function(self.labels),
        )


def collate(
    features: Sequence[Tensor],
    labels: Sequence[Labels],
    *,
    rows: Sequence[int],
    audio_s: float,
    pad_id: int,
    rejected: Sequence[Rejected] = (),
) -> SpeechBatch:
    """Stack clips of one window; labels are padded to the longest of the batch.

    Args:
        features: (M, F) float32 each, all of one F; none for a batch that only keeps ranks in step.
        labels: the tokens of each clip.
        rows: index of each clip in the data set.
        audio_s: seconds of speech in the batch.
        pad_id: fills `decoder_input_ids`; never seen, since attention is causal and the label is IGNORE_INDEX.
        rejected: clips that could not be read.
    """
    length = max(len(item.labels) for item in labels)
    decoder_input_ids = torch.full((len(labels), length), pad_id, dtype=torch.long)
    padded = torch.full((len(labels), length), IGNORE_INDEX, dtype=torch.long)
    for i, item in enumerate(labels):
        decoder_input_ids[i, : len(item.labels)] = torch.tensor(item.decoder_input_ids)
        padded[i, : len(item.labels)] = torch.tensor(item.labels)
    return SpeechBatch(
        input_features=torch.stack(list(features)),
        decoder_input_ids=decoder_input_ids,
        labels=padded,
        rows=tuple(rows),
        audio_s=audio_s,
        rejected=tuple(rejected),
        _num_label_tokens=int((padded != IGNORE_INDEX).sum()),
    )


@dataclass(frozen=True)
class UpdatePlan:
    """The clips of one optimizer update, over all ranks, and their common window."""

    rows: tuple[int, ...]
    num_frames: int

    def micro_batches(self, *, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, ...]]:
        """Cut the update into this rank's micro-batches.

        Every rank gets the same number of them, so that ranks stay in step; where clips are too few, some are empty.
        """
        num_rounds = -(-len(self.rows) // (micro_batch_size * world_size))
        parts = np.array_split(np.asarray(self.rows, dtype=np.int64), num_rounds * world_size)
        return [tuple(int(i) for i in part) for part in parts[rank::world_size]]


ORDER_STREAM = 2  # first word of the seed, unlike that of the clips in `augment`


class EpochPlan:
    """The updates of every epoch, as a function of (seed, epoch)."""

    def __init__(
        self, durations_s: Sequence[float], *, windows: Windows, global_batch_size: int, seed: int, shuffle: bool = True
    ) -> None:
        """Sort the clips into windows.

        Args:
            durations_s: length of each clip, in seconds.
            windows: the window rule.
            global_batch_size: clips of one update, over accumulation and ranks.
            seed: of the order.
            shuffle: False keeps the order of the rows within each window.
        """
        if not durations_s:
            raise ValueError("there is no clip to train on")
        if global_batch_size < 1:
            raise ValueError(f"an update needs at least one clip, found {global_batch_size}")
        self.num_frames = np.array([windows.num_frames(d) for d in durations_s], dtype=np.int64)
        self.windows = windows
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle

    def updates(self, epoch: int) -> list[UpdatePlan]:
        """Return the updates of an epoch; every clip occurs exactly once."""
        rng = np.random.default_rng([ORDER_STREAM, self.seed, epoch])
        order = rng.permutation(len(self.num_frames)) if self.shuffle else np.arange(len(self.num_frames))
        plans: list[UpdatePlan] = []
        waiting: list[int] = []
        size = self.global_batch_size
        for frames in np.unique(self.num_frames):
            # The few clips that fill no update of their own window ride in the next larger one: an update of one clip
            # would move the weights as far as one of thirty-two.
            rows = waiting + [int(i) for i in order[self.num_frames[order] == frames]]
            num_whole = len(rows) // size * size
            plans += [UpdatePlan(tuple(rows[i : i + size]), int(frames)) for i in range(0, num_whole, size)]
            waiting = rows[num_whole:]
        if waiting:
            plans.append(UpdatePlan(tuple(waiting), int(self.num_frames[waiting].max())))
        if self.shuffle:
            plans = [plans[i] for i in rng.permutation(len(plans))]
        is_full = rng.random(len(plans)) < self.windows.full_share
        return [
            dataclasses.replace(plan, num_frames=FULL_FRAMES) if full else plan
            for plan, full in zip(plans, is_full, strict=True)
        ]


@dataclass(frozen=True, order=True)
class Position:
    """Where the data stands: the next update to read."""

    epoch: int = 0
    update: int = 0
