"""Subtitle files have exact timestamps, gapless numbers, and texts that cannot be taken for syntax."""

import json
import math
import random
import re
from dataclasses import dataclass, field

import pytest

from infer.subtitles import FORMATS, Segment, format_json, format_srt, format_txt, format_vtt


@dataclass(frozen=True)
class FakeTranscript:
    text: str
    language: str = "en"
    duration_s: float = 4.0
    segments: tuple[Segment, ...] = field(default=())


def _transcript(*segments: Segment) -> FakeTranscript:
    return FakeTranscript(text=" ".join(segment.text for segment in segments), segments=segments)


TWO = _transcript(Segment(0.0, 1.5, " Hello, world."), Segment(1.5, 4.0, " Grüße 你好 "))


def test_srt_is_exactly_this() -> None:
    assert format_srt(TWO) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello, world.\n\n2\n00:00:01,500 --> 00:00:04,000\nGrüße 你好\n"
    )


def test_vtt_is_exactly_this() -> None:
    assert format_vtt(TWO) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello, world.\n\n00:00:01.500 --> 00:00:04.000\nGrüße 你好\n"
    )


def test_txt_is_the_text_on_one_line() -> None:
    assert format_txt(TWO) == "Hello, world. Grüße 你好\n"
    assert format_txt(FakeTranscript(text=" ")) == ""


def test_json_keeps_every_field_and_every_segment_unescaped() -> None:
    text = format_json(TWO)
    assert "你好" in text
    assert json.loads(text) == {
        "text": TWO.text,
        "language": "en",
        "duration_s": 4.0,
        "segments": [
            {"start_s": 0.0, "end_s": 1.5, "text": " Hello, world."},
            {"start_s": 1.5, "end_s": 4.0, "text": " Grüße 你好 "},
        ],
    }


@pytest.mark.parametrize("name", ["txt", "json", "srt", "vtt"])
def test_a_mapping_reads_like_a_dataclass(name: str) -> None:
    mapping = {
        "text": TWO.text,
        "language": TWO.language,
        "duration_s": TWO.duration_s,
        "segments": [{"start_s": s.start_s, "end_s": s.end_s, "text": s.text} for s in TWO.segments],
    }
    assert FORMATS[name](mapping) == FORMATS[name](TWO)


@pytest.mark.parametrize(
    ("start_s", "expected"),
    [
        (59.9996, "00:01:00,000"),
        (59.9994, "00:00:59,999"),
        (3599.9999, "01:00:00,000"),
        (0.0004, "00:00:00,000"),
        (0.29, "00:00:00,290"),  # 0.29 * 1000 is 290.0 only after rounding; int() gives 289
        (3661.042, "01:01:01,042"),
        (360000.0, "100:00:00,000"),
    ],
)
def test_rounding_carries_into_minutes_and_hours(start_s: float, expected: str) -> None:
    assert format_srt(_transcript(Segment(start_s, start_s + 1, "x"))).split("\n")[1].startswith(f"{expected} --> ")


def test_timestamps_read_back_within_half_a_millisecond() -> None:
    rng = random.Random(0)
    times = sorted(rng.uniform(0, 20_000) for _ in range(400))
    segments = [Segment(a, b, "x") for a, b in zip(times[::2], times[1::2], strict=True)]
    found = re.findall(r"(\d+):(\d\d):(\d\d)\.(\d{3})", format_vtt(_transcript(*segments)))
    read_back = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in found]
    assert all(int(m) < 60 and int(s) < 60 for _, m, s, _ in found)
    assert read_back == pytest.approx(times, abs=0.000501)


def test_empty_segments_are_skipped_and_the_numbers_have_no_gap() -> None:
    text = format_srt(_transcript(Segment(0, 1, " "), Segment(1, 2, "a"), Segment(2, 3, ""), Segment(3, 4, "b")))
    assert re.findall(r"^(\d+)$", text, flags=re.MULTILINE) == ["1", "2"]
    assert text.startswith("1\n00:00:01,000")


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_an_arrow_or_a_blank_line_in_the_text_is_no_syntax(name: str) -> None:
    text = FORMATS[name](_transcript(Segment(0, 1, "a --> b\n\n00:00 c"), Segment(1, 2, "d")))
    assert text.count("-->") == 2
    assert len([block for block in text.split("\n\n") if "-->" in block]) == 2
    assert "00:00 c\n" in text


def test_vtt_escapes_markup_once() -> None:
    assert "a &lt;b&gt; &amp;amp; c" in format_vtt(_transcript(Segment(0, 1, "a <b> &amp; c")))
    assert "a --&gt; b" in format_vtt(_transcript(Segment(0, 1, "a --> b")))


def test_a_cue_always_lasts() -> None:
    assert "00:00:01.000 --> 00:00:01.001" in format_vtt(_transcript(Segment(1.0, 1.0002, "x")))


def test_a_transcript_without_segments_is_one_cue() -> None:
    assert format_srt(FakeTranscript(text="Hello", duration_s=2.5)) == "1\n00:00:00,000 --> 00:00:02,500\nHello\n"
    assert format_srt(FakeTranscript(text="", duration_s=2.5)) == ""
    assert format_vtt(FakeTranscript(text="")) == "WEBVTT\n"


@pytest.mark.parametrize(("start_s", "end_s"), [(-0.1, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_times_that_cannot_be_are_refused(start_s: float, end_s: float) -> None:
    with pytest.raises(ValueError, match="0 <= start_s <= end_s"):
        Segment(start_s, end_s, "x")
    bad = {"text": "x", "language": "en", "duration_s": 1.0}
    with pytest.raises(ValueError, match="0 <= start_s <= end_s"):
        format_srt({**bad, "segments": [{"start_s": start_s, "end_s": end_s, "text": "x"}]})
