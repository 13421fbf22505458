"""What the parts of `benchmarks.gpu` train: a Whisper from random weights on the device, and updates in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.state import AcceleratorState

from benchmarks.speed_corpus import Clip, build_config
from data.batches import SpeechBatch, collate
from data.features import LogMel
from data.labels import Labels
from data.loaders import UpdateBatches
from data.plan import Position
from data.windows import Windows
from infer.encoder import WindowedWhisper
from train.adapters import FinetuneSettings, choose_trainable, enable_checkpointing
from train.loss import TrainingObjective
from train.optim import OptimizerSettings, build_optimizer
from train.precision import PrecisionSettings, apply_matmul_precision, inspect_device, resolve_precision
from train.runtime import build_accelerator
from train.step import Updater

CONTROL_IDS = (3, 4, 5)  # language, task, no timestamps; any will do for random weights


@dataclass(frozen=True)
class Job:
    """A way to train."""

    size: str = "large_v3"
    precision: str = "bf16"
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    optimizer: str = "adamw"
    checkpointing: bool = False
    caches_autocast: bool = True
    loss_chunk_tokens: int = 0


def device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_whisper(job: Job) -> WindowedWhisper:
    """Draw random weights where they train."""
    torch.manual_seed(0)
    with torch.device(device()):
        whisper = WindowedWhisper(build_config(job.size))
    choose_trainable(whisper, job.finetune)
    whisper.to(device())
    if job.checkpointing:
        enable_checkpointing(whisper)
    return whisper.train()


def build_updater(job: Job, whisper: WindowedWhisper) -> Updater:
    """Set up precision, optimiser and update as a run does."""
    AcceleratorState._reset_state(True)
    settings = PrecisionSettings(job.precision, init_scale=1024.0)
    precision = resolve_precision(settings, inspect_device(device()))
    apply_matmul_precision(precision)
    accelerator = build_accelerator(precision, settings, cache_autocast=job.caches_autocast)
    optimizer = build_optimizer(OptimizerSettings(job.optimizer, lr=1e-6), whisper.named_parameters())
    return Updater(
        accelerator.prepare(TrainingObjective(whisper, chunk_tokens=job.loss_chunk_tokens)),
        optimizer,
        accelerator,
        max_grad_norm=1.0,
    )


def build_labels(text: str, vocabulary: int) -> Labels:
    """Write a token for every four characters, as Whisper's tokenizer does for English."""
    ids = [10 + sum(text[i : i + 4].encode()) * 31 % (vocabulary - 10) for i in range(0, len(text), 4)]
    given = [1, *CONTROL_IDS, *ids]
    return Labels(tuple(given), (*given[1:], 0))


def build_batches(clips: Sequence[Clip], windows: Windows, *, size: str, batch: int) -> list[SpeechBatch]:
    """Sort clips into their windows and cut each window into micro-batches; leftovers ride in the next larger one."""
    config = build_config(size)
    log_mel = LogMel(config.num_mel_bins)
    found: list[SpeechBatch] = []
    waiting: list[Clip] = []
    edges = [windows.num_frames(len(waveform) / 16_000) for waveform, _ in clips]
    for edge in sorted(set(edges)):
        waiting += [clip for clip, frames in zip(clips, edges, strict=True) if frames == edge]
        while len(waiting) >= batch or (waiting and edge == max(edges)):
            taken, waiting = waiting[:batch], waiting[batch:]
            found.append(
                collate(
                    [log_mel(waveform, num_frames=edge) for waveform, _ in taken],
                    [build_labels(text, config.vocab_size) for _, text in taken],
                    clips=range(len(taken)),
                    audio_s=sum(len(waveform) for waveform, _ in taken) / 16_000,
                    pad_id=0,
                )
            )
    return found


def uniform_batch(size: str, *, num_clips: int, num_frames: int, num_labels: int, seed: int = 0) -> SpeechBatch:
    """Build a micro-batch of noise whose every label position carries loss."""
    config = build_config(size)
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(config.num_mel_bins, num_frames, generator=generator) for _ in range(num_clips)]
    ids = torch.randint(10, config.vocab_size, (num_clips, num_labels + 1), generator=generator).tolist()
    labels = [Labels(tuple(row[:-1]), tuple(row[1:])) for row in ids]
    return collate(features, labels, clips=range(num_clips), audio_s=num_clips * num_frames / 100, pad_id=0)


def endless(batches: Sequence[SpeechBatch]) -> Iterator[UpdateBatches]:
    """Hand out updates of one micro-batch each, in turn, from pinned memory where there is a GPU."""
    if device().type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    for i, batch in enumerate(itertools.cycle(batches)):
        yield UpdateBatches((batch,), Position(0, i), Position(0, i + 1))


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib(*, reset: bool = False) -> float:
    """Return the most memory that the allocator gave out, in GiB; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    if reset:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**30


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over that of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


Figures = dict[str, Any]
