"""What earlier scans measured, by the content of the clip: a scan that was stopped goes on, a second one is quick."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data.audio import AudioError
from data.preflight.clip import ClipFigures
from data.rows import Row

logger = logging.getLogger(__name__)

SCAN_VERSION = 2
"""Raise it with any change to what `measure_clip` returns: older records are then measured again."""

FIGURES = np.dtype(
    [
        ("pcm", "u8"),
        ("duration_s", "f8"),
        ("rms_dbfs", "f4"),
        ("peak", "f4"),
        ("clipped_share", "f4"),
        ("silence_share", "f4"),
        ("dc", "f4"),
        ("sampling_rate", "i4"),
        ("channels", "i2"),
        ("is_anti_phase", "?"),
        ("is_misnamed", "?"),
        ("code", "U3"),
    ]
)
"""`ClipFigures` without `detail`, one clip an element: 63 bytes instead of a Python object."""

RECORD = np.dtype([("key", "u8"), ("figures", FIGURES)])


def clip_key(row: Row, max_duration_s: float | None) -> int:
    """Return 64 bits that stand for a clip as it is now, or 0 where it cannot be looked at.

    Of a file: path, size and time of change; of audio inside an archive: the encoded bytes. With them the stretch that
    is the clip, and the limit that it is judged by.
    """
    try:
        if isinstance(row.audio, Path):
            status = row.audio.stat()
            content: tuple[object, ...] = (str(row.audio), status.st_size, status.st_mtime_ns)
        else:
            content = (blake2b(row.audio.read()).hexdigest(),)
    except (AudioError, OSError):
        return 0
    name = repr((SCAN_VERSION, *content, row.offset_s, row.duration_s, max_duration_s))
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


class ScanCache:
    """A file of JSON lines, one clip each, read once and appended to as the scan goes.

    In memory a record takes 70 bytes, so that a corpus of a million clips costs no more than its figures.
    """

    def __init__(self, path: Path) -> None:
        """Read the records of earlier scans.

        Args:
            path: the file; made with the first record.
        """
        self.path = path
        self._details: dict[int, str] = {}
        found = np.fromiter(self._read(), dtype=RECORD)
        # The newest record of a key is the one that counts: np.unique keeps the first.
        _, places = np.unique(found["key"][::-1], return_index=True)
        self._records = found[::-1][places]
        self._file: IO[str] | None = None

    def __enter__(self) -> ScanCache:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a scan was killed within a line: what follows must not be joined to it
                    file.write(b"\n")
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def __len__(self) -> int:
        return len(self._records)

    def find(self, keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
        """Return which clips are known, and their figures; those of unknown ones mean nothing.

        Args:
            keys: (num_clips,) from `clip_key`, 0 where there is none.
        """
        if not len(self._records):
            return np.zeros(len(keys), dtype=np.bool_), np.zeros(len(keys), dtype=FIGURES)
        places = np.minimum(np.searchsorted(self._records["key"], keys), len(self._records) - 1)
        known = (self._records["key"][places] == keys) & (keys != 0)
        return known, self._records["figures"][places]

    def detail(self, key: int) -> str:
        """Return what was said of a clip that could not be used."""
        return self._details.get(key, "")

    def append(self, key: int, figures: ClipFigures) -> None:
        """Write one record; `flush` brings it to the disk."""
        assert self._file is not None
        fields = {name: value for name, value in asdict(figures).items() if value or name in ("rms_dbfs", "pcm")}
        self._file.write(json.dumps({"key": key, **fields}, ensure_ascii=True) + "\n")

    def flush(self) -> None:
        """Hand what was appended to the operating system, so that a killed scan loses nothing of it."""
        assert self._file is not None
        self._file.flush()

    def _read(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        if not self.path.is_file():
            return
        num_unread = 0
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    fields = json.loads(line)
                    key, figures = fields.pop("key"), ClipFigures(**fields)
                    record = int(key), figures_record(figures)
                    np.array([record], dtype=RECORD)  # a number too large for its column is a broken line as well
                except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                    num_unread += bool(line.strip())
                    continue
                if figures.detail:
                    self._details[record[0]] = figures.detail
                yield record
        if num_unread:
            logger.warning("%s: %d lines are no records and were passed over", self.path, num_unread)


def figures_record(figures: ClipFigures) -> tuple[Any, ...]:
    """Return the figures of a clip as an element of `FIGURES`."""
    return tuple(getattr(figures, name) for name in FIGURES.names or ())
