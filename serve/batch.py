"""A batch of windows, decoded whole, or in halves where memory does not suffice."""

from __future__ import annotations

import gc
import itertools
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.audio import Waveform
from data.features import HOP_LENGTH
from infer.decoding import Decoded, DecodeSettings
from serve.runtime import Runtime


@dataclass(frozen=True)
class Batch:
    """Windows to decode in one way."""

    waveforms: list[Waveform]
    num_frames: list[int]
    """Of each window, padded; more than one length only where the decoder takes several."""
    settings: DecodeSettings
    languages: list[str]
    prompt: str | None


@dataclass(frozen=True)
class Answer:
    """What a worker says of a batch."""

    decoded: list[Decoded | str]
    """In order; text in place of a window that cannot be decoded says why."""
    elapsed_s: float
    num_halvings: int
    memory_mib: float
    """Resident, at most so far."""
    gpu_mib: float
    """Reserved, at most so far."""


def decode_batch(runtime: Runtime, batch: Batch) -> Answer:
    """Decode a batch; one that needs more memory than there is, in halves."""
    begin = time.perf_counter()
    num_halvings = 0

    def decode(rows: Sequence[int]) -> list[Decoded]:
        ordered = sorted(rows, key=lambda i: batch.num_frames[i])
        groups = [
            runtime.features([batch.waveforms[i] for i in group], num_frames)
            for num_frames, group in itertools.groupby(ordered, key=lambda i: batch.num_frames[i])
        ]
        languages = [batch.languages[i] for i in ordered]
        more: dict[str, Any] = {}
        if batch.prompt is not None:
            more["prompts"] = [runtime.prompt_ids(batch.prompt, language) for language in languages]
        if batch.settings.word_times:
            more["num_frames"] = [len(batch.waveforms[i]) // HOP_LENGTH for i in ordered]
        features: Any = groups[0] if len(groups) == 1 else groups
        found = runtime.decoder.decode(features, batch.settings, languages=languages, **more)
        of_row = dict(zip(ordered, found, strict=True))
        return [of_row[i] for i in rows]

    def count() -> None:
        nonlocal num_halvings
        num_halvings += 1

    decoded = in_halves(decode, range(len(batch.waveforms)), on_halving=count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gpu = torch.cuda.max_memory_reserved() / 2**20 if torch.cuda.is_initialized() else 0.0
    return Answer(decoded, time.perf_counter() - begin, num_halvings, peak, gpu)


def in_halves(
    decode: Callable[[Sequence[int]], list[Decoded]], rows: Sequence[int], *, on_halving: Callable[[], None]
) -> list[Decoded | str]:
    """Decode rows together, or in halves of halves where memory does not suffice.

    Args:
        decode: of some rows.
        rows: their indices.
        on_halving: called each time.

    Returns:
        One result a row; text says why there is none.
    """
    try:
        return list(decode(rows))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
    # Outside the clause: the exception holds the frames, and so the tensors, of what did not fit.
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if len(rows) == 1:
        return ["the model has no memory left for this recording"]
    on_halving()
    middle = len(rows) // 2
    halves = (rows[:middle], rows[middle:])
    return [result for half in halves for result in in_halves(decode, half, on_halving=on_halving)]


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory did not suffice; runtimes other than torch, and torch on a CPU, say so in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return "out of memory" in words or "can't allocate memory" in words or "failed to allocate" in words
