"""Every line of a manifest is taken or rejected, with the right code and line; nothing is lost, nothing guessed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from data.loaders import append_quarantine
from data.manifest import Manifest, Segment, admit, read_manifest
from data.reasons import Reason, summarise

GOOD = {"audio": "clip.wav", "text": "one", "language": "en"}


def _line(**changes: object) -> str:
    """Return a good line with some fields changed; None drops the field."""
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not None})


def _rejected(manifest: Manifest) -> list[tuple[int, str]]:
    return [(record.line, record.code) for record in manifest.rejected]


BAD_LINES = {
    "audio missing": (_line(audio=None), "M01"),
    "text missing": (_line(text=None), "M01"),
    "language missing": (_line(language=None), "M01"),
    "audio is a number": (_line(audio=3), "M01"),
    "text is a list": (_line(text=["one"]), "M01"),
    "text is true": (_line(text=True), "M01"),
    "id is a number": (_line(id=7), "M01"),
    "prompt is an object": (_line(prompt={}), "M01"),
    "duration is text": (_line(duration_s="1.0"), "M01"),
    "duration is true": (_line(duration_s=True), "M01"),
    "duration below 0": (_line(duration_s=-0.1), "M01"),
    "duration NaN": ('{"audio": "clip.wav", "text": "x", "language": "en", "duration_s": NaN}', "M01"),
    "offset Infinity": ('{"audio": "clip.wav", "text": "x", "language": "en", "offset_s": Infinity}', "M01"),
    "duration 1e999": ('{"audio": "clip.wav", "text": "x", "language": "en", "duration_s": 1e999}', "M01"),
    "duration of 400 digits": (_line().replace("}", f', "duration_s": {"9" * 400}}}'), "M01"),
    "duration of 5000 digits": (_line().replace("}", f', "duration_s": {"9" * 5000}}}'), "M01"),
    "key twice": ('{"audio": "clip.wav", "text": "x", "text": "y", "language": "en"}', "M01"),
    "not JSON": ("{'audio': 1}", "M01"),
    "cut off": ('{"audio": "clip.wav", "te', "M01"),
    "a list": ("[1, 2]", "M01"),
    "a number": ("3", "M01"),
    "null": ("null", "M01"),
    "nested without end": ("[" * 100_000, "M01"),
    "NUL in the path": (_line(audio="a\0b.wav"), "M01"),
    "segments no list": (_line(segments="0-1"), "M01"),
    "segment no object": (_line(segments=[3]), "M01"),
    "segment without end": (_line(segments=[{"start": 0, "text": "a"}]), "M01"),
    "segment without text": (_line(segments=[{"start": 0, "end": 1}]), "M01"),
    "segment backwards": (_line(segments=[{"start": 1, "end": 0.5, "text": "a"}]), "M01"),
    "segments overlap": (
        _line(segments=[{"start": 0, "end": 1, "text": "a"}, {"start": 0.5, "end": 2, "text": "b"}]),
        "M01",
    ),
    "half a surrogate pair": ('{"audio": "clip.wav", "text": "\\ud800", "language": "en"}', "T01"),
    "half a pair as id": ('{"id": "\\udc00", "audio": "clip.wav", "text": "x", "language": "en"}', "T01"),
    "http": (_line(audio="https://example.org/a.wav"), "M07"),
    "file url": (_line(audio="file:///clip.wav"), "M07"),
    "data url": (_line(audio="data:audio/wav;base64,UklGRg=="), "M07"),
    "file missing": (_line(audio="none.wav"), "A01"),
    "name too long": (_line(audio="a" * 300 + ".wav"), "A01"),
    "home of nobody": (_line(audio="~no-such-user-here/clip.wav"), "A01"),
    "a folder": (_line(audio="."), "A18"),
    "language by name": (_line(language="german"), "T08"),
    "language unknown": (_line(language="xx"), "T08"),
    "language in capitals": (_line(language="EN"), "T08"),
    "task": (_line(task="summarise"), "T10"),
    "text empty": (_line(text=""), "T03"),
    "text of spaces": (_line(text=" \t\u3000\n"), "T03"),
}


@pytest.mark.parametrize("name", list(BAD_LINES))
def test_bad_line_has_its_code_and_line(
    name: str, write_clip: Callable[..., Path], write_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    write_clip()
    raw, code = BAD_LINES[name]
    manifest = read_manifest(write_manifest([_line(id="before"), raw, _line(id="after")]))
    assert _rejected(manifest) == [(2, code)]
    assert [(row.id, row.line) for row in manifest.rows] == [("before", 1), ("after", 3)]
    assert manifest.num_lines == 3
    append_quarantine(tmp_path / "quarantine.jsonl", manifest.rejected)  # the record of a bad line must be writable
    record = json.loads((tmp_path / "quarantine.jsonl").read_text(encoding="utf-8"))
    assert (record["line"], record["code"]) == (2, code)
    assert record["manifest"] == str(manifest.path)


def test_all_bad_lines_together_are_all_counted(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip()
    manifest = read_manifest(write_manifest([raw for raw, _ in BAD_LINES.values()] + [_line()]))
    assert [code for _, code in _rejected(manifest)] == [code for _, code in BAD_LINES.values()]
    assert [line for line, _ in _rejected(manifest)] == list(range(1, len(BAD_LINES) + 1))
    assert len(manifest.rows) == 1
    assert manifest.num_lines == len(BAD_LINES) + 1


def test_bytes_that_are_no_utf8_are_rejected_with_their_place(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip()
    path = tmp_path / "m.jsonl"
    path.write_bytes(_line(id="a").encode() + b'\n{"audio": "\xff"}\n' + _line(id="b").encode())
    manifest = read_manifest(path)
    assert _rejected(manifest) == [(2, "T01")]
    assert "byte 11" in manifest.rejected[0].message
    assert [row.id for row in manifest.rows] == ["a", "b"]


def test_utf16_is_rejected_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes((_line() + "\n").encode("utf-16"))
    manifest = read_manifest(path)
    assert not manifest.rows
    assert _rejected(manifest)[0] == (1, "T01")


def test_bom_crlf_blank_lines_and_no_last_newline_are_accepted(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip()
    path = tmp_path / "m.jsonl"
    lines = [_line(id="a"), "", "   ", _line(id="b", text="你好"), "\t", _line(id="c")]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    manifest = read_manifest(path)
    assert [(row.id, row.line) for row in manifest.rows] == [("a", 1), ("b", 4), ("c", 6)]
    assert manifest.num_lines == 3


def test_a_byte_order_mark_is_taken_off_the_first_line_only(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip()
    path = tmp_path / "m.jsonl"
    path.write_bytes(_line().encode() + b"\n\xef\xbb\xbf" + _line(id="b").encode())
    assert _rejected(read_manifest(path)) == [(2, "M01")]


def test_duplicate_id_names_the_first_line(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip()
    manifest = read_manifest(write_manifest([_line(id="x"), _line(id="y"), _line(id="x", text="two")]))
    assert _rejected(manifest) == [(3, "M02")]
    assert "line 1" in manifest.rejected[0].message
    assert manifest.rejected[0].id == "x"


def test_an_id_of_a_rejected_line_is_free(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> None:
    write_clip()
    manifest = read_manifest(write_manifest([_line(id="x", text=""), _line(id="x")]))
    assert _rejected(manifest) == [(1, "T03")]
    assert [row.line for row in manifest.rows] == [2]


def test_default_id_is_the_path_and_offset(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip("audio/clip.wav")
    lines = [
        _line(audio="audio/clip.wav"),
        _line(audio="audio/clip.wav", offset_s=1.5),
        _line(audio="audio/clip.wav", id="", offset_s=2),
    ]
    manifest = read_manifest(write_manifest(lines))
    assert [row.id for row in manifest.rows] == ["audio/clip.wav", "audio/clip.wav@1.5", "audio/clip.wav@2"]


def test_every_field_arrives(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> None:
    clip = write_clip("audio/clip.wav")
    fields = {
        "id": "a",
        "audio": "audio/clip.wav",
        "text": "  bonjour \n",
        "language": "fr",
        "task": "translate",
        "duration_s": 1,
        "offset_s": 0.25,
        "segments": [{"start": 0.25, "end": 0.5, "text": "bon"}, {"start": 0.5, "end": 1, "text": "jour"}],
        "prompt": "avant",
        "speaker": "s1",
        "licence": "ignored",
    }
    row = read_manifest(write_manifest([fields])).rows[0]
    assert (row.id, row.audio, row.text, row.language, row.task) == ("a", clip, "bonjour", "fr", "translate")
    assert (row.duration_s, row.offset_s, row.prompt, row.speaker, row.line) == (1.0, 0.25, "avant", "s1", 1)
    assert row.segments == (Segment(0.25, 0.5, "bon"), Segment(0.5, 1.0, "jour"))
    plain = read_manifest(write_manifest([{**GOOD, "audio": "audio/clip.wav"}])).rows[0]
    assert (plain.task, plain.duration_s, plain.offset_s, plain.segments) == ("transcribe", None, None, ())


def test_audio_is_found_beside_the_manifest_not_the_working_directory(
    tmp_path: Path,
    write_clip: Callable[..., Path],
    write_manifest: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = write_clip("corpus/clip.wav")
    manifest = write_manifest([GOOD], name="corpus/train.jsonl")
    monkeypatch.chdir(tmp_path)
    assert read_manifest(manifest.relative_to(tmp_path)).rows[0].audio == clip


def test_unknown_language_offers_the_nearest_code(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip()
    near = {"german": "de", "EN": "en", "zh-CN": "zh", "pt_BR": "pt", "Japanese": "ja", "japanse": "ja"}
    manifest = read_manifest(write_manifest([_line(language=given) for given in near]))
    for record, code in zip(manifest.rejected, near.values(), strict=True):
        assert f"did you mean {code!r}" in record.message


@pytest.mark.parametrize("content", [b"", b"\n\n  \r\n", b"\xef\xbb\xbf"])
def test_empty_manifest_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is empty"):
        read_manifest(path)


def test_missing_manifest_and_folder_are_errors_that_say_what_to_type(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"dataset\.train="):
            read_manifest(path)


@pytest.fixture
def one_in_four(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> Manifest:
    write_clip()
    return read_manifest(write_manifest([_line(id="a"), _line(text=""), _line(id="c"), _line(id="d")]))


def test_admit_takes_the_rows_up_to_the_share(one_in_four: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert admit(one_in_four, strict=False, max_bad_share=0.25) == one_in_four.rows
    assert "1 of 4" in caplog.text
    with pytest.raises(ValueError, match=r"max_bad_share=0\.24"):
        admit(one_in_four, strict=False, max_bad_share=0.24)


def test_admit_message_has_file_line_and_code(one_in_four: Manifest) -> None:
    with pytest.raises(ValueError, match="held-out set must be whole") as e:
        admit(one_in_four, strict=True, max_bad_share=1.0)
    assert f"{one_in_four.path}:2: [T03]" in str(e.value)
    assert "1 of 4 lines" in str(e.value)


def test_admit_needs_at_least_one_row(write_manifest: Callable[..., Path]) -> None:
    manifest = read_manifest(write_manifest([_line(), _line()]))
    with pytest.raises(ValueError, match="2 of 2"):
        admit(manifest, strict=False, max_bad_share=1.0)


def test_admit_is_silent_on_a_clean_manifest(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    write_clip()
    manifest = read_manifest(write_manifest([GOOD]))
    with caplog.at_level(logging.DEBUG):
        assert admit(manifest, strict=True, max_bad_share=0.0) == manifest.rows
    assert not caplog.records


def test_codes_are_unique_and_the_summary_counts_them(write_manifest: Callable[..., Path]) -> None:
    assert len({reason.code for reason in Reason}) == len(Reason)
    manifest = read_manifest(write_manifest([_line(text="")] * 6 + [_line(language="xx")]))
    text = summarise(manifest.rejected, num_shown=2)
    assert text.startswith("T03 x6, T08 x1\n")
    assert text.endswith("... and 5 more")
