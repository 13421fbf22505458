"""Every line of a manifest is taken or rejected, with the right code and line; nothing is lost, nothing guessed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from conftest import tone

from data.reasons import Reason, summarise
from data.rows import RowTable, Segment
from data.sources import Source, read_source
from train.quarantine import append_quarantine

GOOD = {"audio": "clip.wav", "text": "one", "language": "en"}


def _line(**changes: object) -> str:
    """Return a good line with some fields changed; None drops the field."""
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not None})


def _read(path: Path) -> RowTable:
    return read_source(Source(str(path)))


def _rejected(manifest: RowTable) -> list[tuple[int, str]]:
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
    "control character in a segment": (_line(segments=[{"start": 0, "end": 1, "text": "a\x07"}]), "T02"),
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
    "text of punctuation": (_line(text="… ?!"), "T03"),
    "text with NUL": (_line(text="a\0b"), "T02"),
    "text with an escape": (_line(text="a\x1b[0m"), "T02"),
    "text that a decoder gave up on": (_line(text="caf\ufffd"), "T02"),
    "control character in the prompt": (_line(prompt="a\x07"), "T02"),
    "no speech, and yet a text": (_line(no_speech=True), "M01"),
    "no speech by word": (_line(no_speech="yes"), "M01"),
}


@pytest.mark.parametrize("name", list(BAD_LINES))
def test_bad_line_has_its_code_and_line(
    name: str, write_clip: Callable[..., Path], write_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    write_clip()
    raw, code = BAD_LINES[name]
    manifest = _read(write_manifest([_line(id="before"), raw, _line(id="after")]))
    assert _rejected(manifest) == [(2, code)]
    assert [(row.id, row.line) for row in manifest] == [("before", 1), ("after", 3)]
    assert manifest.num_lines == 3
    append_quarantine(tmp_path / "quarantine.jsonl", manifest.rejected)  # the record of a bad line must be writable
    record = json.loads((tmp_path / "quarantine.jsonl").read_text(encoding="utf-8"))
    assert (record["line"], record["code"]) == (2, code)
    assert record["manifest"] == str(manifest.path)


def test_all_bad_lines_together_are_all_counted(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip()
    manifest = _read(write_manifest([raw for raw, _ in BAD_LINES.values()] + [_line()]))
    assert [code for _, code in _rejected(manifest)] == [code for _, code in BAD_LINES.values()]
    assert [line for line, _ in _rejected(manifest)] == list(range(1, len(BAD_LINES) + 1))
    assert len(manifest) == 1
    assert manifest.num_lines == len(BAD_LINES) + 1


def test_bytes_that_are_no_utf8_are_rejected_with_their_place(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip()
    path = tmp_path / "m.jsonl"
    path.write_bytes(_line(id="a").encode() + b'\n{"audio": "\xff"}\n' + _line(id="b").encode())
    manifest = _read(path)
    assert _rejected(manifest) == [(2, "T01")]
    assert "byte 11" in manifest.rejected[0].message
    assert [row.id for row in manifest] == ["a", "b"]


def test_utf16_is_rejected_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes((_line() + "\n").encode("utf-16"))
    manifest = _read(path)
    assert not len(manifest)
    assert _rejected(manifest)[0] == (1, "T01")


def test_bom_crlf_blank_lines_and_no_last_newline_are_accepted(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip()
    path = tmp_path / "m.jsonl"
    lines = [_line(id="a"), "", "   ", _line(id="b", text="你好"), "\t", _line(id="c")]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    manifest = _read(path)
    assert [(row.id, row.line) for row in manifest] == [("a", 1), ("b", 4), ("c", 6)]
    assert manifest.num_lines == 3


def test_a_byte_order_mark_is_taken_off_the_first_line_only(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip()
    path = tmp_path / "m.jsonl"
    path.write_bytes(_line().encode() + b"\n\xef\xbb\xbf" + _line(id="b").encode())
    assert _rejected(_read(path)) == [(2, "M01")]


def test_byte_offsets_are_where_the_lines_begin(tmp_path: Path) -> None:
    """Whatever ends the lines, and packed or not: the bytes from there on are the line."""
    bad = [_line(text="音"), "{", _line(audio="https://example.org/é.wav"), '{"audio": 3}']
    for name, mark, end in (
        ("lf.jsonl", b"", b"\n"),
        ("crlf.jsonl", b"", b"\r\n"),
        ("bom.jsonl", b"\xef\xbb\xbf", b"\n"),
        ("both.jsonl.gz", b"\xef\xbb\xbf", b"\r\n"),
    ):
        content = mark + (end + b"  " + end).join(line.encode() for line in bad)
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        records = _read(path).rejected
        assert [record.line for record in records] == [1, 3, 5, 7], name
        for record, line in zip(records, bad, strict=True):
            assert record.byte_offset is not None
            found = content[record.byte_offset :].removeprefix(mark if record.line == 1 else b"").splitlines()[0]
            assert found == line.encode(), name


def test_a_gzipped_manifest_is_the_same(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> None:
    write_clip()
    plain = write_manifest([_line(id="a"), "", _line(text=""), _line(id="b", text="你好")])
    packed = plain.with_name("train.jsonl.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [replace(row, manifest=plain) for row in _read(packed)] == list(_read(plain))
    assert [replace(r, manifest=str(plain)) for r in _read(packed).rejected] == list(_read(plain).rejected)


def test_audio_outside_the_root_is_refused(
    tmp_path: Path, write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    """By a path, by `..`, and by a link that leads out."""
    inside, outside = write_clip("corpus/in.wav"), write_clip("elsewhere/out.wav")
    (tmp_path / "corpus/link.wav").symlink_to(outside)
    (tmp_path / "corpus/fine.wav").symlink_to(inside)
    names = ["in.wav", str(inside), "fine.wav", "../elsewhere/out.wav", str(outside), "link.wav"]
    lines = [_line(id=str(i), audio=name) for i, name in enumerate(names)]
    path = str(write_manifest(lines, "corpus/train.jsonl"))
    assert len(read_source(Source(path))) == 6
    table = read_source(Source(path, root=str(tmp_path / "corpus")))
    assert [row.id for row in table] == ["0", "1", "2"]
    assert _rejected(table) == [(4, "M07"), (5, "M07"), (6, "M07")]
    assert "dataset.root=" in table.rejected[0].message


def test_a_name_in_the_other_unicode_form_is_found(tmp_path: Path, write_manifest: Callable[..., Path]) -> None:
    composed, decomposed = "caf\u00e9.wav", "cafe\u0301.wav"
    for on_disk, named in ((composed, decomposed), (decomposed, composed)):
        soundfile.write(tmp_path / on_disk, tone(1.0), 16_000)
        (row,) = _read(write_manifest([_line(audio=named)]))
        assert row.audio == tmp_path / on_disk
        (tmp_path / on_disk).unlink()


def test_a_clip_without_speech_has_no_text(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip()
    lines = [_line(id="a", no_speech=True, text=None), _line(id="b", no_speech=True, text=" "), _line(id="c")]
    assert [(row.text, row.no_speech) for row in _read(write_manifest(lines))] == [
        ("", True),
        ("", True),
        ("one", False),
    ]


def test_texts_are_in_one_normal_form(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> None:
    write_clip()
    (row,) = _read(write_manifest([_line(text=" cafe\u0301\r\nau\tlait ", prompt="e\u0301")]))
    assert (row.text, row.prompt) == ("caf\u00e9 au lait", "\u00e9")


def test_duplicate_id_names_the_first_line(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip()
    manifest = _read(write_manifest([_line(id="x"), _line(id="y"), _line(id="x", text="two")]))
    assert _rejected(manifest) == [(3, "M02")]
    assert "line 1" in manifest.rejected[0].message
    assert manifest.rejected[0].id == "x"


def test_an_id_of_a_rejected_line_is_free(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> None:
    write_clip()
    manifest = _read(write_manifest([_line(id="x", text=""), _line(id="x")]))
    assert _rejected(manifest) == [(1, "T03")]
    assert [row.line for row in manifest] == [2]


def test_default_id_is_the_path_and_offset(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip("audio/clip.wav")
    lines = [
        _line(audio="audio/clip.wav"),
        _line(audio="audio/clip.wav", offset_s=1.5),
        _line(audio="audio/clip.wav", id="", offset_s=2),
    ]
    manifest = _read(write_manifest(lines))
    assert [row.id for row in manifest] == ["audio/clip.wav", "audio/clip.wav@1.5", "audio/clip.wav@2"]


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
    row = _read(write_manifest([fields]))[0]
    assert (row.id, row.audio, row.text, row.language, row.task) == ("a", clip, "bonjour", "fr", "translate")
    assert (row.duration_s, row.offset_s, row.prompt, row.speaker, row.line) == (1.0, 0.25, "avant", "s1", 1)
    assert row.segments == (Segment(0.25, 0.5, "bon"), Segment(0.5, 1.0, "jour"))
    plain = _read(write_manifest([{**GOOD, "audio": "audio/clip.wav"}]))[0]
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
    assert _read(manifest.relative_to(tmp_path))[0].audio == clip


def test_unknown_language_offers_the_nearest_code(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip()
    near = {"german": "de", "EN": "en", "zh-CN": "zh", "pt_BR": "pt", "Japanese": "ja", "japanse": "ja"}
    manifest = _read(write_manifest([_line(language=given) for given in near]))
    for record, code in zip(manifest.rejected, near.values(), strict=True):
        assert f"did you mean {code!r}" in record.message


@pytest.mark.parametrize("content", [b"", b"\n\n  \r\n", b"\xef\xbb\xbf"])
def test_empty_manifest_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is empty"):
        _read(path)


def test_missing_manifest_and_folder_are_errors_that_say_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no manifest, table or folder at .*none\.jsonl"):
        _read(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no manifest at .*none\.jsonl"):
        read_source(Source(str(tmp_path / "none.jsonl"), format="jsonl"))
    with pytest.raises(ValueError, match="is empty; a row has at least audio, text and language"):
        _read(tmp_path)  # a folder without audio


def test_codes_are_unique_and_the_summary_counts_them(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path]
) -> None:
    write_clip()
    assert len({reason.code for reason in Reason}) == len(Reason)
    manifest = _read(write_manifest([_line(text="")] * 6 + [_line(language="xx")]))
    text = summarise(manifest.rejected, num_shown=2)
    assert text.startswith("T03 x6, T08 x1\n")
    assert text.endswith("... and 5 more")
