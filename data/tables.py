"""Rows of CSV, TSV and Parquet tables, one clip each."""

from __future__ import annotations

import contextlib
import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.folders import AUDIO_SUFFIXES
from data.lines import Line, decode, read_lines
from data.reasons import Reason
from data.records import BrokenRecord, Record

NUMBERS = ("duration_s", "offset_s")
BATCH_ROWS = 4096
MAX_FIELD = 2**24  # characters; csv's own limit of 128 Ki cuts off a recording's segments


def read_delimited(path: Path, *, delimiter: str) -> Iterator[Record | BrokenRecord]:
    """Read a table of text with a header line.

    A cell may hold line breaks, if it is quoted. A quote that is never closed costs its own line and no other.

    Args:
        path: UTF-8 text, quoted as spreadsheets do; `.gz` and `.zst` are unpacked.
        delimiter: `,` or a tab.

    Yields:
        The fields of each row by the header's names, all texts. `line` is the first one of a row.

    Raises:
        ValueError: if there is no header, or one that cannot be read.
    """
    csv.field_size_limit(MAX_FIELD)
    lines = _LinesOfRow(read_lines(path))
    # A quote is a letter in TSV as corpora write it (Common Voice); CSV needs quotes to hold commas.
    if delimiter == "\t":
        rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _read_header(path, rows, lines)
    while True:
        lines.begin_row()
        found: Record | BrokenRecord | None
        try:
            values = next(rows)
        except StopIteration:
            return
        except _NotTextError as e:
            is_first = e.record.line == lines.first.number
            found = e.record if is_first else lines.broken(f"its quote is still open in line {e.record.line}")
        except csv.Error as e:
            found = lines.broken(str(e))
        else:
            found = _named(header, values, lines) if any(values) else None
            if isinstance(found, Record) and (line := lines.find_row(values, delimiter)):
                found = lines.broken(f"a cell of several lines, of which line {line} is a row of its own")
        if isinstance(found, BrokenRecord):
            lines.give_back()
        if found is not None:
            yield found


class _NotTextError(Exception):
    """A line that is not UTF-8, met while a row is read."""

    def __init__(self, record: BrokenRecord) -> None:
        super().__init__(record.detail)
        self.record = record


class _LinesOfRow(Iterator[str]):
    """The lines that the row being read has taken so far; those behind the first can be given back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self._taken: list[Line] = []

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._taken.append(line)
        text = decode(line)
        if isinstance(text, BrokenRecord):
            raise _NotTextError(text)
        return text

    def find_row(self, values: list[str], delimiter: str) -> int | None:
        """Return which line behind the first one looks like a row: as many cells, and an audio file in the same place.

        Where one row lost its closing quote, and a later one its opening one, all between is a well-formed cell.
        """
        if len(self._taken) == 1:
            return None
        files = [place for place, value in enumerate(values) if _names_audio(value)]
        for line in self._taken[1:]:
            cells = next(csv.reader([str(decode(line))], delimiter=delimiter), [])
            if len(cells) == len(values) and any(_names_audio(cells[place]) for place in files):
                return line.number
        return None

    @property
    def first(self) -> Line:
        return self._taken[0]

    def begin_row(self) -> None:
        self._taken.clear()

    def give_back(self) -> None:
        self._again.extendleft(reversed(self._taken[1:]))

    def broken(self, detail: str) -> BrokenRecord:
        return BrokenRecord(self.first.number, Reason.LINE_JSON, detail, self.first.byte_offset)


def _names_audio(value: str) -> bool:
    return PurePath(value).suffix.lower() in AUDIO_SUFFIXES


def _read_header(path: Path, rows: Iterator[list[str]], lines: _LinesOfRow) -> list[str]:
    try:
        header = next(rows, None)
    except (_NotTextError, csv.Error) as e:
        raise ValueError(f"the first line of {path} is no line of column names: {e}") from e
    if not header:
        raise ValueError(f"{path} is empty; a table begins with a line of column names, such as audio,text,language")
    if len(header) == 1 and (found := next((sign for sign in ";\t|," if sign in header[0]), None)):
        raise ValueError(
            f"{path} has one column, {header[0]!r:.80}; it seems to be separated by {found!r}: "
            "a .csv has commas, a .tsv tabs"
        )
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns {twice!r:.40}; give one of them another name")
    return header


def _named(header: list[str], values: list[str], lines: _LinesOfRow) -> Record | BrokenRecord:
    if len(values) != len(header):
        return lines.broken(f"{len(values)} fields, the header has {len(header)}")
    return Record(lines.first.number, dict(zip(header, values, strict=True)), lines.first.byte_offset)


def parse_texts(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a text table with numbers, flags and segments as such; what is none stays text.

    An empty cell says nothing, but for the text: there it says that the transcript is empty.
    """
    parsed = {name: value for name, value in fields.items() if value != "" or name == "text"}
    for name in NUMBERS:
        if isinstance(parsed.get(name), str):
            try:
                parsed[name] = float(parsed[name])
            except ValueError:
                continue
    if isinstance(parsed.get("no_speech"), str):
        parsed["no_speech"] = {"true": True, "1": True, "false": False, "0": False}.get(
            parsed["no_speech"].lower(), parsed["no_speech"]
        )
    if isinstance(parsed.get("segments"), str):
        with contextlib.suppress(ValueError):  # what is no JSON is refused, with its line, as a field of the wrong type
            parsed["segments"] = json.loads(parsed["segments"])
    return parsed


def has_audio_bytes(path: Path) -> bool:
    """Tell whether a Parquet file holds the clips themselves.

    Raises:
        ValueError: if it is not Parquet.
    """
    with _open_parquet(path) as file:
        fields = file.schema_arrow
    return any(pa.types.is_struct(field.type) and _holds_bytes(field.type) for field in fields)


def _holds_bytes(kind: pa.StructType) -> bool:
    names = {kind.field(i).name for i in range(kind.num_fields)}
    return {"bytes", "path"} <= names


def read_parquet(path: Path) -> Iterator[Record | BrokenRecord]:
    """Read a Parquet table that names audio files; `line` counts its rows from 1.

    Raises:
        ValueError: if it is not Parquet, or broken.
    """
    line = 0
    with _open_parquet(path) as file:
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for fields in _fields_of(batch):
                    line += 1
                    if fields is None:
                        yield BrokenRecord(line, Reason.LINE_ENCODING, "a text is not UTF-8")
                    else:
                        yield Record(line, fields)
        except (pa.ArrowException, OSError) as e:
            raise ValueError(f"{path} breaks off after row {line}: {str(e).splitlines()[0]:.200}") from e


def _fields_of(batch: pa.RecordBatch) -> Iterable[dict[str, Any] | None]:
    """Return the fields of each row; None for one with a text that is not UTF-8, which Arrow does not look at."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        return [_fields_of_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _fields_of_row(row: pa.RecordBatch) -> dict[str, Any] | None:
    try:
        return dict(row.to_pylist()[0])
    except UnicodeDecodeError:
        return None


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{path} cannot be read as Parquet: {e}") from e
