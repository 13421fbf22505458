"""Rows of CSV, TSV and Parquet tables, one clip each."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.reasons import Reason
from data.records import BrokenRecord, Record

NUMBERS = ("duration_s", "offset_s")
BATCH_ROWS = 4096
MAX_FIELD = 2**24  # characters; csv's own limit of 128 Ki cuts off a recording's segments


def read_delimited(path: Path, *, delimiter: str) -> Iterator[Record | BrokenRecord]:
    """Read a table of text with a header line.

    Args:
        path: UTF-8 text, quoted as spreadsheets do.
        delimiter: `,` or a tab.

    Yields:
        The fields of each row by the header's names, texts all but `duration_s`, `offset_s`, `no_speech` and
        `segments` (JSON); empty ones left out.

    Raises:
        ValueError: if there is no header.
    """
    csv.field_size_limit(MAX_FIELD)
    # Bytes that are not UTF-8 come through as half surrogates, so that only their line is lost.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # A quote is a letter in TSV as corpora write it (Common Voice); CSV needs quotes to hold commas.
        if delimiter == "\t":
            reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(reader, None)
        if not header:
            raise ValueError(
                f"{path} is empty; a table begins with a line of column names, such as audio,text,language"
            )
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as e:
                yield BrokenRecord(line, Reason.LINE_JSON, str(e))
                continue
            if any(values):
                yield _named(header, values, line)


def _named(header: list[str], values: list[str], line: int) -> Record | BrokenRecord:
    if len(values) != len(header):
        return BrokenRecord(line, Reason.LINE_JSON, f"{len(values)} fields, the header has {len(header)}")
    fields: dict[str, Any] = {name: value for name, value in zip(header, values, strict=True) if value != ""}
    try:
        "".join(values).encode("utf-8")
    except UnicodeEncodeError:
        return BrokenRecord(line, Reason.LINE_ENCODING, "not UTF-8")
    return Record(line, fields)


def parse_texts(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a text table with numbers, flags and segments as such; what is none stays text."""
    parsed = dict(fields)
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


def read_parquet(path: Path) -> Iterator[Record]:
    """Read a Parquet table that names audio files; `line` counts its rows from 1.

    Raises:
        ValueError: if it is not Parquet.
    """
    line = 0
    with _open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for fields in batch.to_pylist():
                line += 1
                yield Record(line, fields)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise ValueError(f"{path} cannot be read as Parquet: {e}") from e
