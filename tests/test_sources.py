"""The same clips in any format are the same rows; what a format cannot say right is listed with its own line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.rows import Row, RowTable, Segment
from data.sources import Source, read_source

FIELDS: list[dict[str, Any]] = [
    {"id": "a", "audio": "audio/0.wav", "text": "one", "language": "en", "speaker": "s1"},
    {"id": "b", "audio": "audio/1.wav", "text": "你好，世界", "language": "zh", "duration_s": 0.25, "offset_s": 0.5},
    {"id": "c", "audio": "audio/2.wav", "text": 'says "three", twice', "language": "en", "task": "translate"},
]


@pytest.fixture
def audio(write_clip: Callable[..., Path]) -> list[Path]:
    return [write_clip(f"audio/{i}.wav", 1.0, seed=i) for i in range(3)]


def _read(path: Path, **options: Any) -> RowTable:
    return read_source(Source(str(path), **options))


def _facts(rows: RowTable) -> list[tuple[Any, ...]]:
    return [(r.id, r.audio, r.text, r.language, r.task, r.speaker, r.duration_s, r.offset_s, r.segments) for r in rows]


def _faults(rows: RowTable) -> list[tuple[int, str]]:
    return [(record.line, record.code) for record in rows.rejected]


def _csv(path: Path, rows: list[list[str]], *, end: str = "\n", mark: str = "") -> Path:
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_bytes((mark + end.join(quoted) + end).encode())
    return path


@pytest.mark.usefixtures("audio")
def test_every_table_gives_the_rows_of_the_manifest(tmp_path: Path, write_manifest: Callable[..., Path]) -> None:
    expected = _facts(_read(write_manifest(FIELDS)))
    assert len(expected) == 3
    names = sorted({name for fields in FIELDS for name in fields})
    cells = [[str(fields.get(name, "")) for name in names] for fields in FIELDS]
    for name, end, mark in (("a.csv", "\n", ""), ("b.csv", "\r\n", "\ufeff")):
        assert _facts(_read(_csv(tmp_path / name, [names, *cells], end=end, mark=mark))) == expected
    tsv = tmp_path / "c.tsv"
    tsv.write_text("\n".join("\t".join(row) for row in [names, *cells]), encoding="utf-8")
    assert _facts(_read(tsv)) == expected
    pq.write_table(pa.Table.from_pylist(FIELDS, pa.schema(
        [(n, pa.float64() if n.endswith("_s") else pa.string()) for n in names])), tmp_path / "d.parquet")  # fmt: skip
    assert _facts(_read(tmp_path / "d.parquet")) == expected


@pytest.mark.usefixtures("audio")
def test_lines_of_a_csv_with_line_breaks_in_its_cells_are_those_of_an_editor(tmp_path: Path) -> None:
    rows = [
        ["id", "audio", "text", "language"],
        ["a", "audio/0.wav", "one\ntwo", "en"],  # lines 2 and 3
        ["b", "audio/gone.wav", "x", "en"],  # line 4
        ["c", "audio/1.wav", "a\n\nb", "en"],  # 5 to 7
        ["d", "audio/1.wav", "", "en"],  # 8
        ["e", "audio/2.wav", "y", "en"],  # 9
    ]
    for end in ("\n", "\r\n"):
        table = _read(_csv(tmp_path / "t.csv", rows, end=end))
        assert [(row.id, row.line, row.text) for row in table] == [("a", 2, "one two"), ("c", 5, "a b"), ("e", 9, "y")]
        assert [(line, code) for line, code in _faults(table)] == [(4, "A01"), (8, "T03")]


@pytest.mark.usefixtures("audio")
def test_bad_lines_of_text_tables_are_listed_and_the_others_read(tmp_path: Path) -> None:
    good = b"audio/0.wav,one,en,,\n"
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"audio,text,language,duration_s,segments\n"
        + good  # 2
        + b"audio/0.wav,one,en\n"  # 3: too few
        + b"audio/0.wav,one,en,,,,\n"  # 4: too many
        + b"audio/1.wav,\xff,en,,\n"  # 5: not UTF-8
        + b"\n"  # 6: blank
        + b"audio/1.wav,two,en,long,\n"  # 7: no number
        + b"audio/1.wav,two,en,nan,\n"  # 8
        + b"audio/1.wav,two,en,,{\n"  # 9: no JSON
        + b'audio/1.wav,two,en,1,"[{""start"": 0, ""end"": 0.5, ""text"": ""two""}]"\n'  # 10
    )
    table = _read(path)
    assert _faults(table) == [(3, "M01"), (4, "M01"), (5, "T01"), (7, "M01"), (8, "M01"), (9, "M01")]
    assert [row.line for row in table] == [2, 10]
    assert table[1].segments == (Segment(0.0, 0.5, "two"),)
    assert table.num_lines == 8
    content = path.read_bytes()
    for record in table.rejected:
        assert record.byte_offset is not None
        assert content[: record.byte_offset].count(b"\n") == record.line - 1


@pytest.mark.usefixtures("audio")
def test_a_quote_is_a_letter_in_tsv(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('audio\ttext\tlanguage\naudio/0.wav\t"Halt, rief er\tde\naudio/1.wav\tzwei\tde\n')
    assert [(row.text, row.line) for row in _read(path)] == [('"Halt, rief er', 2), ("zwei", 3)]


@pytest.mark.usefixtures("audio")
def test_columns_folder_and_language_of_a_release_of_common_voice(tmp_path: Path) -> None:
    (tmp_path / "ar").mkdir()
    path = tmp_path / "ar" / "train.tsv"
    path.write_text("client_id\tpath\tsentence\tage\nx1\t0.wav\tمرحبا\t\nx2\t1.wav\tعالم\ttwenties\n", encoding="utf-8")
    columns = {"audio": "path", "text": "sentence", "speaker": "client_id"}
    table = _read(path, columns=columns, folder=str(tmp_path / "audio"), language="ar", prompt="قال", task="translate")
    assert [(r.text, r.speaker, r.language, r.prompt, r.task) for r in table] == [
        ("مرحبا", "x1", "ar", "قال", "translate"),
        ("عالم", "x2", "ar", "قال", "translate"),
    ]
    assert [row.audio for row in table] == [tmp_path / "audio" / f"{i}.wav" for i in range(2)]


@pytest.mark.usefixtures("audio")
def test_columns_within_columns(write_manifest: Callable[..., Path]) -> None:
    row = {"clip": {"path": "audio/0.wav"}, "label": {"words": "one"}, "language": "en"}
    (found,) = _read(write_manifest([row]), columns={"audio": "clip.path", "text": "label.words"})
    assert (found.audio.name, found.text) == ("0.wav", "one")  # type: ignore[union-attr]


@pytest.mark.usefixtures("audio")
def test_pieces_of_texts_are_replaced_and_what_is_then_empty_is_listed(write_manifest: Callable[..., Path]) -> None:
    row = {"audio": "audio/0.wav", "language": "en"}
    texts = ["WELL <COMMA> YES <PERIOD>", "<MUSIC>", "NO"]
    path = write_manifest([{**row, "id": str(i), "text": text} for i, text in enumerate(texts)])
    table = _read(path, replace={" <COMMA>": ",", " <PERIOD>": ".", "<MUSIC>": ""})
    assert [row.text for row in table] == ["WELL, YES.", "NO"]
    assert _faults(table) == [(2, "T03")]


def test_a_folder_of_clips_with_a_text_beside_each(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    for name in ("b/2.flac", "a/1.wav", "b/1.WAV", ".hidden.wav", "a/none.wav", "a/bad.wav"):
        write_clip(f"corpus/{name}")
    corpus = tmp_path / "corpus"
    (corpus / "a/1.txt").write_text("eins\n")
    (corpus / "b/1.txt").write_bytes(b"\xef\xbb\xbfzwei")
    (corpus / "b/2.txt").write_text("drei\nvier")
    (corpus / "a/bad.txt").write_bytes(b"\xff\xfe")
    (corpus / "notes.md").write_text("no audio")
    table = _read(corpus, language="de")
    assert [(row.id, row.text) for row in table] == [
        ("a/1.wav", "eins"),
        ("b/1.WAV", "zwei"),
        ("b/2.flac", "drei vier"),
    ]
    assert _faults(table) == [(2, "T01"), (3, "T03")]  # a/1.wav, a/bad.wav, a/none.wav, b/1.WAV, b/2.flac
    assert table.num_lines == 5


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_with_a_table_of_its_clips(kind: str, tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    for name in ("1.wav", "2.wav", "3.wav"):
        write_clip(f"corpus/{name}")
    corpus = tmp_path / "corpus"
    fields = [{"file_name": "2.wav", "text": "zwei"}, {"file_name": "1.wav", "text": "eins"}]
    if kind == "csv":
        _csv(corpus / "metadata.csv", [["file_name", "text"], ["2.wav", "zwei"], ["1.wav", "eins"]])
    else:
        (corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, fields)))
    (corpus / "other.tsv").write_text("nothing of ours")
    table = _read(corpus, language="de")
    assert [(row.audio, row.text) for row in table] == [(corpus / "2.wav", "zwei"), (corpus / "1.wav", "eins")]
    (corpus / f"metadata.{kind}").rename(corpus / f"train.{kind}")
    with pytest.raises(ValueError, match=r"holds several tables .*; name one of them instead of the folder"):
        _read(corpus, language="de")
    (corpus / "other.tsv").unlink()
    assert len(_read(corpus, language="de")) == 2


@pytest.fixture
def kaldi(tmp_path: Path, audio: list[Path]) -> Path:
    folder = tmp_path / "kaldi"
    folder.mkdir()
    (folder / "wav.scp").write_text(f"rec1 {audio[0]}\nrec2 ../audio/1.wav\nrec3 sox in.wav -t wav - |\n")
    (folder / "segments").write_text(
        "u1 rec1 0.0 0.4\nu2 rec1 0.4 1.0\nu3 rec2 0.25 0.75\nu4 rec3 0 1\nu6 rec2 1 0.5\n"
    )
    (folder / "text").write_text("u2 two words\nu1 one\nu3 你好\nu4 by a command\nu5 of nothing\nu6 backwards\n")
    (folder / "utt2spk").write_text("u1 s1\nu2 s1\nu3 s2\n")
    (folder / "utt2lang").write_text("u1 en\nu2 en\n")
    return folder


def test_a_kaldi_folder(kaldi: Path, audio: list[Path]) -> None:
    table = _read(kaldi, language="zh")
    assert [(r.id, r.text, r.speaker, r.language, r.line) for r in table] == [
        ("u2", "two words", "s1", "en", 1),
        ("u1", "one", "s1", "en", 2),
        ("u3", "你好", "s2", "zh", 3),
    ]
    assert [(r.offset_s, r.duration_s) for r in table] == [
        (0.4, pytest.approx(0.6)),
        (0.0, pytest.approx(0.4)),
        (0.25, pytest.approx(0.5)),
    ]
    assert [Path(str(row.audio)).resolve() for row in table] == [audio[0], audio[0], audio[1]]
    assert _faults(table) == [(4, "M07"), (5, "A01"), (6, "M01")]


def test_a_kaldi_folder_without_segments(kaldi: Path, audio: list[Path]) -> None:
    (kaldi / "segments").unlink()
    (kaldi / "wav.scp").write_text(f"u1 {audio[0]}\nu2\t{audio[1]}\n")
    (kaldi / "text").write_text("u1 one\n\nu2\ttwo\n")
    table = _read(kaldi, language="en")
    assert [(row.id, row.text, row.line, row.offset_s) for row in table] == [
        ("u1", "one", 1, None),
        ("u2", "two", 3, None),
    ]
    (kaldi / "text").unlink()
    with pytest.raises(FileNotFoundError, match=r"no text in .*kaldi; a Kaldi folder has at least wav\.scp and text"):
        _read(kaldi, language="en")


def test_faults_of_a_kaldi_folder_cost_their_utterance_only(kaldi: Path) -> None:
    (kaldi / "segments").write_text("u1 rec1 0 1\nu2 rec1 x y\nu3 rec2 nan 1\nu4 rec2 -1 1\n")
    (kaldi / "text").write_bytes(b"u1 one\nu2 two\nu\xff three\nu3 x\nu4 x\nu1 again\n")
    table = _read(kaldi, language="en")
    assert [row.id for row in table] == ["u1"]
    assert _faults(table) == [(2, "M01"), (3, "T01"), (4, "M01"), (5, "M01"), (6, "M02")]
    assert "u2 'rec1 x y' is not a recording, a start and an end in seconds" in table.rejected[0].message
    assert [record.byte_offset for record in table.rejected] == [7, 14, 23, 28, 33]


def test_a_broken_table_of_a_kaldi_folder_names_its_line(kaldi: Path) -> None:
    (kaldi / "segments").write_bytes(b"u1 rec1 0 1\n\xff")
    with pytest.raises(ValueError, match="segments:2 is not UTF-8, byte 0"):
        _read(kaldi, language="en")
    (kaldi / "segments").write_text("u1 rec1 0 1\nu1 rec1 0 1\nu1 rec1 0 2\n")
    with pytest.raises(ValueError, match="segments:3 says 'u1' again, and otherwise than before"):
        _read(kaldi, language="en")


def test_the_format_is_found_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl", "a.json", "a.jsonl.gz"):
        (tmp_path / name).touch()
        expected = "jsonl" if "json" in name else name[2:]
        assert Source(str(tmp_path / name)).resolved_format() == expected
    assert Source("x/{0..9}.tar").resolved_format() == "shards"
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"the format of .*a\.txt cannot be told by its name; say format: one of auto"):
        Source(str(tmp_path / "a.txt")).resolved_format()
    with pytest.raises(FileNotFoundError, match="for a data set of the hub say format: hub"):
        Source("google/fleurs").resolved_format()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(ValueError, match=r"broken\.parquet cannot be read as Parquet"):
        _read(tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match=r"a\.csv is empty; a table begins with a line of column names"):
        _read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xls"}, "format=xls of x.jsonl must be one of auto, jsonl"),
        ({"columns": {"words": "text"}}, r"columns\.words of x.jsonl is no field; there are audio"),
        ({"weight": 0.0}, "weight=0.0 of x.jsonl must be above 0"),
        ({"weight": float("nan")}, "weight=nan of x.jsonl must be above 0"),
        ({"max_clips": 0}, "max_clips and max_hours of x.jsonl must be above 0"),
        ({"max_hours": -1.0}, "max_clips and max_hours of x.jsonl must be above 0"),
        ({"streaming": True, "format": "jsonl"}, "streaming=true of x.jsonl needs format=hub or tar shards"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Source("x.jsonl", **options)


def test_rows_name_the_table_they_come_from(tmp_path: Path, audio: list[Path]) -> None:
    assert audio
    path = _csv(tmp_path / "t.csv", [["audio", "text", "language"], ["audio/0.wav", "x", "en"]])
    row: Row = _read(path)[0]
    assert (row.manifest, row.line) == (path, 2)
