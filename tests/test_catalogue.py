"""The catalogue of bad input: one fixture a code, and what becomes of it.

`taken` are good in spite of what is special about them; `refused` are left out when a source is opened, `unread` when a
clip is read; `said` are taken, and named by the pre-flight. Codes that concern no row are tested at the end.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from conftest import tone

from data.audio import load_waveform
from data.dataset import Clips, open_clips
from data.labels import LabelBuilder
from data.mixture import every_clip
from data.plan import BatchSize, EpochPlan
from data.preflight.columns import Split
from data.preflight.findings import Finding
from data.preflight.report import ReportOptions, build_report
from data.preflight.scan import scan_corpus
from data.probe import find_format
from data.reader import ClipReader
from data.reasons import Reason, Rejected
from data.rows import JoinedRows
from data.sources import Source, read_source
from data.windows import Windows

Make = Callable[[Path], dict[str, Any] | bytes]
GOOD = {"audio": "good.wav", "text": "one", "language": "en"}


def _write(name: str, samples: np.ndarray, rate: int = 16_000, **options: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        soundfile.write(folder / name, samples, rate, **options)
        return {"audio": name}

    return make


def _bytes(name: str, change: Callable[[bytes], bytes], **fields: Any) -> Make:
    """Write the good clip with its bytes changed."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(change((folder / "good.wav").read_bytes()))
        return {"audio": name, **fields}

    return make


def _fields(**fields: Any) -> Make:
    return lambda folder: fields


def _raw(line: str | bytes) -> Make:
    return lambda folder: line.encode() if isinstance(line, str) else line


