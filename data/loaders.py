"""Updates of training data, read ahead by worker processes, from any position."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from data.audio import SAMPLING_RATE, Waveform
from data.augment import Augmentation, Recordings, augment_waveform, clip_rng, draw_speeds
from data.batches import BadRow, PendingFeatures, RowReference, SpeechBatch, collate
from data.dataset import Clips
from data.features import HOP_LENGTH, LogMel
from data.label_modes import LabelSettings, draw_label_mode
from data.labels import IGNORE_INDEX, LabelBuilder, Labels
from data.masks import FeatureMask, draw_mask, hide, mask_tokens
from data.packing import join_rows, join_waveforms
from data.plan import EpochPlan, EpochUpdates, Position
from data.reader import ClipReader
from data.reasons import Rejected
from data.recordings import heard_duration_s
from data.rows import Row
from data.workers import open_updates


@dataclass(frozen=True)
class UpdateBatches:
    """This rank's micro-batches of one update, and where the data goes on."""

    micro_batches: tuple[SpeechBatch, ...]
    position: Position
    """Of this update."""
    next_position: Position
    rejected_ahead: tuple[BadRow, ...] = ()
    """Rows of a stream that were found bad before they came into any batch."""

    @property
    def num_label_tokens(self) -> int:
        """Label tokens on this rank."""
        return sum(batch.num_label_tokens for batch in self.micro_batches)

    @property
    def rejected(self) -> tuple[BadRow, ...]:
        """Rows that could not be read."""
        return self.rejected_ahead + tuple(bad for batch in self.micro_batches for bad in batch.rejected)

    def pin_memory(self) -> UpdateBatches:
        """Pin every tensor; called by the DataLoader."""
        return dataclasses.replace(self, micro_batches=tuple(batch.pin_memory() for batch in self.micro_batches))


@dataclass(frozen=True)
class ClipRecipe:
    """What a clip becomes on its way into a batch: all of it a function of (seed, epoch, clip)."""

    label_builder: LabelBuilder
    labels: LabelSettings
    log_mel: LogMel
    augmentation: Augmentation
    recordings: Recordings
    pad_id: int
    seed: int
    on_device: bool = False
    """Leave the features to the training device."""


