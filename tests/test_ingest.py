"""accepted + quarantined + rejected = lines, whatever is planted; too much of it stops, by lines and by hours."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import tone

from data.dataset import Clips, open_clips
from data.ingest import Ingest, admit, admit_all
from data.labels import LabelBuilder
from data.reasons import LINE_FAULTS
from data.rows import RowTable
from data.sources import Source, read_source

GOOD = {"audio": "clip.wav", "text": "one", "language": "en"}


def _line(**changes: object) -> str:
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not None})


PLANTS: list[tuple[str, str]] = [  # every code that is decided before a clip is decoded
    ("A01", _line(audio="none.wav")),
    ("A02", _line(audio="empty.wav")),
    ("A03", _line(offset_s=5.0)),
    ("A04", _line(audio="broken.wav")),
    ("A08", _line(audio="slow.wav")),
    ("A09", _line(audio="many.wav")),
    ("A10", _line(duration_s=31.0)),
    ("A11", _line(audio="short.wav")),
    ("A18", _line(audio=".")),
    ("M01", "{"),
    ("M02", _line(id="first")),
    ("M07", _line(audio="https://example.org/a.wav")),
    ("T01", _line(text="Q").replace("Q", "\\ud800")),
    ("T02", _line(text="a\x00b")),
    ("T03", _line(text=" … ")),
    ("T04", _line(text="a" * 100)),
    ("T07", _line(text="<|en|>")),
    ("T08", _line(language="xx")),
    ("T10", _line(task="sing")),
    ("T11", _line(segments=[{"start": 0, "end": 40, "text": "a"}])),
]


@pytest.fixture
def audio(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip("clip.wav", 1.0)
    write_clip("short.wav", 0.05)
    write_clip("slow.wav", 1.0, sampling_rate=2000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(tmp_path / "many.wav", np.zeros((8000, 9), np.float32), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but no more than that")


@pytest.fixture
def builder(tokenizer: Any) -> LabelBuilder:
    return LabelBuilder(tokenizer, max_positions=64)


def _open(path: Path, builder: LabelBuilder, *, on_bad: str = "report", share: float = 0.0) -> Clips:
    return open_clips([Source(str(path))], builder, on_bad=on_bad, max_bad_share=share)


@pytest.mark.usefixtures("audio")
@pytest.mark.parametrize("seed", range(5))
def test_every_plant_is_found_with_its_code_and_line_and_nothing_is_lost(
    seed: int, write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    rng = random.Random(seed)
    lines = rng.choices(PLANTS, k=40) + [("", _line(id=f"good {i}", duration_s=1.0)) for i in range(30)]
    rng.shuffle(lines)
    lines.insert(0, ("", _line(id="first")))
    # Ids of their own, but where a plant is about ids: else most would be bad for being there twice.
    raws = [
        raw if "id" in raw or raw == "{" else raw.replace("{", f'{{"id": "p{i}", ', 1)
        for i, (_, raw) in enumerate(lines)
    ]
    path = write_manifest(raws)
    (account,) = _open(path, builder).ingest
    expected = {line: code for line, (code, _) in enumerate(lines, start=1) if code}
    assert {record.line: record.code for record in account.rejected} == expected
    assert [record.line for record in account.rejected] == sorted(expected)
    num_line_faults = sum(code in LINE_FAULTS for code in expected.values())
    assert (account.num_lines, account.num_accepted) == (71, 31)
    assert (account.num_rejected, account.num_quarantined) == (num_line_faults, 40 - num_line_faults)
    assert account.num_accepted + account.num_quarantined + account.num_rejected == account.num_lines
    assert account.accepted_s == pytest.approx(31.0)
    assert account.describe() == (
        f"{path}: 71 lines = 31 accepted + {40 - num_line_faults} quarantined + {num_line_faults} rejected"
    )
    content = path.read_bytes()
    for record in account.rejected:
        if record.byte_offset is not None:
            assert content[record.byte_offset :].splitlines()[0].decode() == raws[record.line - 1]
        else:
            assert record.code not in LINE_FAULTS


def test_a_recording_is_one_line_whatever_becomes_of_it(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    """70 s in three windows and one segment that is in none; 62 s of which nothing can be used; and a plain clip."""
    write_clip("long.wav", 70.0)
    write_clip("clip.wav", 1.0)
    spoken = [{"start": i * 10, "end": i * 10 + 10, "text": f"part {i}"} for i in range(6)]
    backwards = {"start": 65, "end": 75, "text": "behind the end"}
    rows = [
        {**GOOD, "audio": "long.wav", "id": "cut", "segments": [*spoken, backwards]},
        {**GOOD, "id": "plain"},
        {**GOOD, "audio": "long.wav", "id": "none", "segments": [{"start": 0, "end": 60, "text": "too long"}]},
    ]
    clips = _open(write_manifest(rows), builder)
    (account,) = clips.ingest
    assert (account.num_lines, account.num_accepted, account.num_quarantined, account.num_rejected) == (3, 2, 1, 0)
    assert {(record.line, record.code) for record in account.rejected} == {(1, "T11"), (3, "A10")}
    assert [row.line for row in clips.rows] == [1] * (len(clips) - 1) + [2]


def _table(read: RowTable, bad: int) -> tuple[RowTable, RowTable]:
    """Return the table and one in which the first rows are listed instead."""
    from data.reasons import Reason
    from data.rows import reject_row

    return read, read.replace(
        read.table.slice(bad), [reject_row(read[i], Reason.AUDIO_CORRUPT, "x") for i in range(bad)]
    )


@pytest.mark.usefixtures("audio")
def test_hours_count_as_lines_do(write_manifest: Callable[..., Path]) -> None:
    """One line of ten is a tenth of the lines and three quarters of the hours."""
    rows = [{**GOOD, "id": str(i), "duration_s": 27.0 if i == 0 else 1.0} for i in range(10)]
    account = Ingest.of(*_table(read_source(Source(str(write_manifest(rows)))), 1))
    assert (account.accepted_s, account.quarantined_s) == (9.0, 27.0)
    assert account.bad_share == 0.75
    admit(account, on_bad="quarantine", max_bad_share=0.75)
    with pytest.raises(ValueError, match=r"1 of 10 lines .*max_bad_share=0\.74 of the lines or of the hours"):
        admit(account, on_bad="quarantine", max_bad_share=0.74)
    rows = [{**GOOD, "id": str(i), "duration_s": 1.0 if i == 0 else 27.0} for i in range(10)]
    assert Ingest.of(*_table(read_source(Source(str(write_manifest(rows)))), 1)).bad_share == pytest.approx(0.1)


@pytest.fixture
def one_in_four(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> Ingest:
    write_clip()
    table = read_source(Source(str(write_manifest([_line(id="a"), _line(text=""), _line(id="c"), _line(id="d")]))))
    return Ingest.of(table, table)


def test_quarantine_goes_on_up_to_the_share(one_in_four: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        admit(one_in_four, on_bad="quarantine", max_bad_share=0.25)
    assert "4 lines = 3 accepted + 1 quarantined + 0 rejected" in caplog.text
    with pytest.raises(ValueError, match=r"max_bad_share=0\.24"):
        admit(one_in_four, on_bad="quarantine", max_bad_share=0.24)


def test_strict_stops_with_file_line_and_code(one_in_four: Ingest) -> None:
    with pytest.raises(ValueError, match="every line must be good here") as e:
        admit(one_in_four, on_bad="strict", max_bad_share=1.0)
    assert f"{one_in_four.path}:2: [T03]" in str(e.value)
    assert "1 of 4 lines" in str(e.value)


def test_report_only_says_it(one_in_four: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        admit(one_in_four, on_bad="report", max_bad_share=0.0)
    assert "T03 x1" in caplog.text


def test_an_unknown_mode_is_refused(one_in_four: Ingest) -> None:
    with pytest.raises(ValueError, match=r"dataset\.on_bad=ignore must be one of strict, quarantine, report"):
        admit(one_in_four, on_bad="ignore", max_bad_share=0.0)


@pytest.mark.parametrize("on_bad", ["strict", "quarantine", "report"])
def test_at_least_one_row_must_be_left(on_bad: str, write_manifest: Callable[..., Path], builder: LabelBuilder) -> None:
    with pytest.raises(ValueError, match="2 of 2"):
        _open(write_manifest([_line(), _line()]), builder, on_bad=on_bad, share=1.0)


def test_a_clean_source_is_taken_in_silence(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    write_clip()
    table = read_source(Source(str(write_manifest([GOOD]))))
    with caplog.at_level(logging.DEBUG):
        admit_all([table])
    assert not caplog.records


def test_held_out_sets_must_be_whole(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> None:
    write_clip()
    whole = read_source(Source(str(write_manifest([GOOD]))))
    holed = read_source(Source(str(write_manifest([GOOD, _line(id="x", audio="none.wav")], "holed.jsonl"))))
    with pytest.raises(ValueError, match=r"holed\.jsonl:2: \[A01\]"):
        admit_all([whole, holed])


def test_hours_of_lines_that_do_not_state_them_count(tmp_path: Path, tokenizer) -> None:
    """One line of two hundred is lost, and with it most of the hours: its length is known once it was looked up."""
    soundfile.write(tmp_path / "short.wav", tone(0.2), 16_000)
    soundfile.write(tmp_path / "long.wav", np.tile(tone(10.0), 12), 16_000)
    rows = [{"audio": "short.wav", "id": f"{i}", "text": "one", "language": "en"} for i in range(199)]
    rows.append({"audio": "long.wav", "id": "long", "text": "one", "language": "en"})
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    builder = LabelBuilder(tokenizer, max_positions=448)
    with pytest.raises(ValueError, match="of the lines or of the hours"):
        open_clips([Source(str(path))], builder, on_bad="quarantine", max_bad_share=0.01)
    account = open_clips([Source(str(path))], builder, on_bad="report", max_bad_share=0.01).ingest[0]
    assert account.quarantined_s == pytest.approx(120.0)


def test_hours_of_lines_that_became_no_row_count(tmp_path: Path, tokenizer) -> None:
    """Their text, id or language is at fault; how long their audio is, is found all the same."""
    soundfile.write(tmp_path / "short.wav", tone(0.2), 16_000)
    soundfile.write(tmp_path / "long.wav", np.tile(tone(10.0), 2), 16_000)
    good = [{"audio": "short.wav", "id": f"{i}", "text": "one", "language": "en"} for i in range(600)]
    builder = LabelBuilder(tokenizer, max_positions=448)
    path = tmp_path / "train.jsonl"
    for i, bad in enumerate(({"text": "…"}, {"language": "xx"}, {"id": "0"}, {"duration_s": 20.0, "text": ""})):
        row = {"audio": "long.wav", "id": "long", "text": "one", "language": "en", **bad}
        path.write_text("\n".join(json.dumps(row) for row in [*good, row]))
        with pytest.raises(ValueError, match=r"1 of 601 lines .* of the lines or of the hours"):
            open_clips([Source(str(path))], builder, on_bad="quarantine", max_bad_share=0.01)
        account = open_clips([Source(str(path))], builder, on_bad="report", max_bad_share=0.01).ingest[0]
        assert account.quarantined_s == pytest.approx(20.0), i
        assert account.accepted_s == pytest.approx(120.0)
    row = {"audio": "gone.wav", "id": "long", "text": "one", "language": "en"}  # there is nothing to measure
    path.write_text("\n".join(json.dumps(row) for row in [*good, row]))
    account = open_clips([Source(str(path))], builder, on_bad="quarantine", max_bad_share=0.01).ingest[0]
    assert account.quarantined_s == 0.0
