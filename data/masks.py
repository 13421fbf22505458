"""Masks over features and tokens: drawn on the host for each clip, laid over the features wherever those are made.

Shapes: `B` clips, `M` mel bins, `F` mel frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.augment import Augmentation
from data.labels import Labels


@dataclass(frozen=True)
class FeatureMask:
    """Which cells of a clip's features are hidden."""

    bins: Tensor
    """(M,) bool: hidden in all frames in which the clip is heard."""
    frames: Tensor
    """(F,) bool: hidden in all bins."""
    num_heard: int
    """Frames of the clip itself."""

    @property
    def hides_anything(self) -> bool:
        """False where nothing was drawn."""
        return bool(self.bins.any()) or bool(self.frames.any())


def draw_mask(
    augmentation: Augmentation, rng: np.random.Generator, *, num_mel_bins: int, num_frames: int, num_heard: int
) -> FeatureMask:
    """Draw bands of mel bins and stretches of time.

    Args:
        augmentation: number and widest extent of the masks.
        rng: from `clip_rng`.
        num_mel_bins: M.
        num_frames: F.
        num_heard: frames of the clip itself; masks in the padding would hide nothing.

    Source: SpecAugment, Park et al. 2019, arXiv:1904.08779.
    """
    bins = torch.zeros(num_mel_bins, dtype=torch.bool)
    frames = torch.zeros(num_frames, dtype=torch.bool)
    for _ in range(augmentation.num_frequency_masks):
        width = int(rng.integers(0, int(num_mel_bins * augmentation.max_frequency_share) + 1))
        start = int(rng.integers(0, num_mel_bins - width + 1))
        bins[start : start + width] = True
    for _ in range(augmentation.num_time_masks):
        width = int(rng.integers(0, int(num_heard * augmentation.max_time_share) + 1))
        start = int(rng.integers(0, num_heard - width + 1))
        frames[start : start + width] = True
    return FeatureMask(bins, frames, num_heard)


def hide(log_mel: Tensor, bins: Tensor, frames: Tensor, num_heard: Tensor) -> Tensor:
    """Lay masks over the features of a batch.

    Args:
        log_mel: (B, M, F) float32.
        bins: (B, M) bool.
        frames: (B, F) bool.
        num_heard: (B,) int64.

    Returns:
        (B, M, F) float32; hidden cells hold the mean of the frames in which their clip is heard.
    """
    heard = torch.arange(log_mel.shape[2], device=log_mel.device) < num_heard[:, None]
    # One axis after the other: a sum over both is shared out over threads, and rounds as their number has it.
    total = (log_mel * heard[:, None]).sum(dim=2).sum(dim=1)
    fill = total / (num_heard * log_mel.shape[1]).clamp_min(1)
    hidden = (bins[:, :, None] & heard[:, None]) | frames[:, None]
    return torch.where(hidden, fill[:, None, None], log_mel)


def mask_tokens(labels: Labels, augmentation: Augmentation, rng: np.random.Generator, *, mask_id: int) -> Labels:
    """Hide some text tokens from the decoder; what it must say stays the same.

    A decoder that sees all of the text so far learns to go on from it long before it learns to attend to the speech.

    Args:
        labels: the tokens of a row.
        augmentation: how many are hidden.
        rng: from `clip_rng`.
        mask_id: stands in for a hidden token; special tokens, whose ids are not below it, are never hidden.
    """
    if augmentation.token_mask_share == 0.0:
        return labels
    hidden = rng.random(len(labels.decoder_input_ids)) < augmentation.token_mask_share
    ids = tuple(
        mask_id if hide and token < mask_id else token
        for hide, token in zip(hidden, labels.decoder_input_ids, strict=True)
    )
    return Labels(ids, labels.labels)
