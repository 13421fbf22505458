"""Recordings on their way into memory: files, parts of files or waveforms, loaded in threads, an hour at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from data.audio import SAMPLING_RATE, Waveform, load_waveform
from data.rows import StoredAudio, encoded

BLOCK_S = 3600.0  # seconds of audio in memory at once, twice: one block is read while the last is decoded
FILES_AHEAD = 4  # for each core, while files are read


@dataclass(frozen=True)
class Clip:
    """What to transcribe: a file, or a part of one."""

    audio: Path | StoredAudio
    """A file, or a clip inside an archive."""
    offset_s: float | None = None
    duration_s: float | None = None


Block: TypeAlias = list[tuple[int, Waveform]]
"""Waveforms with the index of their source."""


def load_blocks(sources: Sequence[Path | Clip | Waveform]) -> Iterator[Block]:
    """Yield sources, loaded, in blocks of about an hour."""
    block: Block = []
    block_s = 0.0
    for item in enumerate(_load_all(sources)):
        block.append(item)
        block_s += len(item[1]) / SAMPLING_RATE
        if block_s >= BLOCK_S:
            yield block
            block, block_s = [], 0.0
    if block:
        yield block


def _load_all(sources: Iterable[Path | Clip | Waveform]) -> Iterator[Waveform]:
    """Load in threads, a few ahead of the reader."""
    with ThreadPoolExecutor() as pool:
        waiting: deque[Future[Waveform]] = deque()
        try:
            for source in sources:
                waiting.append(pool.submit(_load, source))
                if len(waiting) >= FILES_AHEAD * (os.cpu_count() or 1):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _load(source: Path | Clip | Waveform) -> Waveform:
    if isinstance(source, np.ndarray):
        return source
    clip = Clip(source) if isinstance(source, Path) else source
    return load_waveform(
        encoded(clip.audio),
        offset_s=clip.offset_s,
        duration_s=clip.duration_s,
        max_duration_s=None,
        name=str(clip.audio),
    )
