"""What a scan keeps of a corpus: one element a row, in columns, and the splits that they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.preflight.cache import FIGURES
from data.reasons import Reason, Rejected
from data.rows import JoinedRows, Row, reject_row

UNKNOWN = -1
MAX_CLIP_S = 30.0  # seconds; Whisper's window
MAX_RECORDING_S = 7200.0  # seconds; two hours take half a GiB when decoded

COLUMNS = np.dtype(
    [
        ("key", "u8"),
        ("language", "i2"),
        ("speaker", "i4"),  # UNKNOWN where the row names none
        ("recording", "u8"),  # names the audio file, which several rows may share
        ("offset_s", "f8"),
        ("text", "u8"),
        ("num_characters", "i4"),
        ("num_label_tokens", "i4"),  # UNKNOWN without a tokenizer
        ("text_faults", "u1"),
        ("is_outside", "?"),  # the audio does not lie below the manifest's folder
        ("no_speech", "?"),
        ("has_segments", "?"),
        ("loses_segments", "?"),
        ("figures", FIGURES),
    ]
)
"""One row an element: 130 bytes, so that a million rows take 130 MB."""


@dataclass(frozen=True)
class Split:
    """The sources that are read as one split."""

    name: str
    """train, validation or test."""
    rows: JoinedRows
    is_windowed: bool
    """True if a clip must fit one window of 30 s, as in training; False if recordings of any length are transcribed."""

    @property
    def num_lines(self) -> int:
        """Rows that the reader took, and lines that it did not."""
        return len(self.rows) + len(self.rejected)

    @property
    def rejected(self) -> list[Rejected]:
        """What the reader did not take."""
        return [record for table in self.rows.tables for record in table.rejected]

    def max_duration_s(self, row: Row) -> float:
        """Return the longest that a row's clip may be; one with segments is cut into windows at their times."""
        return MAX_CLIP_S if self.is_windowed and not row.segments else MAX_RECORDING_S


@dataclass(frozen=True)
class SplitScan:
    """A split with its columns."""

    split: Split
    columns: npt.NDArray[Any]
    """(num_rows,) of `COLUMNS`."""
    details: dict[int, str]
    """What was found, of rows that cannot be used."""

    @property
    def name(self) -> str:
        """Name of the split."""
        return self.split.name

    @property
    def figures(self) -> npt.NDArray[Any]:
        """(num_rows,) of `FIGURES`."""
        figures: npt.NDArray[Any] = self.columns["figures"]
        return figures

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Which rows a training or an evaluation would take."""
        usable: npt.NDArray[np.bool_] = self.figures["code"] == ""
        return usable

    def faults(self) -> Iterator[Rejected]:
        """Yield a record for each line that cannot be used, those that the reader refused first."""
        yield from self.split.rejected
        for index in np.flatnonzero(~self.usable):
            row = self.split.rows[int(index)]
            yield reject_row(row, reason_of(str(self.figures["code"][index])), self.details.get(int(index), ""))


@dataclass(frozen=True)
class CorpusScan:
    """All splits, and what their numbers stand for."""

    splits: tuple[SplitScan, ...]
    languages: tuple[str, ...]
    speakers: tuple[str, ...]
    num_measured: int
    """Clips that were decoded; the others were known from an earlier scan."""

    def __getitem__(self, name: str) -> SplitScan:
        return next(scan for scan in self.splits if scan.name == name)


def reason_of(code: str) -> Reason:
    """Return the reason that a code stands for."""
    return next(reason for reason in Reason if reason.code == code)
