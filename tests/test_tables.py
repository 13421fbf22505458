"""Tables: a fault costs its own row and no other, and a file that breaks off is never taken for whole."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.rows import RowTable
from data.sources import Source, read_source


def _read(path: Path) -> RowTable:
    return read_source(Source(str(path), language="en"))


def _faults(rows: RowTable) -> list[tuple[int, str]]:
    return [(record.line, record.code) for record in rows.rejected]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (b'clip.wav,"never closed\n', (3, "M01")),
        (b'"clip.wav,two\n', (3, "M01")),
        (b'clip.wav,"closed" too early\n', (3, "M01")),
        (b"clip.wav,a\rb\n", (3, "M01")),
        (b"clip.wav,\xff\n", (3, "T01")),
        (b'clip.wav,"\xff\n', (3, "T01")),
        (b"clip.wav,a\x00b\n", (3, "T02")),
    ],
)
@pytest.mark.parametrize("is_quoted", [False, True])
def test_a_broken_row_costs_no_other(
    broken: bytes, expected: tuple[int, str], is_quoted: bool, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    write_clip()
    good = b'"clip.wav","one"\n' if is_quoted else b"clip.wav,one\n"
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"audio,text,id\n" + b"".join(_with_id(part, i) for i, part in enumerate([good, broken, good, good]))
    )
    table = _read(path)
    assert _faults(table) == [expected]
    assert [row.line for row in table] == [2, 4, 5]
    assert table.num_lines == 4
    assert table.rejected[0].byte_offset == path.read_bytes().index(broken.rstrip(b"\n"))


def _with_id(row: bytes, i: int) -> bytes:
    return row.removesuffix(b"\n") + b",%d\n" % i


def test_two_quotes_that_are_never_closed_cost_two_rows(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    """The second one closes the first: what lies between is no cell, if the rest of the row then makes no sense."""
    write_clip()
    path = tmp_path / "t.csv"
    path.write_text('audio,text,id\nclip.wav,"a,1\nclip.wav,b,2\nclip.wav,"c,3\nclip.wav,d,4\n')
    table = _read(path)
    assert _faults(table) == [(2, "M01"), (4, "M01")]
    assert [row.id for row in table] == ["2", "4"]


def test_rows_between_a_lost_closing_quote_and_a_lost_opening_one_are_kept(
    tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    """All three lines together are one well-formed row, whose text would hold the others."""
    write_clip()
    path = tmp_path / "t.csv"
    path.write_text('audio,text,id\nclip.wav,"a,1\nclip.wav,b,2\nclip.wav,c",3\n"clip.wav","d, e\nf, g","4"\n')
    table = _read(path)
    assert _faults(table) == [(2, "M01")]
    assert "line 3 is a row of its own" in table.rejected[0].message
    assert [(row.id, row.text) for row in table] == [("2", "b"), ("3", 'c"'), ("4", "d, e f, g")]


def test_a_line_that_is_no_utf8_within_an_open_quote_is_one_of_its_own(
    tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    write_clip()
    path = tmp_path / "t.csv"
    path.write_bytes(b'audio,text,id\nclip.wav,"a,1\nclip.wav,\xff,2\nclip.wav,c,3\n')
    table = _read(path)
    assert _faults(table) == [(2, "M01"), (3, "T01")]
    assert "its quote is still open in line 3" in table.rejected[0].message
    assert [row.id for row in table] == ["3"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_packed_tables_are_the_same_and_cut_ones_are_refused(
    suffix: str, packing: str, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    """A cut file has lost nobody knows how many lines: it is an error, not one bad line."""
    write_clip()
    sign = {"csv": ",", "tsv": "\t"}.get(suffix)
    if sign is None:
        rows = [json.dumps({"audio": "clip.wav", "text": f"text {i}", "id": str(i)}) for i in range(300)]
    else:
        rows = [sign.join(["audio", "text", "id"]), *(sign.join(["clip.wav", f"text {i}", str(i)]) for i in range(300))]
    content = "\n".join(rows).encode()
    plain, packed = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}.{packing}"
    plain.write_bytes(content)
    if packing == "gz":
        packed.write_bytes(gzip.compress(content))
    else:
        with pa.output_stream(str(packed), compression="zstd") as file:
            file.write(content)
    assert [(row.id, row.line) for row in _read(packed)] == [(row.id, row.line) for row in _read(plain)]
    whole = packed.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 3):
        packed.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="breaks off after line"):
            _read(packed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; a table begins with a line of column names"),
        (b"\xff\xfea\x00u\x00", "is no line of column names: the file is UTF-16; save it as UTF-8"),
        (b"audio,\xff\n", "is no line of column names: byte 6"),
        (b'"audio,text\nclip.wav,a\n', "is no line of column names: unexpected end of data"),
        (b"audio,text,text\n", "has two columns 'text'"),
        (b"audio;text;language\n", "seems to be separated by ';'"),
        (b"audio,text\rclip.wav,a\r", "is no line of column names"),
    ],
)
def test_a_header_that_cannot_be_read_is_said(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _read(path)


def test_a_text_of_parquet_that_is_no_utf8_costs_its_row(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip()
    texts = pa.array([b"one", b"\xff", b"three"], pa.binary()).view(pa.string())
    audio = pa.array(["clip.wav"] * 3)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"audio": audio, "text": texts, "id": pa.array(["a", "b", "c"])}), path)
    table = _read(path)
    assert _faults(table) == [(2, "T01")]
    assert [row.id for row in table] == ["a", "c"]


def test_parquet_that_is_broken_inside_is_an_error_of_ours(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip()
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"audio": [f"clip{i}.wav" for i in range(2000)], "text": ["a"] * 2000}), path)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.parquet breaks off after row 0"):
        _read(path)