@dataclass(frozen=True)
class ClipSpeeds:
    """How fast each clip of a data set is played in an epoch; the plan and the reading of a clip ask the same."""

    augmentation: Augmentation
    durations_s: npt.NDArray[np.float64]
    seed: int

    def __call__(self, epoch: int, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the speed of each clip."""
        return draw_speeds(
            self.augmentation, seed=self.seed, epoch=epoch, rows=clips, durations_s=self.durations_s[clips]
        )


class UpdateDataset(Dataset[UpdateBatches]):
    """Read the micro-batches of the update at a position."""

    def __init__(
        self,
        clips: Clips,
        plan: EpochPlan,
        reader: ClipReader,
        recipe: ClipRecipe,
        *,
        rank: int = 0,
        keys: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Remember the parts; nothing is read yet.

        Args:
            clips: what is read.
            plan: in which order and company.
            reader: of the rows.
            recipe: what a clip becomes.
            rank: of this process.
            keys: (num_rows,) what names each row in messages and checkpoints; its place if None.
        """
        self.keys = np.arange(len(clips.rows)) if keys is None else keys
        self.clips = clips
        self.plan = plan
        self.reader = reader
        self.recipe = recipe
        self.rank = rank
        self.audio_s = clips.audio_s
        """Seconds of all clips."""
        self._epoch: tuple[int, EpochUpdates] | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the data set."""
        return len(self.clips.rows)

    def leave_out(self, rows: Iterable[int]) -> None:
        """Never use these rows again: they were found bad before the run was taken up again."""
        self.reader.leave_out(rows)

    def open(self, start: Position, *, num_workers: int | None, pin_memory: bool) -> Iterator[UpdateBatches]:
        """Read updates without end; see `open_updates`."""
        return open_updates(self, start=start, num_workers=num_workers, pin_memory=pin_memory)

    def updates_of(self, epoch: int) -> EpochUpdates:
        """Return the plan of an epoch; the latest one is kept."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self.plan.updates(epoch))
        return self._epoch[1]

    def __getitem__(self, position: Position) -> UpdateBatches:
        """Read one update."""
        updates = self.updates_of(position.epoch)
        update = updates[position.update]
        parts = update.micro_batches(self.plan.size, rank=self.rank)
        batches = tuple(self._read(part, update.num_frames, position.epoch) for part in parts)
        is_last = position.update + 1 == len(updates)
        following = Position(position.epoch + 1, 0) if is_last else Position(position.epoch, position.update + 1)
        return UpdateBatches(batches, position, following)

    def _read(self, clips: tuple[int, ...], num_frames: int, epoch: int) -> SpeechBatch:
        recipe = self.recipe
        features: list[torch.Tensor] = []
        lengths: list[int] = []
        masks: list[FeatureMask] = []
        labels: list[Labels] = []
        taken: list[int] = []
        taken_members: list[tuple[RowReference, ...]] = []
        rejected: list[BadRow] = []
        audio_s = 0.0
        for clip in clips:
            speed = 1.0 if self.plan.speeds is None else float(self.plan.speeds(epoch, np.array([clip]))[0])
            waveform, row, members, bad = self._join(clip, max_samples=int(num_frames * HOP_LENGTH * speed + 1e-6))
            rejected += bad
            if row is None:
                continue
            mode = draw_label_mode(recipe.labels, seed=recipe.seed, epoch=epoch, index=clip)
            if not mode.with_timestamps and row.open_start_s is not None:
                # What is said behind this point is in the next window; without times, nothing could say that it begins.
                waveform = waveform[: round((heard_duration_s(row, with_timestamps=False) or 0.0) * SAMPLING_RATE)]
            rng = clip_rng(recipe.seed, epoch, clip)
            waveform = augment_waveform(waveform, recipe.augmentation, rng, speed=speed, recordings=recipe.recordings)
            mask = draw_mask(
                recipe.augmentation,
                rng,
                num_mel_bins=recipe.log_mel.num_mel_bins,
                num_frames=num_frames,
                num_heard=min(num_frames, -(-len(waveform) // HOP_LENGTH)),
            )
            features.append(self._features(waveform, mask, num_frames))
            lengths.append(len(waveform))
            masks.append(mask)
            built = recipe.label_builder.build(
                row, with_timestamps=mode.with_timestamps, with_prompt=mode.with_prompt, time_scale=speed
            )
            labels.append(mask_tokens(built, recipe.augmentation, rng, mask_id=recipe.pad_id))
            taken.append(clip)
            taken_members.append(members)
            audio_s += len(waveform) / SAMPLING_RATE
        if not features:  # keeps this rank in step with the others; no label carries loss
            nothing = (
                torch.zeros(recipe.log_mel.num_mel_bins, dtype=torch.bool),
                torch.zeros(num_frames, dtype=torch.bool),
            )
            silence, mask = np.zeros(HOP_LENGTH, np.float32), FeatureMask(*nothing, 1)
            features, lengths, masks = [self._features(silence, mask, num_frames)], [len(silence)], [mask]
            labels = [Labels((recipe.pad_id,), (IGNORE_INDEX,))]
        pending = None
        if recipe.on_device:
            bins, frames = torch.stack([mask.bins for mask in masks]), torch.stack([mask.frames for mask in masks])
            pending = PendingFeatures(torch.tensor(lengths), bins, frames)
        return collate(
            features,
            labels,
            clips=taken,
            audio_s=audio_s,
            pad_id=recipe.pad_id,
            members=taken_members,
            pending=pending,
            rejected=rejected,
        )

    def _features(self, waveform: Waveform, mask: FeatureMask, num_frames: int) -> torch.Tensor:
        """Return the masked features of a clip, or its padded waveform where the training device makes them."""
        if self.recipe.on_device:
            padded = torch.zeros(num_frames * HOP_LENGTH)
            padded[: len(waveform)] = torch.from_numpy(waveform)
            return padded
        log_mel = self.recipe.log_mel(waveform, num_frames=num_frames)
        if not mask.hides_anything:
            return log_mel
        return hide(log_mel[None], mask.bins[None], mask.frames[None], torch.tensor([mask.num_heard]))[0]

    def _join(
        self, clip: int, *, max_samples: int
    ) -> tuple[Waveform, Row | None, tuple[RowReference, ...], list[BadRow]]:
        """Return the waveform and the row of a clip, made of those of its members that can be read, and which."""
        gap_s = float(self.clips.gaps_s[clip])
        num_samples = 0
        members: list[RowReference] = []
        waveforms: list[Waveform] = []
        rows: list[Row] = []
        bad: list[BadRow] = []
        for member in self.clips.members(clip):
            found = self.reader.read(member)
            if isinstance(found, Rejected):
                bad.append(BadRow(int(self.keys[member]), found))
            elif found is not None and num_samples + len(found) > max_samples:
                # Longer than its source says, and so than the window that was planned; it is never cut in silence.
                record = self.reader.reject_length(member, len(found) / SAMPLING_RATE)
                bad.append(BadRow(int(self.keys[member]), record))
            elif found is not None:
                num_samples += len(found) + round(gap_s * SAMPLING_RATE)
                waveforms.append(found)
                rows.append(row := self.clips.rows[member])
                key = int(self.keys[member])
                members.append(RowReference(key, str(row.manifest), row.line, row.id, str(row.audio)))
        if not rows:
            return np.zeros(0, np.float32), None, (), bad
        waveform, starts_s = join_waveforms(waveforms, gap_s=gap_s)
        durations_s = [len(part) / SAMPLING_RATE for part in waveforms]
        return waveform, join_rows(rows, starts_s=starts_s, durations_s=durations_s), tuple(members), bad
