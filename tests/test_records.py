"""Each record becomes a row or a line in the list, in as many columns as there are rows, and never both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import data.records
from data.reasons import Reason
from data.records import BrokenRecord, Record, RowTableBuilder

GOOD = {"audio": "clip.wav", "text": "one", "language": "en"}


@pytest.fixture
def builder(write_clip: Callable[..., Path], tmp_path: Path) -> RowTableBuilder:
    write_clip()
    return RowTableBuilder(tmp_path / "m.jsonl")


def test_more_rows_than_a_chunk_keep_their_order(builder: RowTableBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.records, "CHUNK_ROWS", 7)
    for line in range(1, 31):
        language = ("en", "zh", "ja", "ar")[line // 8]  # each chunk meets other languages first
        if line % 10 == 0:
            builder.add(BrokenRecord(line, Reason.LINE_JSON, "broken", line * 100))
        else:
            builder.add(Record(line, {**GOOD, "id": f"r{line}", "language": language}))
    table = builder.build()
    assert [row.line for row in table] == [line for line in range(1, 31) if line % 10]
    assert [row.language for row in table] == [("en", "zh", "ja", "ar")[row.line // 8] for row in table]
    assert [(record.line, record.byte_offset) for record in table.rejected] == [(10, 1000), (20, 2000), (30, 3000)]
    assert table.num_lines == 30


def test_defaults_fill_what_a_record_does_not_say(write_clip: Callable[..., Path], tmp_path: Path) -> None:
    write_clip()
    defaults = {"language": "de", "task": "translate", "prompt": None}
    builder = RowTableBuilder(tmp_path / "m.jsonl", defaults=defaults)
    builder.add(Record(1, {"id": "a", "audio": "clip.wav", "text": "eins"}))
    builder.add(Record(2, {"id": "b", "audio": "clip.wav", "text": "one", "language": "en", "task": None}))
    first, second = builder.build()
    assert (first.language, first.task, first.prompt) == ("de", "translate", "")
    assert (second.language, second.task) == ("en", "translate")


def test_a_clip_in_an_archive_needs_no_file(tmp_path: Path) -> None:
    builder = RowTableBuilder(tmp_path / "archive", is_archive=True)
    builder.add(Record(1, {**GOOD, "audio": "row 1", "stored": 0}))
    builder.add(Record(2, {**GOOD, "audio": "row 2"}))
    table = builder.build()
    assert table.column("id").tolist() == ["row 1"]
    assert [(record.line, record.code) for record in table.rejected] == [(2, "A01")]


def test_a_line_of_a_manifest_cannot_claim_a_place_in_an_archive(builder: RowTableBuilder) -> None:
    """There is none: its row would be found when the clip is read, in the middle of a training."""
    builder.add(Record(1, {**GOOD, "audio": "row 1", "stored": 0}))
    builder.add(Record(2, {**GOOD, "id": "b", "stored": 3}))
    table = builder.build()
    assert [(record.line, record.code) for record in table.rejected] == [(1, "A01")]
    assert table[0].audio == builder.path.parent / "clip.wav"


def test_a_misspelt_field_is_said(builder: RowTableBuilder) -> None:
    for line, name in enumerate(("ofset_s", "duration", "Text", "gender", "accent"), start=1):
        builder.add(Record(line, {**GOOD, "id": f"{line}", name: 1.0}))
    assert len(builder.build()) == 5
    remarks = [remark.split(": ", 1)[1].split(";")[0] for remark in builder.remarks()]
    assert remarks == [f"field {name!r} is passed over" for name in ("Text", "duration", "ofset_s")]
    assert "did you mean offset_s?" in builder.remarks()[2]


def test_what_is_special_about_a_file_is_found(builder: RowTableBuilder, tmp_path: Path) -> None:
    """A FIFO would hang, a link is followed, a link to nothing is nothing."""
    import os

    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "link.wav").symlink_to("clip.wav")
    (tmp_path / "dangling.wav").symlink_to("gone.wav")
    for line, name in enumerate(("fifo.wav", "link.wav", "dangling.wav", "clip.wav/x.wav"), start=1):
        builder.add(Record(line, {**GOOD, "audio": name}))
    table = builder.build()
    assert [row.line for row in table] == [2]
    assert [(record.line, record.code) for record in table.rejected] == [(1, "A18"), (3, "A01"), (4, "A01")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, True, "1", 10**400])
@pytest.mark.parametrize("name", ["duration_s", "offset_s"])
def test_seconds_are_finite_numbers(name: str, value: object, builder: RowTableBuilder) -> None:
    builder.add(Record(1, {**GOOD, name: value}))
    assert [record.code for record in builder.build().rejected] == ["M01"]
