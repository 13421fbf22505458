"""Augmentation of a clip: a function of (seed, epoch, row) alone, whatever worker draws it.

Shapes: `M` mel bins, `F` mel frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from data.audio import Waveform
from data.labels import Labels

CLIP_STREAM = 1  # first word of the seed; numpy pads seeds with zeros, so shorter ones need another


@dataclass(frozen=True)
class Augmentation:
    """How much is changed; all zero leaves a clip as it is."""

    gain_db: float = 0.0
    """Level drawn within plus or minus this many dB."""
    num_frequency_masks: int = 0
    max_frequency_share: float = 0.0
    """Widest frequency mask, as a share of the mel bins."""
    num_time_masks: int = 0
    max_time_share: float = 0.0
    """Widest time mask, as a share of the clip's own frames, not of its padding."""
    token_mask_share: float = 0.0
    """Share of text tokens hidden from the decoder's input, so that it must listen instead of guessing on."""

    def __post_init__(self) -> None:
        for name in ("max_frequency_share", "max_time_share", "token_mask_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"augment.{name}={getattr(self, name)} must lie in 0 to 1")

    @property
    def is_nothing(self) -> bool:
        """True if every clip stays as it is."""
        return self == Augmentation()


def clip_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of one clip in one epoch; no worker state can reach it."""
    return np.random.default_rng([CLIP_STREAM, seed, epoch, index])


def augment_waveform(waveform: Waveform, augmentation: Augmentation, rng: np.random.Generator) -> Waveform:
    """Change the level of a clip, kept within [-1, 1] so that nothing clips."""
    if augmentation.gain_db == 0.0:
        return waveform
    gain = 10.0 ** (rng.uniform(-augmentation.gain_db, augmentation.gain_db) / 20.0)
    peak = float(np.abs(waveform).max())
    return (waveform * np.float32(min(gain, 1.0 / peak if peak > 0 else gain))).astype(np.float32)


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


def mask_features(log_mel: Tensor, augmentation: Augmentation, rng: np.random.Generator, *, num_heard: int) -> Tensor:
    """Blank bands of mel bins and stretches of time, on a copy.

    Args:
        log_mel: (M, F) float32.
        augmentation: number and widest extent of the masks.
        rng: from `clip_rng`.
        num_heard: frames of the clip itself; masks in the padding would hide nothing.

    Returns:
        (M, F) float32; masked cells hold the clip's mean.

    Source: SpecAugment, Park et al. 2019, arXiv:1904.08779.
    """
    if augmentation.num_frequency_masks == 0 and augmentation.num_time_masks == 0:
        return log_mel
    num_bins = log_mel.shape[0]
    masked = log_mel.clone()
    fill = float(log_mel[:, :num_heard].mean())
    for _ in range(augmentation.num_frequency_masks):
        width = int(rng.integers(0, int(num_bins * augmentation.max_frequency_share) + 1))
        start = int(rng.integers(0, num_bins - width + 1))
        masked[start : start + width, :num_heard] = fill
    for _ in range(augmentation.num_time_masks):
        width = int(rng.integers(0, int(num_heard * augmentation.max_time_share) + 1))
        start = int(rng.integers(0, num_heard - width + 1))
        masked[:, start : start + width] = fill
    return masked
