"""Updates and hours of a training: operations counted from shapes, over what a card is said to do. An estimate."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from infer.encoder import WindowedWhisper
from train.adapters import choose_trainable, enable_checkpointing
from train.flops import FlopCount
from train.memory.workload import Workload


@dataclass(frozen=True)
class Pace:
    """How long a corpus takes."""

    updates: int
    hours: float
    audio_s_per_s: float


def clip_flops(work: Workload) -> float:
    """Return the floating-point operations of one clip in an update, with what is computed a second time.

    Counted by `train.flops` on a model without weights, of the same shapes and with the same parts learning.
    """
    finetune = work.finetune
    if finetune.base_dtype == "int8":  # only weights that are there can be made 8-bit; the products are the same
        finetune = dataclasses.replace(finetune, base_dtype="fp16")
    with torch.device("meta"):
        whisper = WindowedWhisper(work.config)
        choose_trainable(whisper, finetune)
    if work.checkpoint_every_layers:
        enable_checkpointing(whisper, every_layers=work.checkpoint_every_layers, offload=work.checkpoint_offload)
    count = FlopCount(whisper, loss_chunk_tokens=work.loss_chunk_tokens)
    found = count.of(1, work.num_frames, work.label_tokens)
    return found.needed + found.recomputed


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
