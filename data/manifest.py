"""Lines of a JSONL manifest, plain or gzipped: one JSON object each, or why the line cannot be read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data.reasons import Reason
from data.records import BrokenRecord, Record


def read_manifest(path: Path) -> Iterator[Record | BrokenRecord]:
    """Read the lines of a manifest; blank ones are passed over.

    Args:
        path: `.jsonl`, `.json` or `.jsonl.gz`, UTF-8 with or without a mark, LF or CRLF.

    Yields:
        The fields of each line as they stand there, or what is wrong with it.
    """
    with _open(path) as file:
        offset = 0
        for line, raw in enumerate(file, start=1):
            if raw.strip() and raw != b"\xef\xbb\xbf":
                yield _parse(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw, line, offset)
            offset += len(raw)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _parse(raw: bytes, line: int, offset: int) -> Record | BrokenRecord:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        return BrokenRecord(line, Reason.LINE_ENCODING, f"byte {e.start}", offset)
    try:
        fields = _DECODER.decode(text)
    except json.JSONDecodeError as e:
        return BrokenRecord(line, Reason.LINE_JSON, f"column {e.colno}: {e.msg}", offset)
    except RecursionError:
        return BrokenRecord(line, Reason.LINE_JSON, "nested too deeply", offset)
    except _NotPlainError as e:
        return BrokenRecord(line, Reason.LINE_JSON, str(e), offset)
    except ValueError:  # Python reads no integer of more than 4300 digits
        return BrokenRecord(line, Reason.LINE_JSON, "a number has too many digits", offset)
    if not isinstance(fields, dict):
        return BrokenRecord(line, Reason.LINE_JSON, f"found {type(fields).__name__}", offset)
    return Record(line, fields, offset)


class _NotPlainError(ValueError):
    """JSON that Python would read, and others would not or not alike."""


def _refuse_constant(name: str) -> Any:
    raise _NotPlainError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _NotPlainError("a field occurs twice")
    return fields


# Made once: json.loads with hooks makes a decoder for every line, which takes longer than the line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
