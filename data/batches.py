"""The tensors of one micro-batch.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `T` label positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.features import HOP_LENGTH, LogMel
from data.labels import IGNORE_INDEX, Labels
from data.masks import hide
from data.reasons import Rejected


@dataclass(frozen=True, slots=True)
class RowReference:
    """What names a row wherever its batch goes."""

    key: int
    """Place of the row in the data set; for a stream, its source and line in one number."""
    manifest: str
    line: int
    id: str
    audio: str


@dataclass(frozen=True)
class BadRow:
    """A row that was found bad when its turn came."""

    key: int
    """See `RowReference`."""
    record: Rejected


@dataclass(frozen=True)
class PendingFeatures:
    """What is needed to make features of waveforms on the training device."""

    num_samples: Tensor
    """(B,) int64, length of each clip."""
    bins: Tensor
    """(B, M) bool, hidden mel bins."""
    frames: Tensor
    """(B, F) bool, hidden frames."""

    def map(self, function: Callable[[Tensor], Tensor]) -> PendingFeatures:
        """Return it with a function applied to each tensor."""
        return PendingFeatures(function(self.num_samples), function(self.bins), function(self.frames))


@dataclass(frozen=True)
class SpeechBatch:
    """The tensors of one micro-batch."""

    input_features: Tensor
    """(B, M, F) float32; (B, F * 160) waveforms while `pending` is there."""
    decoder_input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64, IGNORE_INDEX where there is no loss."""
    clips: tuple[int, ...]
    """Place of each clip in the data set, or in its block of a stream."""
    audio_s: float
    """Seconds of speech, without padding."""
    members: tuple[tuple[RowReference, ...], ...] = ()
    """The rows of each clip."""
    pending: PendingFeatures | None = None
    """What the device still has to do."""
    rejected: tuple[BadRow, ...] = ()
    """Rows of the plan that could not be read; they are in no tensor."""

    @property
    def num_frames(self) -> int:
        """Mel frames of the window, also while the features are still waveforms."""
        length = self.input_features.shape[-1]
        return length if self.pending is None else length // HOP_LENGTH

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
            pending=None if self.pending is None else self.pending.map(lambda tensor: tensor[index]),
            clips=tuple(self.clips[i] for i in kept),
            members=tuple(self.members[i] for i in kept) if self.members else (),
            _num_label_tokens=int((labels != IGNORE_INDEX).sum()),
        )

    def blank(self) -> SpeechBatch:
        """Return a batch of the same shape without any clip, which only keeps ranks in step."""
        return dataclasses.replace(
            self,
            input_features=torch.zeros_like(self.input_features),
            labels=torch.full_like(self.labels, IGNORE_INDEX),
            clips=(),
            members=(),
            audio_s=0.0,
            _num_label_tokens=0,
        )

    def with_features(self, log_mel: LogMel | None) -> SpeechBatch:
        """Return the batch with features in place of waveforms, made where they lie."""
        if self.pending is None:
            return self
        assert log_mel is not None, "a loader that leaves the features to the device says so to the updater"
        num_samples = self.pending.num_samples
        features = log_mel.on_device(self.input_features, num_samples)
        num_heard = ((num_samples + HOP_LENGTH - 1) // HOP_LENGTH).clamp_max(features.shape[2])
        features = hide(features, self.pending.bins, self.pending.frames, num_heard)
        return dataclasses.replace(self, input_features=features, pending=None)

    def _map(self, function: Callable[[Tensor], Tensor]) -> SpeechBatch:
        return dataclasses.replace(
            self,
            input_features=function(self.input_features),
            decoder_input_ids=function(self.decoder_input_ids),
            labels=function(self.labels),
            pending=None if self.pending is None else self.pending.map(function),
        )


def collate(
    features: Sequence[Tensor],
    labels: Sequence[Labels],
    *,
    clips: Sequence[int],
    audio_s: float,
    pad_id: int,
    members: Sequence[tuple[RowReference, ...]] = (),
    pending: PendingFeatures | None = None,
    rejected: Sequence[BadRow] = (),
) -> SpeechBatch:
    """Stack clips of one window; labels are padded to the longest of the batch.

    Args:
        features: (M, F) float32 each, all of one F; none for a batch that only keeps ranks in step.
        labels: the tokens of each clip.
        clips: place of each clip in the data set.
        audio_s: seconds of speech in the batch.
        pad_id: fills `decoder_input_ids`; never seen, since attention is causal and the label is IGNORE_INDEX.
        members: the rows of each clip.
        pending: given where `features` are waveforms, (F * 160,) each.
        rejected: rows that could not be read.
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
        clips=tuple(clips),
        members=tuple(members),
        pending=pending,
        audio_s=audio_s,
        rejected=tuple(rejected),
        _num_label_tokens=int((padded != IGNORE_INDEX).sum()),
    )
