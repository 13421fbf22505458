"""Clips of a Kaldi data folder: `wav.scp` and `text`, with `segments`, `utt2spk` and `utt2lang` where they are there.

Source: the data preparation page of Kaldi's documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.reasons import Reason
from data.records import BrokenRecord, Record


def read_kaldi(folder: Path) -> Iterator[Record | BrokenRecord]:
    """Read the utterances in the order of `text`; `line` is the line there.

    Audio paths are relative to the folder of `wav.scp`. A command (`sox ... |`) is never run.

    Raises:
        FileNotFoundError: if `wav.scp` or `text` is not there.
        ValueError: if a file is not UTF-8, or a line of `segments` is not an utterance, a recording and two times.
    """
    recordings = _map(folder / "wav.scp")
    segments = _segments(folder / "segments")
    speakers = _map(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}
    languages = _map(folder / "utt2lang") if (folder / "utt2lang").is_file() else {}
    for line, utterance, text in _lines(folder / "text"):
        recording, start_s, end_s = segments.get(utterance, (utterance, None, None))
        audio = recordings.get(recording)
        if audio is None:
            place = "wav.scp" if utterance in segments or not segments else "segments"
            yield BrokenRecord(line, Reason.AUDIO_MISSING, f"{place} has no {recording!r}")
            continue
        if audio.endswith("|"):
            yield BrokenRecord(
                line, Reason.LINE_URL, f"wav.scp gives a command for {recording!r}; write its output to files"
            )
            continue
        fields: dict[str, Any] = {"id": utterance, "audio": audio, "text": text}
        if start_s is not None and end_s is not None:
            if end_s <= start_s:
                yield BrokenRecord(
                    line, Reason.LINE_JSON, f"segments: {utterance!r} ends at {end_s:g} s, before it begins"
                )
                continue
            fields |= {"offset_s": start_s, "duration_s": end_s - start_s}
        if utterance in speakers:
            fields["speaker"] = speakers[utterance]
        if utterance in languages:
            fields["language"] = languages[utterance]
        yield Record(line, fields)


def _map(path: Path) -> dict[str, str]:
    return {key: rest for _, key, rest in _lines(path)}


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Read lines of a key and the rest, each with its number; blank ones are passed over."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}; a Kaldi folder has at least wav.scp and text")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other line breaks of Unicode
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8, byte {e.start}") from e
    for number, line in enumerate(lines, start=1):
        if line.strip():
            key, *rest = line.split(maxsplit=1)
            yield number, key, rest[0].strip() if rest else ""


def _segments(path: Path) -> dict[str, tuple[str, float, float]]:
    if not path.is_file():
        return {}
    segments: dict[str, tuple[str, float, float]] = {}
    for _, utterance, rest in _lines(path):
        try:
            recording, start_s, end_s = rest.split()
            segments[utterance] = (recording, float(start_s), float(end_s))
        except ValueError as e:
            raise ValueError(f"{path}: {utterance} {rest!r} is not a recording, a start and an end in seconds") from e
    return segments
