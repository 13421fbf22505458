"""Recorded noises and room responses: listed and checked once, before training, and the same in every process."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from data.audio import MIN_DURATION_S, AudioError, Waveform, load_waveform
from data.folders import AUDIO_SUFFIXES
from data.probe import probe_duration_s
from data.reasons import Reason

T = TypeVar("T")

PIECE_S = 30.0  # a long recording is read in pieces of at most this, each as likely as any other
INT16_FULL_SCALE = 32767.0
NUM_SHOWN = 5  # faults in an error


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a recording."""

    path: Path
    offset_s: float
    duration_s: float


class Sounds:
    """Recordings in pieces, as many as fit kept decoded."""

    def __init__(self, pieces: Sequence[Piece], kept: Sequence[npt.NDArray[np.int16]]) -> None:
        """Take the pieces, and the samples of the first of them; `open_sounds` makes both."""
        self.pieces = tuple(pieces)
        self._kept = tuple(kept)  # never changed, so that forked loaders share its memory

    def __len__(self) -> int:
        return len(self.pieces)

    def read(self, index: int) -> npt.NDArray[np.int16]:
        """Return a piece, (num_samples,) at 16 kHz, as loud as 16 bits can be; all zero if it is silent.

        Raises:
            AudioError: if a file that was not kept can no longer be read.
        """
        return self._kept[index] if index < len(self._kept) else _decode(self.pieces[index])


def to_waveform(samples: npt.NDArray[np.int16]) -> Waveform:
    """Return samples of `Sounds.read`, or some of them, as (num_samples,) float32 in [-1, 1]."""
    return samples.astype(np.float32) / np.float32(INT16_FULL_SCALE)


def open_sounds(entries: Sequence[str], *, key: str, cache_gib: float) -> Sounds:
    """List recordings, check each, and decode as many as fit.

    What does not fit is decoded at each use, to the same samples, so that the limit changes time and memory alone.
    Files beyond the limit are checked by their headers only.

    Args:
        entries: audio files, folders that are searched for them, and JSON-lines files with `audio` (relative to the
            file), `offset_s`? and `duration_s`? a line.
        key: the setting they come from, for messages.
        cache_gib: memory for decoded pieces, in GiB.

    Raises:
        FileNotFoundError: if an entry does not exist or holds no audio.
        ValueError: naming the first few of the files that cannot be used.
    """
    found = [item for entry in entries for item in _list_entry(entry, key)]
    with ThreadPoolExecutor() as pool:
        cut = _each(pool.map(_catching(_cut), found), key)
        pieces = [piece for parts in cut for piece in parts]
        bytes_left = cache_gib * 2**30
        num_kept = 0
        for piece in pieces:
            bytes_left -= piece.duration_s * 32_000  # 16 bit at 16 kHz
            if bytes_left < 0:
                break
            num_kept += 1
        kept = _each(pool.map(_catching(_decode), pieces[:num_kept]), key)
    return Sounds(pieces, kept)


def _list_entry(entry: str, key: str) -> list[tuple[Path, float, float | None]]:
    path = Path(entry).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{key}: no audio in {path}; known endings are {' '.join(sorted(AUDIO_SUFFIXES))}")
        return [(file, 0.0, None) for file in files]
    if not path.exists():
        raise FileNotFoundError(f"{key}: nothing at {path}; give audio files, folders or JSON-lines files")
    return _list_manifest(path) if path.suffix == ".jsonl" else [(path, 0.0, None)]


def _list_manifest(path: Path) -> list[tuple[Path, float, float | None]]:
    found: list[tuple[Path, float, float | None]] = []
    for line, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            fields: Any = json.loads(raw)
            duration_s = fields.get("duration_s")
            offset_s = float(fields.get("offset_s") or 0.0)
            found.append((path.parent / fields["audio"], offset_s, None if duration_s is None else float(duration_s)))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(
                f'{path}:{line}: a line is {{"audio": "file.wav"}}, with offset_s and duration_s where it is a part'
            ) from e
    if not found:
        raise ValueError(f"{path} is empty; it has one JSON object with `audio` a line")
    return found


def _cut(item: tuple[Path, float, float | None]) -> list[Piece]:
    path, offset_s, duration_s = item
    if not path.is_file():
        raise AudioError(Reason.AUDIO_NOT_A_FILE if path.exists() else Reason.AUDIO_MISSING, path)
    if duration_s is None:
        duration_s = probe_duration_s(path, offset_s=offset_s)
    if not MIN_DURATION_S <= duration_s < math.inf:
        raise AudioError(Reason.AUDIO_TOO_SHORT, path, f"{duration_s:.3f} s")
    num_pieces = math.ceil(duration_s / PIECE_S)
    length_s = duration_s / num_pieces
    return [Piece(path, offset_s + i * length_s, length_s) for i in range(num_pieces)]


def _decode(piece: Piece) -> npt.NDArray[np.int16]:
    waveform = load_waveform(piece.path, offset_s=piece.offset_s, duration_s=piece.duration_s, max_duration_s=None)
    # To full scale first: a quiet recording would lose in 16 bits what its use makes loud again.
    peak = np.float32(np.abs(waveform).max())
    return np.round(waveform / (peak or np.float32(1.0)) * np.float32(INT16_FULL_SCALE)).astype(np.int16)


def _catching(function: Callable[[Any], T]) -> Callable[[Any], T | ValueError]:
    def call(item: Any) -> T | ValueError:
        try:
            return function(item)
        except ValueError as e:
            return e

    return call


def _each(results: Iterable[T | ValueError], key: str) -> list[T]:
    done: list[T] = []
    faults: list[ValueError] = []
    for result in results:
        if isinstance(result, ValueError):
            faults.append(result)
        else:
            done.append(result)
    if faults:
        more = f"\n  ... and {len(faults) - NUM_SHOWN} more" if len(faults) > NUM_SHOWN else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:NUM_SHOWN])
        raise ValueError(f"{len(faults)} files of {key} cannot be used; mend them or take them out:{listed}{more}")
    return done
