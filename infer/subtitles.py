"""Turn a transcript into text, JSON, SubRip (SRT) or WebVTT."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word with its punctuation, and when it is said."""

    start_s: float
    """Seconds from the beginning of the recording."""
    end_s: float
    """Seconds, not before `start_s`."""
    text: str
    """Without spaces around it."""
    probability: float = field(compare=False)
    """Mean of its tokens'."""


@dataclass(frozen=True)
class Segment:
    """A stretch of speech with its text."""

    start_s: float
    """Seconds from the beginning of the recording."""
    end_s: float
    """Seconds, not before `start_s`."""
    text: str
    # How sure the model was of the window that the segment stands in; no part of what it says.
    avg_logprob: float | None = field(default=None, compare=False)
    """Mean a token, in nats."""
    no_speech_prob: float | None = field(default=None, compare=False)
    """That nobody speaks."""
    compression_ratio: float | None = field(default=None, compare=False)
    """Of the text; above 2.4 it repeats itself."""
    temperature: float | None = field(default=None, compare=False)
    """At which the text was found."""
    words: tuple[Word, ...] = ()
    """Of the text, in order; empty where times of words were not asked for."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.end_s) and 0 <= self.start_s <= self.end_s):
            raise ValueError(
                f"segment {self.text!r} runs from {self.start_s} to {self.end_s} s; "
                "both must be finite, with 0 <= start_s <= end_s"
            )


def format_txt(transcript: object) -> str:
    """Return the text alone, on one line."""
    text = _one_line(_field(transcript, "text"))
    return text + "\n" if text else ""


def format_json(transcript: object) -> str:
    """Return text, language, duration and all segments with their words, times in seconds as they are."""
    document = {
        "text": _field(transcript, "text"),
        "language": _field(transcript, "language"),
        "duration_s": _field(transcript, "duration_s"),
        "segments": [_known(segment) for segment in _segments(transcript)],
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def format_srt(transcript: object) -> str:
    """Return SubRip cues, numbered from 1 without gaps.

    SubRip has no escapes, and a `-->` in the text would be read as a timing line: it becomes an arrow, →.
    """
    cues = [
        f"{number}\n{_timestamp(start_ms, ',')} --> {_timestamp(end_ms, ',')}\n{text.replace('-->', '→')}\n"
        for number, (start_ms, end_ms, text) in enumerate(_cues(transcript), start=1)
    ]
    return "\n".join(cues)


def format_vtt(transcript: object) -> str:
    """Return a WebVTT file, `&`, `<` and `>` escaped as its specification asks, so that no `-->` is left in a text.

    Source: W3C, WebVTT: The Web Video Text Tracks Format, section 4.2.2.
    """
    cues = [
        f"{_timestamp(start_ms, '.')} --> {_timestamp(end_ms, '.')}\n{_escape_vtt(text)}\n"
        for start_ms, end_ms, text in _cues(transcript)
    ]
    return "\n".join(["WEBVTT\n", *cues])


FORMATS: Mapping[str, Callable[[object], str]] = {
    "txt": format_txt,
    "json": format_json,
    "srt": format_srt,
    "vtt": format_vtt,
}


def _field(item: object, name: str) -> Any:
    """Read a field of a dataclass or a mapping."""
    return item[name] if isinstance(item, Mapping) else getattr(item, name)


def _known(segment: Segment) -> dict[str, Any]:
    """The fields of a segment that have a value."""
    return {name: value for name, value in asdict(segment).items() if value is not None and value != ()}


def _segments(transcript: object) -> list[Segment]:
    """All segments with their times verified, whichever class they came in."""
    found: Iterable[object] = _field(transcript, "segments") or ()
    return [
        item
        if isinstance(item, Segment)
        else Segment(_field(item, "start_s"), _field(item, "end_s"), _field(item, "text"))
        for item in found
    ]


def _cues(transcript: object) -> list[tuple[int, int, str]]:
    """Start and end in milliseconds and the text on one line, of every segment that has any.

    A transcript without segments is one cue. A cue lasts at least 1 ms; players ignore one that ends as it starts.
    """
    segments = _segments(transcript)
    if not segments:
        segments = [Segment(0.0, _field(transcript, "duration_s"), _field(transcript, "text"))]
    cues = []
    for segment in segments:
        # a blank line would end the cue in the middle of its text
        text = _one_line(segment.text)
        if text:
            start_ms, end_ms = round(1000 * segment.start_s), round(1000 * segment.end_s)
            cues.append((start_ms, max(end_ms, start_ms + 1), text))
    return cues


def _one_line(text: str) -> str:
    """Join lines and runs of whitespace by single spaces."""
    return " ".join(text.split())


def _timestamp(time_ms: int, decimal_mark: str) -> str:
    """Write whole milliseconds as hours, minutes, seconds; rounded before they are split, so that 59.9996 s carries."""
    seconds, milliseconds = divmod(time_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal_mark}{milliseconds:03d}"


def _escape_vtt(text: str) -> str:
    """Escape the three characters that WebVTT reads as markup; the ampersand first, since the others bring one."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
