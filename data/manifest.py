"""Lines of a JSONL manifest: one JSON object each, or why the line cannot be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.lines import MARK, Line, decode, read_lines
from data.reasons import Reason
from data.records import BrokenRecord, Record


def read_manifest(path: Path) -> Iterator[Record | BrokenRecord]:
    """Read the lines of a manifest; blank ones are passed over.

    Args:
        path: UTF-8 with or without a mark, LF or CRLF, plain, gzipped (`.gz`) or packed with Zstandard (`.zst`).

    Yields:
        The fields of each line as they stand there, or what is wrong with it.

    Raises:
        ValueError: if a packed file is cut or broken.
    """
    for line in read_lines(path):
        if line.content.strip() and line.content != MARK:
            yield _parse(line)


def _parse(line: Line) -> Record | BrokenRecord:
    text = decode(line)
    if isinstance(text, BrokenRecord):
        return text
    try:
        fields = _DECODER.decode(text)
    except json.JSONDecodeError as e:
        return _broken(line, f"column {e.colno}: {e.msg}")
    except RecursionError:
        return _broken(line, "nested too deeply")
    except _NotPlainError as e:
        return _broken(line, str(e))
    except ValueError:  # Python reads no integer of more than 4300 digits
        return _broken(line, "a number has too many digits")
    if not isinstance(fields, dict):
        return _broken(line, f"found {type(fields).__name__}")
    return Record(line.number, fields, line.byte_offset)


def _broken(line: Line, detail: str) -> BrokenRecord:
    return BrokenRecord(line.number, Reason.LINE_JSON, detail, line.byte_offset)


class _NotPlainError(ValueError):
    """JSON that Python would read, and others would not or not alike."""


def _refuse_constant(name: str) -> Any:
    raise _NotPlainError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _NotPlainError(f"field {next(name for name in counts if counts[name] > 1)!r:.40} occurs twice")
    return fields


# Made once: json.loads with hooks makes a decoder for every line, which takes longer than the line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