def _m4a(folder: Path) -> dict[str, Any]:
    with av.open(str(folder / "clip.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return {"audio": "clip.m4a"}


def _fifo(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "fifo.wav")
    return {"audio": "fifo.wav"}


def _bomb(folder: Path) -> dict[str, Any]:
    """A hundred seconds of silence in a few kilobytes, in a container whose header cannot say so."""
    soundfile.write(folder / "bomb.flac", np.zeros(100 * 16_000, np.float32), 16_000)
    return {"audio": "bomb.flac", "duration_s": 1.0}


def _other_form(folder: Path) -> dict[str, Any]:
    soundfile.write(folder / unicodedata.normalize("NFD", "é.wav"), tone(1.0), 16_000)
    return {"audio": unicodedata.normalize("NFC", "é.wav")}


LOUD = np.clip(4 * tone(1.0), -1, 1)
TAKEN: dict[str, Make] = {
    "A08 44.1 kHz": _write("a.wav", tone(1.0, sampling_rate=44_100), 44_100),
    "A09 stereo": _write("a.wav", np.stack([tone(1.0)] * 2, axis=1)),
    "A12 8 bits": _write("a.wav", tone(1.0), subtype="PCM_U8"),
    "A12 float": _write("a.wav", tone(1.0), subtype="FLOAT"),
    "A12 mu-law": _write("a.wav", tone(1.0), subtype="ULAW"),
    "A12 AIFF": _write("a.aiff", tone(1.0)),
    "A12 W64": _write("a.w64", tone(1.0)),
    "A13 MP3": _write("a.mp3", tone(1.0)),
    "A13 Ogg/Opus": _write("a.opus", tone(1.0), format="OGG", subtype="OPUS"),
    "A13 FLAC": _write("a.flac", tone(1.0)),
    "A14 M4A": _m4a,
    "A17 FLAC by the name of WAV": _write("a.wav", tone(1.0), format="FLAC"),
    "T02 NFD": _fields(text=unicodedata.normalize("NFD", "café")),
    "M01 a field of others": _fields(gender="f"),
    "M05 relative to the manifest": _fields(audio="./good.wav"),
    "M06 absolute": lambda folder: {"audio": str(folder / "good.wav")},
    "M12 name in the other Unicode form": _other_form,
}
REFUSED: dict[str, Make] = {
    "A01": _fields(audio="gone.wav"),
    "A02": _write("a.wav", np.zeros(0, np.float32)),
    "A03": _bytes("a.wav", lambda content: content[:-8000]),
    "A04": _bytes("a.wav", lambda content: b"RIFF, and no more"),
    "A08": _write("a.wav", tone(1.0), 1000),
    "A09": _write("a.wav", np.stack([tone(1.0)] * 9, axis=1)),
    "A10": _fields(duration_s=31.0),
    "A11": _write("a.wav", tone(0.05)),
    "A18": _fifo,
    "T01": _raw(b'{"audio": "good.wav", "text": "\xff", "language": "en"}'),
    "T02": _fields(text="a\0b"),
    "T03": _fields(text="…"),
    "T04": _fields(text="a" * 100),
    "T07": _fields(text="so <|en|> it is"),
    "T08": _fields(language="german"),
    "M01": _raw('{"audio": "good.wav", "text": "a", "text": "b", "language": "en"}'),
    "M02": _fields(id="before"),
    "M07": _fields(audio="https://example.org/a.wav"),
}
UNREAD: dict[str, Make] = {
    "A05": _write("a.wav", np.where(np.arange(16_000) == 99, np.nan, tone(1.0)), subtype="FLOAT"),
    "A06": _write("a.wav", np.full(16_000, 0.25, np.float32)),
    "A15": _write("a.wav", 32_000 * tone(1.0), subtype="FLOAT"),
    "M08 A16 as long as the header says": _bomb,
    "A03 M08 shorter than stated": _fields(duration_s=3.0),
    "M11": _fields(audio="changing.wav"),
}
SAID: dict[str, Make] = {
    "A07": _write("a.wav", LOUD),
    "A09": _write("a.wav", np.stack([tone(1.0), -tone(1.0)], axis=1)),
    "A17": _write("a.wav", tone(1.0), format="FLAC"),
    "T06": _fields(text="far too many words for one second of speech"),
    "T09": _fields(text="привет"),
    "M03": lambda folder: {"audio": "good.wav", "text": "two"},
    "M06": lambda folder: {"audio": str(_elsewhere(folder))},
    "M06 by the way of ..": lambda folder: {"audio": f"../{_elsewhere(folder).name}"},
}


def _elsewhere(folder: Path) -> Path:
    """Write a clip outside the folder, under a name that begins like the folder's."""
    other = folder.parent / f"{folder.name} elsewhere.wav"
    soundfile.write(other, tone(1.0, seed=3), 16_000)
    return other


@pytest.fixture
def builder(tokenizer: Any) -> LabelBuilder:
    return LabelBuilder(tokenizer, max_positions=64)


def _manifest(folder: Path, make: Make) -> Path:
    """Write a good line, the one of the code, and another good one."""
    for name in ("good.wav", "changing.wav"):
        soundfile.write(folder / name, tone(1.0), 16_000)
    soundfile.write(folder / "last.wav", tone(1.0, seed=2), 16_000)
    made = make(folder)
    line = made if isinstance(made, bytes) else json.dumps({**GOOD, "id": "it", **made}).encode()
    before = json.dumps({**GOOD, "id": "before"}).encode()
    after = json.dumps({**GOOD, "id": "after", "audio": "last.wav"}).encode()
    path = folder / "train.jsonl"
    path.write_bytes(b"\n".join([before, line, after]))
    return path


def _open(path: Path, builder: LabelBuilder) -> Clips:
    return open_clips([Source(str(path))], builder, on_bad="report", max_bad_share=0.0)


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str, tmp_path: Path, builder: LabelBuilder) -> None:
    clips = _open(_manifest(tmp_path, TAKEN[name]), builder)
    assert clips.rejected == ()
    waveform = ClipReader(clips.rows, cache_gib=0.0).read(1)
    assert isinstance(waveform, np.ndarray) and waveform.shape[0] == pytest.approx(16_000, abs=1700)


@pytest.mark.parametrize("code", REFUSED)
def test_refused_when_a_source_is_opened(code: str, tmp_path: Path, builder: LabelBuilder) -> None:
    path = _manifest(tmp_path, REFUSED[code])
    clips = _open(path, builder)
    (record,) = clips.rejected
    assert (record.code, record.line, record.manifest) == (code, 2, str(path))
    assert record.byte_offset == path.read_bytes().index(b"\n") + 1
    assert str(record).startswith(f"{path}:2: [{code}] ")
    assert [row.id for row in clips.rows] == ["before", "after"]


@pytest.mark.parametrize("name", UNREAD)
def test_refused_when_its_clip_is_read(name: str, tmp_path: Path, builder: LabelBuilder) -> None:
    clips = _open(_manifest(tmp_path, UNREAD[name]), builder)
    (tmp_path / "changing.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:-2] + b"\0\1\0\1")
    reader = ClipReader(clips.rows, cache_gib=0.0)
    record = reader.read(1)
    assert isinstance(record, Rejected)
    assert (record.code, record.line) == (name.split()[0], 2)
    assert record.byte_offset is not None
    assert reader.read(1) is record  # and never again


def _findings(path: Path, builder: LabelBuilder, tmp_path: Path, **splits: Path) -> tuple[Finding, ...]:
    named = {"train": path, **splits}
    read = [
        Split(name, JoinedRows([read_source(Source(str(p)))]), is_windowed=name != "test") for name, p in named.items()
    ]
    scan = scan_corpus(read, cache_path=tmp_path / "scan.jsonl", label_builder=builder, num_workers=0)
    return build_report(scan, ReportOptions(edges_s=(5.0, 30.0))).findings


@pytest.mark.parametrize("name", SAID)
def test_said_by_the_pre_flight(name: str, tmp_path: Path, builder: LabelBuilder) -> None:
    """And of good lines nothing is said."""
    code = name.split()[0]
    found = _findings(_manifest(tmp_path, SAID[name]), builder, tmp_path)
    assert code in {finding.code for finding in found}
    finding = next(finding for finding in found if finding.code == code)
    assert [example.where.rsplit(":", 1)[1] for example in finding.examples] == ["2"]
    good = _findings(_manifest(tmp_path, _fields(audio="last.wav", text="three")), builder, tmp_path)
    assert code not in {finding.code for finding in good} - {"M03"}


def test_m04_leakage_is_an_error(tmp_path: Path, builder: LabelBuilder) -> None:
    path = _manifest(tmp_path, _fields())
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({**GOOD, "text": "another"}))
    assert ("M04", "error") in {(f.code, f.level) for f in _findings(path, builder, tmp_path, test=test)}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_m09_what_ends_lines_and_packs_files_does_not_matter(
    end: str, is_packed: bool, tmp_path: Path, builder: LabelBuilder
) -> None:
    path = _manifest(tmp_path, _fields())
    content = path.read_bytes().replace(b"\n", end.encode())
    path = tmp_path / ("other.jsonl.gz" if is_packed else "other.jsonl")
    path.write_bytes(gzip.compress(content) if is_packed else content)
    assert len(_open(path, builder)) == 3


def test_m09_an_empty_manifest_is_an_error(tmp_path: Path, builder: LabelBuilder) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        _open(tmp_path / "empty.jsonl", builder)


def test_m10_fewer_clips_than_processes_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 clips to train on are too few for 4 processes"):
        EpochPlan(np.ones(3), every_clip(3), windows=Windows((5.0, 30.0)), size=BatchSize(1, world_size=4), seed=0)


def test_m12_the_other_unicode_form_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_source(Source(str(_manifest(tmp_path, _other_form))))
    assert "1 audio files have their names in another Unicode form" in caplog.text


def test_a16_decoding_stops_at_the_limit(tmp_path: Path) -> None:
    """Whatever the header says: 100 s are never in memory."""
    _bomb(tmp_path)
    with pytest.raises(ValueError, match="A10"):
        load_waveform(tmp_path / "bomb.flac")


def test_a17_the_format_is_found_by_content(tmp_path: Path) -> None:
    _write("a.mp3", tone(1.0), format="WAV")(tmp_path)
    assert find_format(tmp_path / "a.mp3") == "wav"


def test_t05_ids_beyond_the_model_are_an_error(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        LabelBuilder(tokenizer, max_positions=64, vocabulary_size=100)


def test_every_code_of_the_program_is_in_a_table() -> None:
    """`T10`, `T11` and `L01` are our own: a task, a segment's time, a loss; see `test_ingest` and `test_loop`."""
    named = " ".join([*TAKEN, *REFUSED, *UNREAD, *SAID])
    assert {reason.code for reason in Reason} - set(named.split()) == {"T10", "T11", "L01"}
