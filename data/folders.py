"""Clips of a folder: audio files with a table of their transcripts, or with a text file beside each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.reasons import Reason
from data.records import BrokenRecord, Record

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".m4a", ".mp4", ".aac", ".webm", ".mka", ".wma"}
    | {".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64"}
)
TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


def find_table(folder: Path) -> Path | None:
    """Return the one table of a folder, `metadata.*` before others.

    Raises:
        ValueError: if there are several, none of them named metadata.
    """
    tables = sorted(path for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES and path.is_file())
    named = [path for path in tables if path.stem == "metadata"]
    if len(named) == 1:
        return named[0]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise ValueError(f"{folder} holds several tables ({names}); name one of them instead of the folder")
    return tables[0] if tables else None


def read_folder(folder: Path) -> Iterator[Record | BrokenRecord]:
    """Read audio files, each with its transcript in a text file of the same name, in the order of their paths.

    Args:
        folder: searched with all folders in it; hidden files are passed over.

    Yields:
        One record a clip; `line` counts the audio files from 1.
    """
    paths = (
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
    )
    for line, path in enumerate(paths, start=1):
        audio = path.relative_to(folder).as_posix()
        transcript = path.with_suffix(".txt")
        try:
            text = transcript.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            yield BrokenRecord(line, Reason.TEXT_EMPTY, f"{audio} has no {transcript.name} beside it")
            continue
        except UnicodeDecodeError as e:
            yield BrokenRecord(line, Reason.LINE_ENCODING, f"{transcript.name}, byte {e.start}")
            continue
        yield Record(line, {"audio": audio, "text": text})
