"""Updates and hours of a training: arithmetic of a forward from shapes, over what a card is said to do. An estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from train.memory.workload import Workload


@dataclass(frozen=True)
class Pace:
    """How long a corpus takes."""

    updates: int
    hours: float
    audio_s_per_s: float


def clip_flops(work: Workload) -> float:
    """Return the floating-point operations of one clip in an update: forward, backward and what is recomputed.

    A multiplication with its addition counts two. A backward costs twice the forward where weights learn and once where
    only gradients pass through.
    """
    config, rows, labels = work.config, work.num_positions, work.label_tokens
    width = work.width
    stem = 2 * 3 * width * (int(config.num_mel_bins) * work.num_frames + width * rows)
    layer = 2 * rows * (4 * width**2 + 2 * width * work.encoder_ffn) + 4 * rows**2 * width
    encoder = stem + int(config.encoder_layers) * layer
    own = 2 * labels * (6 * width**2 + 2 * width * work.decoder_ffn) + 4 * labels**2 * width
    cross = 2 * rows * 2 * width**2 + 4 * labels * rows * width
    decoder = int(config.decoder_layers) * (own + cross) + 2 * labels * width * work.vocabulary
    again = 1 if work.checkpoint_every_layers else 0
    backward = 1 if work.finetune.name == "lora" else 2
    learnt = (1 + backward + again / max(1, work.checkpoint_every_layers)) * decoder
    return learnt + (1 + ((backward + again) if work.encoder_learns else 0)) * encoder


def estimate_pace(
    work: Workload,
    *,
    hours_of_speech: float,
    epochs: float,
    clip_s: float,
    flops_per_s: float,
    audio_s_per_s: float | None,
) -> Pace:
    """Count updates and hours.

    Args:
        work: the training, at the window that a clip of usual length takes.
        hours_of_speech: of the corpus.
        epochs: times that each clip is seen.
        clip_s: mean length of a clip.
        flops_per_s: what the card reaches while it trains.
        audio_s_per_s: a measured speed, taken instead.
    """
    speed = audio_s_per_s or clip_s * flops_per_s / clip_flops(work)
    audio_s = 3600.0 * hours_of_speech * epochs
    return Pace(math.ceil(audio_s / (clip_s * work.global_batch_size)), audio_s / speed / 3600.0, speed)
