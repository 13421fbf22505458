"""Data sets in the hub's own forms, made here: their rows and the bytes of their clips come out, without a network.

Repositories of Parquet with audio bytes, audio folders with metadata, and tar shards in the form of WebDataset.
"""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import tone

from data.audio import load_waveform
from data.dataset import check_rows, open_clips
from data.hub import audio_bytes
from data.labels import LabelBuilder
from data.reader import ClipReader
from data.rows import RowTable, encoded
from data.sources import Source, read_source

TEXTS = ["one", "two", "three", "four", "five"]


@pytest.fixture(autouse=True)
def no_network_and_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was to be fetched")

    monkeypatch.setattr("socket.socket.connect", refuse)


def _flac(i: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(0.5 + 0.1 * i, seed=i), 16_000, format="FLAC")
    return file.getvalue()


def _cells(count: int) -> pa.Table:
    return pa.table(
        {
            "audio": [{"bytes": _flac(i), "path": f"{i}.flac"} for i in range(count)],
            "sentence": TEXTS[:count],
            "client_id": [f"s{i % 2}" for i in range(count)],
        }
    )


@pytest.fixture
def parquet_repository(tmp_path: Path) -> Path:
    """Two shards of a split, as `push_to_hub` writes them, and another split."""
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    table = _cells(5)
    pq.write_table(table.slice(0, 3), folder / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(3), folder / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(1, 1), folder / "test-00000-of-00001.parquet")
    return folder.parent


