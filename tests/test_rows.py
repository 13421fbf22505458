"""Rows kept in columns come back as they went in, by any index, in any process."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.audio import AudioError
from data.reasons import Reason, Rejected
from data.records import Record, table_of_rows
from data.rows import JoinedRows, Row, RowTable, Segment, encoded, reject_row
from data.shards import TarIndex


def _row(i: int, **changes: object) -> Row:
    row = Row(
        id=f"r{i}",
        audio=Path(f"/speech/{i}.wav"),
        text=f"text {i}",
        language=("en", "zh", "ar")[i % 3],
        task="transcribe",
        duration_s=None if i % 2 else 1.0 + i,
        offset_s=None if i % 3 else 0.25,
        segments=(Segment(0.0, 0.5, "a"), Segment(0.5, 1.0 + i, "b")) if i % 4 == 0 else (),
        prompt="" if i % 5 else "before",
        speaker=f"s{i % 2}",
        manifest=Path("m.jsonl"),
        line=i + 1,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Stored:
    place: int

    def read(self) -> bytes:
        return bytes([self.place])


def _table(rows: list[Row], path: str = "m.jsonl", rejected: tuple[Rejected, ...] = ()) -> RowTable:
    return RowTable(Path(path), table_of_rows(rows, [None] * len(rows)), rejected)


@pytest.fixture
def rows() -> list[Row]:
    return [_row(0), _row(1, open_start_s=0.75), _row(2, no_speech=True, text=""), *map(_row, range(3, 20))]


def test_rows_come_back_as_they_went_in(rows: list[Row]) -> None:
    table = _table(rows)
    assert list(table) == rows
    assert [table[i] for i in range(20)] == rows
    assert [table[i] for i in range(-20, 0)] == rows
    assert list(table[3:11:2]) == rows[3:11:2]
    assert table.languages.tolist() == [row.language for row in rows]
    assert table.num_segments.tolist() == [len(row.segments) for row in rows]
    np.testing.assert_array_equal(
        table.durations_s, np.array([np.nan if row.duration_s is None else row.duration_s for row in rows])
    )
    for index in (20, -21):
        with pytest.raises(IndexError):
            table[index]


def test_a_line_that_gave_several_rows_is_counted_once(rows: list[Row]) -> None:
    bad = reject_row(_row(30), Reason.TEXT_EMPTY, "")
    table = _table([*rows, _row(40, line=3), _row(41, line=3)], rejected=(bad,))
    assert table.num_lines == len(rows) + 1


def test_clips_of_an_archive_are_read_by_their_place() -> None:
    columns = table_of_rows([_row(i) for i in range(3)], [2, 0, 1])
    table = RowTable(Path("archive"), columns, open_stored=_Stored)
    assert [encoded(row.audio) for row in table] == [b"\x02", b"\x00", b"\x01"]
    assert encoded(Path("a.wav")) == Path("a.wav")
    shorter = table.replace(table.table.slice(2), ())
    assert encoded(shorter[0].audio) == b"\x01"


def test_joined_rows_are_those_of_the_tables_one_after_the_other(rows: list[Row]) -> None:
    tables = [_table(rows[:7]), _table([]), _table(rows[7:8], "b.jsonl"), _table(rows[8:])]
    joined = JoinedRows(tables)
    expected = [row for table in tables for row in table]
    assert len(joined) == 20
    assert list(joined) == expected
    assert [joined[i] for i in range(20)] == expected
    assert [joined[i - 20] for i in range(20)] == expected
    assert list(joined[5:12]) == expected[5:12]
    assert joined.table_of(np.arange(20)).tolist() == [0] * 7 + [2] + [3] * 12
    assert joined[7].manifest == Path("b.jsonl")
    assert joined.languages.tolist() == [row.language for row in expected]
    assert joined.column("text").tolist() == [row.text for row in expected]
    for index in (20, -21):
        with pytest.raises(IndexError):
            joined[index]


def _read_all(table: RowTable) -> list[tuple[Row, bytes]]:
    return [(row, encoded(row.audio)) for row in table]  # type: ignore[misc]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_table_crosses_into_another_process(method: str, rows: list[Row]) -> None:
    table = RowTable(Path("m.jsonl"), table_of_rows(rows, list(range(20))), open_stored=_Stored)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_read_all, (table,)) == _read_all(table)


def test_columns_in_pieces_become_one(rows: list[Row]) -> None:
    whole = table_of_rows(rows, [None] * 20)
    pieces = pa.concat_tables([whole.slice(i, 1) for i in range(20)])
    assert pieces["id"].num_chunks == 20
    table = RowTable(Path("m.jsonl"), pieces)
    assert table.table["id"].num_chunks == 1
    assert list(table) == rows


def test_a_cell_that_is_no_file_has_a_record_all_the_same(write_clip: Callable[..., Path]) -> None:
    record = reject_row(_row(0, audio=_Stored(3)), Reason.AUDIO_CORRUPT, "broken")
    assert "size" not in record.as_record()
    record = reject_row(_row(0, audio=write_clip()), Reason.AUDIO_CORRUPT, "broken")
    assert record.as_record()["size"] == 32_044


@pytest.mark.parametrize(
    ("error", "code"), [(FileNotFoundError(2, "no", "x.wav"), "A01"), (OSError(5, "broken"), "A04")]
)
def test_an_archive_that_names_what_cannot_be_read_is_a_fault_of_the_clip(error: OSError, code: str) -> None:
    """A cell of a data set may name a file instead of holding it; a training must not end for that."""

    class Cell:
        def read(self) -> bytes:
            raise error

    with pytest.raises(AudioError) as e:
        encoded(Cell())
    assert e.value.reason.code == code


def test_a_tar_that_changes_under_a_run_is_not_read(tmp_path: Path) -> None:
    """Something else may lie in the place of the clip."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.wav", b"sound"), ("a.txt", b"one")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    index = TarIndex([path])
    (record,) = index.records()
    assert isinstance(record, Record)
    assert encoded(index.open(record.fields["stored"])) == b"sound"
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(AudioError) as e:
        encoded(index.open(record.fields["stored"]))
    assert e.value.reason.code == "M11"
