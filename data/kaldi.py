"""Clips of a Kaldi data folder: `wav.scp` and `text`, with `segments`, `utt2spk` and `utt2lang` where they are there.

Source: the data preparation page of Kaldi's documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.lines import Line, decode, read_lines
from data.reasons import Reason
from data.records import BrokenRecord, Record


def read_kaldi(folder: Path) -> Iterator[Record | BrokenRecord]:
    """Read the utterances in the order of `text`; `line` is the line there.

    Audio paths are relative to the folder of `wav.scp`. A command (`sox ... |`) is never run.

    Raises:
        FileNotFoundError: if `wav.scp` or `text` is not there.
        ValueError: if a file other than `text` is not UTF-8, or says one key twice.
    """
    recordings = _map(folder / "wav.scp")
    segments = _map(folder / "segments") if (folder / "segments").is_file() else {}
    speakers = _map(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}
    languages = _map(folder / "utt2lang") if (folder / "utt2lang").is_file() else {}
    for line in _open(folder / "text"):
        found = decode(line)
        if isinstance(found, BrokenRecord):
            yield found
            continue
        if not found.strip():
            continue
        utterance, text = _split(found)
        fields: dict[str, Any] = {"id": utterance, "text": text}
        recording = utterance
        if utterance in segments:
            try:
                recording, offset_s, duration_s = _parse_segment(segments[utterance])
            except ValueError as e:
                yield _broken(line, Reason.LINE_JSON, f"segments: {utterance} {segments[utterance]!r:.80} {e}")
                continue
            fields |= {"offset_s": offset_s, "duration_s": duration_s}
        audio = recordings.get(recording)
        if audio is None:
            place = "wav.scp" if utterance in segments or not segments else "segments"
            yield _broken(line, Reason.AUDIO_MISSING, f"{place} has no {recording!r}")
            continue
        if audio.endswith("|"):
            detail = f"wav.scp gives a command for {recording!r}; write its output to files"
            yield _broken(line, Reason.LINE_URL, detail)
            continue
        fields["audio"] = audio
        if utterance in speakers:
            fields["speaker"] = speakers[utterance]
        if utterance in languages:
            fields["language"] = languages[utterance]
        yield Record(line.number, fields, line.byte_offset)


def _broken(line: Line, reason: Reason, detail: str) -> BrokenRecord:
    return BrokenRecord(line.number, reason, detail, line.byte_offset)


def _map(path: Path) -> dict[str, str]:
    """Read lines of a key and the rest; blank ones are passed over."""
    found: dict[str, str] = {}
    for line in _open(path):
        text = decode(line)
        if isinstance(text, BrokenRecord):
            raise ValueError(f"{path}:{line.number} is not UTF-8, {text.detail}")
        if text.strip():
            key, rest = _split(text)
            if found.setdefault(key, rest) != rest:
                raise ValueError(f"{path}:{line.number} says {key!r} again, and otherwise than before")
    return found


def _open(path: Path) -> Iterator[Line]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}; a Kaldi folder has at least wav.scp and text")
    return read_lines(path)


def _split(text: str) -> tuple[str, str]:
    key, *rest = text.split(maxsplit=1)
    return key, rest[0].strip() if rest else ""


def _parse_segment(text: str) -> tuple[str, float, float]:
    """Return recording, start and length in seconds.

    Raises:
        ValueError: with what it is not.
    """
    try:
        recording, start, end = text.split()
        start_s, end_s = float(start), float(end)
    except ValueError as e:
        raise ValueError("is not a recording, a start and an end in seconds") from e
    if not 0 <= start_s < end_s < float("inf"):
        raise ValueError("does not end behind its beginning")
    return recording, start_s, end_s - start_s