@pytest.fixture
def audio_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    for split, places in (("train", [3, 0, 4]), ("test", [1])):
        (folder / split).mkdir(parents=True)
        for i in places:
            (folder / split / f"{i}.flac").write_bytes(_flac(i))
        lines = [{"file_name": f"{i}.flac", "sentence": TEXTS[i], "client_id": f"s{i}"} for i in places]
        (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two tar files with a clip and a JSON object for each key."""
    for number, places in enumerate(([0, 1, 2], [3, 4])):
        with tarfile.open(tmp_path / f"speech-{number:02d}.tar", "w") as tar:
            for i in places:
                fields = json.dumps({"text": TEXTS[i], "speaker": f"s{i}"}).encode()
                for name, content in ((f"clip{i}.flac", _flac(i)), (f"clip{i}.json", fields)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return tmp_path / "speech-*.tar"


COLUMNS = {"text": "sentence", "speaker": "client_id"}


def _facts(table: RowTable) -> list[tuple[str, str, int]]:
    return [(row.text, row.speaker, row.line) for row in table]


def _assert_audio(table: RowTable, places: list[int]) -> None:
    for row, i in zip(table, places, strict=True):
        content = encoded(row.audio)
        assert isinstance(content, bytes)
        expected, _ = soundfile.read(io.BytesIO(_flac(i)), dtype="float32")
        np.testing.assert_array_equal(load_waveform(content, name=str(row.audio)), expected)


def test_a_repository_of_parquet(parquet_repository: Path) -> None:
    source = Source(str(parquet_repository), format="hub", columns=COLUMNS, language="en")
    table = read_source(source)
    assert _facts(table) == [(TEXTS[i], f"s{i % 2}", i + 1) for i in range(5)]
    assert {row.language for row in table} == {"en"}
    assert len({row.id for row in table}) == 5
    _assert_audio(table, [0, 1, 2, 3, 4])
    test = read_source(Source(str(parquet_repository), format="hub", split="test", columns=COLUMNS, language="en"))
    assert [row.text for row in test] == ["two"]
    _assert_audio(test, [1])
    some = read_source(
        Source(str(parquet_repository), format="hub", split="train[1:4]", columns=COLUMNS, language="en")
    )
    _assert_audio(some, [1, 2, 3])


def test_a_parquet_file_with_its_clips(parquet_repository: Path) -> None:
    path = parquet_repository / "data" / "train-00001-of-00002.parquet"
    table = read_source(Source(str(path), columns=COLUMNS, language="en"))
    assert [row.text for row in table] == ["four", "five"]
    _assert_audio(table, [3, 4])


def test_an_audio_folder_is_read_without_the_library(audio_folder: Path) -> None:
    table = read_source(Source(str(audio_folder / "train"), columns=COLUMNS, language="en"))
    assert _facts(table) == [(TEXTS[i], f"s{i}", line) for line, i in enumerate([3, 0, 4], start=1)]
    assert [encoded(row.audio) for row in table] == [audio_folder / "train" / f"{i}.flac" for i in (3, 0, 4)]
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(ValueError, match="with torchcodec only; give the path of a local copy without format: hub"):
            read_source(Source(str(audio_folder), format="hub", columns=COLUMNS, language="en"))


def test_tar_shards(shards: Path) -> None:
    table = read_source(Source(str(shards), language="en"))
    assert _facts(table) == [(TEXTS[i], f"s{i}", i + 1) for i in range(5)]
    assert {row.audio.path.name for row in table} == {"speech-00.tar", "speech-01.tar"}  # type: ignore[union-attr]
    _assert_audio(table, [0, 1, 2, 3, 4])


def test_bad_rows_are_listed_with_their_place(tmp_path: Path, tokenizer: Any) -> None:
    cells = _cells(5).to_pylist()
    cells[1]["sentence"] = None
    cells[2]["audio"]["bytes"] = b"no audio"
    cells[3]["audio"] = None
    cells[4]["sentence"] = "  "
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "t.parquet")
    table = read_source(Source(str(tmp_path / "t.parquet"), columns=COLUMNS, language="en"))
    assert [(record.line, record.code) for record in table.rejected] == [(2, "M01"), (5, "T03")]
    checked = check_rows(table, LabelBuilder(tokenizer, max_positions=448))
    assert [row.line for row in checked] == [1]
    found = {record.line: record.code for record in checked.rejected}
    assert found == {2: "M01", 3: "A04", 4: "A02", 5: "T03"}
    assert "row 3" in next(record for record in checked.rejected if record.line == 3).audio


def test_clips_of_a_repository_are_trained_on_like_files(parquet_repository: Path, tokenizer: Any) -> None:
    source = Source(str(parquet_repository), format="hub", columns=COLUMNS, language="en", max_clips=3)
    clips = open_clips([source], LabelBuilder(tokenizer, max_positions=448), on_bad="strict", max_bad_share=0.0)
    assert [row.text for row in clips.rows] == ["one", "two", "four"]  # evenly from all
    assert clips.durations_s.tolist() == pytest.approx([0.5, 0.6, 0.8])
    waveform = ClipReader(clips.rows, cache_gib=0.0).read(2)
    assert isinstance(waveform, np.ndarray)
    assert len(waveform) == 12_800


def _read_all(table: RowTable) -> list[bytes | Path]:
    return [encoded(row.audio) for row in table]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_repository_crosses_into_loader_processes(method: str, parquet_repository: Path) -> None:
    table = read_source(Source(str(parquet_repository), format="hub", columns=COLUMNS, language="en"))
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_read_all, (table,)) == [_flac(i) for i in range(5)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_tar_shards_cross_into_loader_processes(method: str, shards: Path) -> None:
    table = read_source(Source(str(shards), language="en"))
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_read_all, (table,)) == [_flac(i) for i in range(5)]


def test_a_shard_that_is_cut_off_is_listed_and_the_others_are_read(shards: Path) -> None:
    first = shards.with_name("speech-00.tar")
    with tarfile.open(first) as tar:
        start = tar.getmember("clip2.flac").offset
    first.write_bytes(first.read_bytes()[: start + 700])  # within the third clip
    table = read_source(Source(str(shards), language="en"))
    assert [row.text for row in table][-2:] == ["four", "five"]
    assert [row.text for row in table][:2] == ["one", "two"]
    assert len(table) + len(table.rejected) == table.num_lines
    assert table.rejected


def test_members_of_shards_that_make_no_clip_are_listed(tmp_path: Path) -> None:
    contents = [("a.wav", b"x"), ("a.txt", b"eins"), ("b.txt", b"no clip"), ("c.wav", b"x"), ("c.json", b"{")]
    contents += [("d.wav", b"x"), ("d.txt", b"\xff"), ("e.wav", b"x"), ("f/a.wav", b"x"), ("f/a.txt", b"sechs")]
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in contents:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    table = read_source(Source(str(tmp_path / "s.tar"), language="de"))
    assert [(row.text, row.line) for row in table] == [("eins", 1), ("sechs", 6)]
    assert [(record.line, record.code) for record in table.rejected] == [(2, "A01"), (3, "M01"), (4, "T01"), (5, "M01")]


def test_a_cell_is_bytes_or_the_file_it_names(write_clip: Callable[..., Path], tmp_path: Path) -> None:
    clip = write_clip()
    assert audio_bytes({"bytes": b"abc", "path": str(clip)}) == b"abc"
    assert audio_bytes({"bytes": None, "path": str(clip)}) == clip.read_bytes()
    assert audio_bytes(None) == b""
    with pytest.raises(FileNotFoundError):
        audio_bytes({"bytes": None, "path": str(tmp_path / "gone.wav")})


def test_what_cannot_be_opened_says_what_to_do(parquet_repository: Path, tmp_path: Path) -> None:
    for source in (
        Source("nobody/has-this-one", format="hub"),
        Source(str(parquet_repository), format="hub", split="validation"),
        Source(str(parquet_repository), format="hub", config="de"),
    ):
        with pytest.raises(
            (ValueError, FileNotFoundError), match=r"cannot be opened: .*give the folder of a local copy"
        ):
            read_source(source)
    with pytest.raises(FileNotFoundError, match=r"no tar file matches .*none-\*\.tar"):
        read_source(Source(str(tmp_path / "none-*.tar")))
    with pytest.raises(ValueError, match=r"has no audio column sound; it has audio, sentence, client_id; name it in"):
        read_source(Source(str(parquet_repository), format="hub", columns={"audio": "sound"}))
