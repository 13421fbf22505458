"""Updates of training data, read ahead by worker processes, from any position."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.audio import SAMPLING_RATE
from data.augment import Augmentation, augment_waveform, clip_rng, mask_features, mask_tokens
from data.batches import EpochPlan, Position, SpeechBatch, UpdatePlan, collate
from data.dataset import ClipReader
from data.features import HOP_LENGTH, LogMel
from data.labels import IGNORE_INDEX, Labels
from data.reasons import Rejected


@dataclass(frozen=True)
class UpdateBatches:
    """This rank's micro-batches of one update, and where the data goes on."""

    micro_batches: tuple[SpeechBatch, ...]
    position: Position
    """Of this update."""
    next_position: Position

    @property
    def num_label_tokens(self) -> int:
        """Label tokens on this rank."""
        return sum(batch.num_label_tokens for batch in self.micro_batches)

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Clips that could not be read."""
        return tuple(record for batch in self.micro_batches for record in batch.rejected)

    def pin_memory(self) -> UpdateBatches:
        """Pin every tensor; called by the DataLoader."""
        pinned = tuple(batch.pin_memory() for batch in self.micro_batches)
        return UpdateBatches(pinned, self.position, self.next_position)


class UpdateDataset(Dataset[UpdateBatches]):
    """Read the micro-batches of the update at a position."""

    def __init__(
        self,
        reader: ClipReader,
        plan: EpochPlan,
        *,
        log_mel: LogMel,
        augmentation: Augmentation,
        micro_batch_size: int,
        pad_id: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Remember the parts; nothing is read yet."""
        self.reader = reader
        self.plan = plan
        self.log_mel = log_mel
        self.augmentation = augmentation
        self.micro_batch_size = micro_batch_size
        self.pad_id = pad_id
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._epoch: tuple[int, list[UpdatePlan]] = (-1, [])

    def updates_of(self, epoch: int) -> list[UpdatePlan]:
        """Return the plan of an epoch; the latest one is kept."""
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.plan.updates(epoch))
        return self._epoch[1]

    def __getitem__(self, position: Position) -> UpdateBatches:
        """Read one update."""
        updates = self.updates_of(position.epoch)
        update = updates[position.update]
        parts = update.micro_batches(micro_batch_size=self.micro_batch_size, rank=self.rank, world_size=self.world_size)
        batches = tuple(self._read(part, update.num_frames, position.epoch) for part in parts)
        is_last = position.update + 1 == len(updates)
        following = Position(position.epoch + 1, 0) if is_last else Position(position.epoch, position.update + 1)
        return UpdateBatches(batches, position, following)

    def _read(self, rows: tuple[int, ...], num_frames: int, epoch: int) -> SpeechBatch:
        features: list[torch.Tensor] = []
        labels: list[Labels] = []
        taken: list[int] = []
        rejected: list[Rejected] = []
        audio_s = 0.0
        for row in rows:
            waveform = self.reader.read(row)
            if isinstance(waveform, Rejected):
                rejected.append(waveform)
                continue
            if len(waveform) > num_frames * HOP_LENGTH:  # the manifest's duration was short; never cut in silence
                rejected.append(self.reader.reject_duration(row, len(waveform) / SAMPLING_RATE))
                continue
            rng = clip_rng(self.seed, epoch, row)
            waveform = augment_waveform(waveform, self.augmentation, rng)
            log_mel = self.log_mel(waveform, num_frames=num_frames)
            num_heard = min(num_frames, -(-len(waveform) // HOP_LENGTH))
            features.append(mask_features(log_mel, self.augmentation, rng, num_heard=num_heard))
            labels.append(mask_tokens(self.reader.clips.labels[row], self.augmentation, rng, mask_id=self.pad_id))
            taken.append(row)
            audio_s += self.reader.clips.durations_s[row]
        if not features:  # keeps this rank in step with the others; no label carries loss
            features = [torch.zeros(self.log_mel.num_mel_bins, num_frames)]
            labels = [Labels((self.pad_id,), (IGNORE_INDEX,))]
        return collate(features, labels, rows=taken, audio_s=audio_s, pad_id=self.pad_id, rejected=rejected)


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
        num_workers: processes that decode; 0 reads in this one, None leaves two cores to
            the training and takes the others, at most 8: on two cores a second process costs more than it reads ahead.
        pin_memory: pin the tensors for copies to a CUDA device.
        prefetch: updates read ahead by each worker.
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
        # Its seed for the workers, which we have no use for, would else come from the state that drives dropout: a run
        # that is taken up again opens the loader once more than one that was never stopped.
        generator=torch.Generator(),
    )
    return iter(loader)


def append_quarantine(path: Path, rejected: tuple[Rejected, ...]) -> None:
    """Append records to `quarantine.jsonl`, one JSON object a line."""
    if rejected:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for record in rejected:
                file.write(json.dumps(record.as_record(), ensure_ascii=False) + "\n")
