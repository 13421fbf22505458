"""Damaged manifests, made from a seed: lines with a planted fault of known code, and lines whose bytes were changed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SEED = 21
FORMATS = ("jsonl", "csv", "tsv")
KINDS = ("planted", "bytes")
NUM_DAMAGED, NUM_GOOD = 40, 10  # lines of one file
COLUMNS = ("id", "audio", "text", "language", "duration_s", "offset_s", "task", "segments", "prompt")
TEXTS = ("one two three", "sie sagte: Äpfel, Birnen und Öl", "你好，世界", "e\u0301te\u0301", "a, b; c", "that's it")
SIGN = {"csv": ",", "tsv": "\t"}

Rng = np.random.Generator
Fields = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One line of a damaged manifest, without what ends it."""

    content: bytes
    code: str = ""
    """That it must be refused with; empty for a good line, and where nobody knows."""
    fields: Fields | None = None
    """Of a good line."""


def _with(**changes: Any) -> Callable[[Fields, Rng], Fields]:
    return lambda fields, rng: {**fields, **changes}


def _one_of(name: str, *values: Any) -> Callable[[Fields, Rng], Fields]:
    return lambda fields, rng: {**fields, name: values[int(rng.integers(len(values)))]}


def _within_text(*pieces: str) -> Callable[[Fields, Rng], Fields]:
    def change(fields: Fields, rng: Rng) -> Fields:
        place = int(rng.integers(1, len(fields["text"])))
        piece = pieces[int(rng.integers(len(pieces)))]
        return {**fields, "text": fields["text"][:place] + piece + fields["text"][place:]}

    return change


PLANTS: tuple[tuple[str, Callable[[Fields, Rng], Fields]], ...] = (
    ("A01", _one_of("audio", "gone.wav", "none/clip.wav", "clip.wav/x.wav", "a" * 300)),
    ("A02", _with(duration_s=0)),
    ("A03", _with(offset_s=5.0, duration_s=None)),
    ("A10", _one_of("duration_s", 30.5, 31.0, 1e6)),
    ("A11", _one_of("duration_s", 0.001, 0.05)),
    ("A18", _one_of("audio", ".", "..", "/dev/null")),
    ("M01", _with(audio=None)),
    ("M01", _with(language=None)),
    ("M01", _one_of("duration_s", "long", -1.0, [1])),
    ("M01", _one_of("segments", "none", {"start": 0}, [{"start": 1, "end": 0, "text": "x"}])),
    ("M02", _with(id="first")),
    (
        "M07",
        _one_of("audio", "https://example.org/a.wav", "file:///clip.wav", "data:audio/wav;base64,UklG", "\\\\h\\a"),
    ),
    ("T02", _within_text("\x07", "\ufffd", "\x1b[0m")),
    ("T03", _one_of("text", "", "…", "?!", "\u3000")),
    ("T04", _with(text="a" * 100)),
    ("T07", _within_text("<|en|>", "<|endoftext|>")),
    ("T08", _one_of("language", "xx", "german", "EN", "de-DE")),
    ("T10", _one_of("task", "sing", "Transcribe")),
    ("T11", _with(segments=[{"start": 0, "end": 20, "text": "one"}, {"start": 35, "end": 36, "text": "two"}])),
)
"""Faults that the fields of a line can have in every format."""


def _cut(line: bytes, rng: Rng) -> bytes:
    return line[: int(rng.integers(1, len(line)))].decode("utf-8", "ignore").encode()  # not within a character


RAW_PLANTS: dict[str, tuple[tuple[str, Callable[[bytes, Rng], bytes]], ...]] = {
    "jsonl": (
        ("M01", _cut),
        ("M01", lambda line, rng: b"[" + line + b"]"),
        ("M01", lambda line, rng: line[:-1] + b', "text": "twice"}'),
        ("M01", lambda line, rng: line[:-1] + b', "offset_s": NaN}'),
        ("M01", lambda line, rng: line.replace(b'"audio"', b"'audio'")),
        ("M01", lambda line, rng: b"null"),
        ("T01", lambda line, rng: line.replace(b'"text": "', b'"text": "\xff')),
        ("T01", lambda line, rng: line.replace(b'"text": "', b'"text": "\\ud800')),
    ),
    "csv": (
        ("M01", lambda line, rng: line + b",more"),
        ("M01", lambda line, rng: line.rsplit(b",", 1)[0]),
        ("M01", lambda line, rng: line.rsplit(b",", 1)[0] + b',"never closed'),
        ("M01", lambda line, rng: b'"' + line),
        ("T01", lambda line, rng: line.replace(b"clip.wav", b"clip\xc3.wav")),
    ),
    "tsv": (
        ("M01", lambda line, rng: line + b"\tmore"),
        ("M01", lambda line, rng: line.rsplit(b"\t", 1)[0]),
        ("T01", lambda line, rng: line.replace(b"clip.wav", b"clip\xc3.wav")),
    ),
}
"""Faults of the line itself."""


