"""Rows of a corpus: one utterance each, kept in columns so that millions of them fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.audio import AudioError
from data.reasons import Reason, Rejected, reject


@dataclass(frozen=True, slots=True)
class Segment:
    """A timed part of a row's text, in seconds from the start of the file."""

    start_s: float
    end_s: float
    text: str


class StoredAudio(Protocol):
    """An encoded clip inside a larger file: a Parquet or Arrow cell, a member of a tar."""

    def read(self) -> bytes:
        """Return the encoded bytes."""


def encoded(audio: Path | StoredAudio) -> Path | bytes:
    """Return what `load_waveform` reads: the path of a file, or the bytes of a clip inside an archive.

    Raises:
        AudioError: if the archive, or a file that it names, cannot be read.
    """
    if isinstance(audio, Path):
        return audio
    try:
        return audio.read()
    except FileNotFoundError as e:
        raise AudioError(Reason.AUDIO_MISSING, str(audio), str(e.filename or "")) from e
    except OSError as e:
        raise AudioError(Reason.AUDIO_CORRUPT, str(audio), e.strerror or str(e)) from e


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance: where its audio lies, what is said, in which language, and what the model shall do with it."""

    id: str
    audio: Path | StoredAudio
    """Path of the audio file, or the clip inside an archive."""
    text: str
    language: str
    """ISO code, as Whisper's tokenizer writes it."""
    task: str
    duration_s: float | None
    """Length of the clip; None where the source does not say."""
    offset_s: float | None
    """Where the clip begins in the file; None if the clip is the whole file."""
    segments: tuple[Segment, ...]
    prompt: str
    """Text that came before; given to the decoder, never part of the loss."""
    speaker: str
    manifest: Path
    """The file that names the row: a manifest, a table, a folder or a data set."""
    line: int
    """Line in `manifest`, counted from 1; for tables without lines, the row."""
    open_start_s: float | None = None
    """Where a segment begins that ends behind this window, in seconds from the start of the file."""
    no_speech: bool = False
    """Nothing is said; the text is empty on purpose."""
    byte_offset: int | None = None
    """Where the line begins in `manifest`; None where lines are not bytes."""
    stamp: int | None = None
    """Stands for size and time of change of the audio file when the row was read; None inside an archive."""


@dataclass(frozen=True, slots=True)
class LostClip:
    """The audio of a line that became no row: its length counts among the hours that are lost."""

    line: int
    audio: Path | StoredAudio
    offset_s: float | None
    duration_s: float | None
    """As the source states it."""


SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("audio", pa.large_string()),
        ("stored", pa.int64()),  # place in the archive; null for a file of its own
        ("text", pa.large_string()),
        ("language", pa.dictionary(pa.int16(), pa.string())),
        ("task", pa.dictionary(pa.int8(), pa.string())),
        ("duration_s", pa.float64()),
        ("offset_s", pa.float64()),
        ("segments", pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("text", pa.string())]))),
        ("prompt", pa.large_string()),
        ("speaker", pa.large_string()),
        ("line", pa.int64()),
        ("open_start_s", pa.float64()),
        ("no_speech", pa.bool_()),
        ("byte_offset", pa.int64()),
        ("stamp", pa.int64()),
    ]
)


class RowTable(Sequence[Row]):
    """The rows of one source that were taken, and the lines that were not: together, all lines."""

    def __init__(
        self,
        path: Path,
        table: pa.Table,
        rejected: Sequence[Rejected] = (),
        *,
        lost: Sequence[LostClip] = (),
        open_stored: Callable[[int], StoredAudio] | None = None,
    ) -> None:
        """Remember the columns.

        Args:
            path: the file or folder that was read.
            table: columns of `SCHEMA`.
            rejected: lines that became no row.
            lost: the audio of those lines, where they name any that is there.
            open_stored: from a place in the archive to the clip there.
        """
        self.path = path
        # In one piece: then a row is found by its place, not by a search through pieces.
        self.table = table.combine_chunks()
        self.rejected = tuple(rejected)
        self.lost = tuple(lost)
        self._open_stored = open_stored

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self._build(fields) for fields in self.table[index].to_pylist()]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._build(self.table.slice(index % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from map(self._build, batch.to_pylist())

    def _build(self, fields: dict[str, Any]) -> Row:
        place = fields.pop("stored")
        if place is None:
            fields["audio"] = Path(fields["audio"])
        else:
            assert self._open_stored is not None, "a table of stored clips comes with what opens them"
            fields["audio"] = self._open_stored(place)
        fields["segments"] = tuple(Segment(**segment) for segment in fields["segments"] or ())
        return Row(manifest=self.path, **fields)

    @property
    def num_lines(self) -> int:
        """Lines of the source; blank ones are not counted, and a line that gave several rows counts once."""
        lost = [record.line for record in self.rejected]
        return len(np.unique(np.concatenate([self.column("line").astype(np.int64), np.array(lost, np.int64)])))

    @property
    def durations_s(self) -> npt.NDArray[np.float64]:
        """Length of each clip in seconds, NaN where the source does not say."""
        return self.column("duration_s").astype(np.float64)

    @property
    def languages(self) -> npt.NDArray[np.str_]:
        """Language of each row."""
        return self.column("language").astype(str)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column as a NumPy array."""
        found: npt.NDArray[Any] = self.table[name].to_numpy()
        return found

    @property
    def num_segments(self) -> npt.NDArray[np.int64]:
        """Timed parts of each row."""
        counts: npt.NDArray[np.int64] = pc.fill_null(pc.list_value_length(self.table["segments"]), 0).to_numpy()
        return counts

    def replace(self, table: pa.Table, rejected: Sequence[Rejected]) -> RowTable:
        """Return a table of other rows of this source."""
        return RowTable(self.path, table, rejected, lost=self.lost, open_stored=self._open_stored)


class JoinedRows(Sequence[Row]):
    """The rows of several tables, one after the other."""

    def __init__(self, tables: Sequence[RowTable]) -> None:
        self.tables = tuple(tables)
        self.starts = np.cumsum([0, *(len(table) for table in tables)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        table = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.tables[table][index - int(self.starts[table])]

    def __iter__(self) -> Iterator[Row]:
        for table in self.tables:
            yield from table

    def table_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the place of each row's table."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of all tables as a NumPy array."""
        return np.concatenate([table.column(name) for table in self.tables])

    @property
    def durations_s(self) -> npt.NDArray[np.float64]:
        """Length of each row in seconds, NaN where unknown."""
        return self.column("duration_s").astype(np.float64)

    @property
    def languages(self) -> npt.NDArray[np.str_]:
        """Language of each row."""
        return self.column("language").astype(str)


def reject_row(row: Row, reason: Reason, detail: str) -> Rejected:
    """Return the record of a row that is not taken."""
    return reject(
        reason,
        manifest=row.manifest,
        line=row.line,
        id=row.id,
        audio=row.audio,
        detail=detail,
        byte_offset=row.byte_offset,
        duration_s=row.duration_s,
    )
