"""Lines of a text file as bytes, each with its number and its place; plain, gzipped, or packed with Zstandard."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from data.reasons import Reason
from data.records import BrokenRecord

PACKED_SUFFIXES = (".gz", ".zst")
MARK = b"\xef\xbb\xbf"  # UTF-8's own, which some editors put before the first line
_OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line, with what ends it."""

    number: int
    """Counted from 1, as editors do."""
    byte_offset: int
    """Where it begins in the file, or in what the file unpacks to."""
    content: bytes


def read_lines(path: Path) -> Iterator[Line]:
    r"""Read the lines of a file; only `\n` ends one.

    Args:
        path: by its suffix `.gz` or `.zst` it is unpacked.

    Yields:
        Each line, the first without the mark of UTF-8.

    Raises:
        ValueError: if a packed file is cut or broken: how many lines are lost, nobody knows.
    """
    offset = number = 0
    try:
        with _open(path) as file:
            for number, content in enumerate(file, start=1):
                yield Line(number, offset, content.removeprefix(MARK) if number == 1 else content)
                offset += len(content)
    except (EOFError, zlib.error, OSError) as e:
        if path.suffix not in PACKED_SUFFIXES:
            raise
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(f"{path} breaks off after line {number} ({why}); fetch it again, or pack it anew") from e


def decode(line: Line) -> str | BrokenRecord:
    """Return the text of a line, or which of its bytes is no UTF-8."""
    try:
        return line.content.decode("utf-8")
    except UnicodeDecodeError as e:
        name = _OTHER_MARKS.get(line.content[:2]) if line.number == 1 else None
        detail = f"the file is {name}; save it as UTF-8" if name else f"byte {e.start}"
        return BrokenRecord(line.number, Reason.LINE_ENCODING, detail, line.byte_offset)


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast(IO[bytes], io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")