def make_manifest(format: str, kind: str, number: int) -> tuple[bytes, list[Part]]:
    """Make one damaged manifest.

    Args:
        format: one of `FORMATS`.
        kind: `planted` faults, or changed `bytes`.
        number: tells one from another.

    Returns:
        Its bytes, and its parts; for CSV and TSV the first one is the header.
    """
    rng = np.random.default_rng([SEED, FORMATS.index(format), KINDS.index(kind), number])
    is_quoted = bool(rng.integers(2))
    end = b"\r\n" if rng.integers(4) == 0 else b"\n"
    first = _good_fields(rng, id="first")
    parts = [Part(_encode(first, format, is_quoted), fields=first)]
    others = [_good(format, is_quoted, rng) for _ in range(NUM_GOOD - 1)]
    make = _planted if kind == "planted" else _mutated
    others += [make(format, is_quoted, rng) for _ in range(NUM_DAMAGED)]
    parts += [others[i] for i in rng.permutation(len(others))]
    if format != "jsonl":
        parts.insert(0, Part(SIGN[format].join(COLUMNS).encode()))
    mark = b"\xef\xbb\xbf" if rng.integers(4) == 0 else b""
    last = end if rng.integers(2) else b""
    return mark + end.join(part.content for part in parts) + last, parts


def _good_fields(rng: Rng, *, id: str = "") -> Fields:
    text = TEXTS[int(rng.integers(len(TEXTS)))]
    return {
        "id": id or rng.bytes(8).hex(),  # so long that no changed byte makes the id of another line
        "audio": "clip.wav",
        "text": text,
        "language": "en",
        "duration_s": 1.0,
    }


def _good(format: str, is_quoted: bool, rng: Rng) -> Part:
    fields = _good_fields(rng)
    return Part(_encode(fields, format, is_quoted), fields=fields)


def _planted(format: str, is_quoted: bool, rng: Rng) -> Part:
    raw = RAW_PLANTS[format]
    place = int(rng.integers(len(PLANTS) + len(raw)))
    if place < len(PLANTS):
        code, change = PLANTS[place]
        return Part(_encode(change(_good_fields(rng), rng), format, is_quoted), code)
    code, damage = raw[place - len(PLANTS)]
    return Part(damage(_encode(_good_fields(rng), format, is_quoted), rng), code)


def _mutated(format: str, is_quoted: bool, rng: Rng) -> Part:
    line = bytearray(_encode(_good_fields(rng), format, is_quoted))
    for _ in range(int(rng.integers(1, 4))):
        start, end = sorted(int(x) for x in rng.integers(0, len(line) + 1, 2))
        end = min(end, start + 12)
        kind = int(rng.integers(7))
        if kind == 0 and line:
            line[min(start, len(line) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del line[start:end]
        elif kind == 2:
            line[start:start] = rng.bytes(int(rng.integers(1, 5)))
        elif kind == 3:
            line[start:end] = rng.bytes(end - start)
        elif kind == 4:
            line[start:start] = line[start:end]
        elif kind == 5:
            del line[start:]
        else:
            signs = b"\"',\t\r\n\x00{}[]:\\"
            line[start:start] = signs[(place := int(rng.integers(len(signs)))) : place + 1]
    return Part(bytes(line))


def _encode(fields: Fields, format: str, is_quoted: bool) -> bytes:
    fields = {name: value for name, value in fields.items() if value is not None}
    if format == "jsonl":
        return json.dumps(fields, ensure_ascii=is_quoted).encode()
    cells = [_cell(fields.get(name, "")) for name in COLUMNS]
    if format == "tsv":
        return "\t".join(cells).encode()
    target = io.StringIO()
    csv.writer(target, quoting=csv.QUOTE_ALL if is_quoted else csv.QUOTE_MINIMAL, lineterminator="").writerow(cells)
    return target.getvalue().encode()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
