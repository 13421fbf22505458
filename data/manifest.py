"""Rows of a JSONL manifest, each checked; what is not taken is listed with file and line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.languages import TASKS, verify_language
from data.reasons import Reason, Rejected, reject, summarise

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """A timed part of a row's text."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance: where its audio lies, what is said, in which language, and what the model shall do with it."""

    id: str
    audio: Path
    """Absolute path of the audio file."""
    text: str
    language: str
    """ISO code, as Whisper's tokenizer writes it."""
    task: str
    duration_s: float | None
    """Length of the clip; None where the manifest does not say."""
    offset_s: float | None
    """Where the clip begins in the file; None if the clip is the whole file."""
    segments: tuple[Segment, ...]
    prompt: str
    """Text that came before; given to the decoder, never part of the loss."""
    speaker: str
    manifest: Path
    line: int
    """Line in `manifest`, counted from 1."""


@dataclass(frozen=True)
class Manifest:
    """The rows that were taken and the lines that were not: together, all lines."""

    path: Path
    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]

    @property
    def num_lines(self) -> int:
        """Lines that hold anything; blank ones are not counted."""
        return len(self.rows) + len(self.rejected)


class _LineError(Exception):
    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_manifest(path: Path) -> Manifest:
    """Read and check every line of a JSONL manifest.

    Only the text of the manifest and the existence of its files are looked at; audio is decoded later.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the manifest holds no line at all.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no manifest at {path}; dataset.train= takes a JSON-lines file, one clip a line")
    path = path.resolve()
    rows: list[Row] = []
    rejected: list[Rejected] = []
    seen: dict[str, int] = {}
    for line, raw in _lines(path):
        fields: Any = {}
        try:
            fields = _parse(raw)
            row = _build_row(fields, path, line)
            if row.id in seen:
                raise _LineError(Reason.LINE_DUPLICATE_ID, f"{row.id!r}, first on line {seen[row.id]}")
            seen[row.id] = line
            rows.append(row)
        except _LineError as e:
            known = fields if isinstance(fields, dict) else {}
            rejected.append(
                reject(
                    e.reason,
                    manifest=path,
                    line=line,
                    id=str(known.get("id", "")),
                    audio=known.get("audio", ""),
                    detail=e.detail,
                )
            )
    if not rows and not rejected:
        raise ValueError(f"{path} is empty; a manifest has one JSON object a line, with audio, text and language")
    return Manifest(path, tuple(rows), tuple(rejected))


def admit(manifest: Manifest, *, strict: bool, max_bad_share: float) -> tuple[Row, ...]:
    """Return the rows, or stop where too much of the manifest is bad.

    Args:
        manifest: what `read_manifest` gave.
        strict: any bad line stops; for held-out sets, where a missing item must never improve a score.
        max_bad_share: largest share of bad lines that is tolerated, 0 to 1.

    Raises:
        ValueError: with the count by code and the first few lines.
    """
    num_bad = len(manifest.rejected)
    if num_bad == 0:
        return manifest.rows
    share = num_bad / manifest.num_lines
    if strict or not manifest.rows or share > max_bad_share:
        why = "a held-out set must be whole" if strict else f"more than dataset.max_bad_share={max_bad_share:g}"
        raise ValueError(
            f"{num_bad} of {manifest.num_lines} lines of {manifest.path} cannot be used ({why}): "
            f"{summarise(manifest.rejected)}"
        )
    logger.warning("%d of %d lines quarantined: %s", num_bad, manifest.num_lines, summarise(manifest.rejected))
    return manifest.rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
            if raw.strip():
                yield line, raw


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise _LineError(Reason.LINE_ENCODING, f"byte {e.start}") from e

    def refuse_constant(name: str) -> None:
        raise _LineError(Reason.LINE_JSON, f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise _LineError(Reason.LINE_JSON, "a field occurs twice")
        return fields

    try:
        fields = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except json.JSONDecodeError as e:
        raise _LineError(Reason.LINE_JSON, f"column {e.colno}: {e.msg}") from e
    except RecursionError as e:
        raise _LineError(Reason.LINE_JSON, "nested too deeply") from e
    except ValueError as e:  # Python reads no integer of more than 4300 digits
        raise _LineError(Reason.LINE_JSON, "a number has too many digits") from e
    if not isinstance(fields, dict):
        raise _LineError(Reason.LINE_JSON, f"found {type(fields).__name__}")
    return fields


def _build_row(fields: dict[str, Any], manifest: Path, line: int) -> Row:
    audio = _text(fields, "audio")
    if "://" in audio or audio.startswith("data:"):
        raise _LineError(Reason.LINE_URL, audio[:80])
    if "\0" in audio:
        raise _LineError(Reason.LINE_JSON, "NUL in audio")
    language = _text(fields, "language")
    try:
        verify_language(language)
    except ValueError as e:
        raise _LineError(Reason.TEXT_LANGUAGE, str(e)) from e
    task = _text(fields, "task", default="transcribe")
    if task not in TASKS:
        raise _LineError(Reason.TEXT_TASK, repr(task))
    text = _text(fields, "text").strip()
    if not text:
        raise _LineError(Reason.TEXT_EMPTY)
    audio_path = _find_audio(manifest.parent, audio)
    offset_s = _seconds(fields, "offset_s")
    return Row(
        id=_text(fields, "id", default="") or (f"{audio}@{offset_s:g}" if offset_s else audio),
        audio=audio_path,
        text=text,
        language=language,
        task=task,
        duration_s=_seconds(fields, "duration_s"),
        offset_s=offset_s,
        segments=_segments(fields),
        prompt=_text(fields, "prompt", default=""),
        speaker=_text(fields, "speaker", default=""),
        manifest=manifest,
        line=line,
    )


def _find_audio(folder: Path, audio: str) -> Path:
    try:
        path = folder / Path(audio).expanduser()
        if path.is_file():
            return path
        reason = Reason.AUDIO_NOT_A_FILE if path.exists() else Reason.AUDIO_MISSING
    except (OSError, RuntimeError) as e:  # a name too long, a folder that may not be entered, `~nobody`
        raise _LineError(Reason.AUDIO_MISSING, f"{audio:.200}: {getattr(e, 'strerror', None) or e}") from e
    raise _LineError(reason, str(path))


def _text(fields: dict[str, Any], name: str, *, default: str | None = None) -> str:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise _LineError(Reason.LINE_JSON, f"field {name!r} is missing; found {', '.join(sorted(fields)) or 'nothing'}")
    if not isinstance(value, str):
        raise _LineError(Reason.LINE_JSON, f"field {name!r} must be text, found {value!r:.40}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise _LineError(Reason.LINE_ENCODING, f"field {name!r} holds half a surrogate pair") from e
    return value


def _seconds(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise _LineError(Reason.LINE_JSON, f"field {name!r} must be seconds, 0 or more, found {value!r:.40}")
    return float(value)


def _segments(fields: dict[str, Any]) -> tuple[Segment, ...]:
    raw = fields.get("segments")
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise _LineError(Reason.LINE_JSON, "field 'segments' must be a list")
    segments: list[Segment] = []
    for item in raw:
        if not isinstance(item, dict):
            raise _LineError(Reason.LINE_JSON, "a segment must be an object with start, end and text")
        start_s, end_s = _seconds(item, "start"), _seconds(item, "end")
        if start_s is None or end_s is None or end_s < start_s or (segments and start_s < segments[-1].end_s - 1e-6):
            raise _LineError(Reason.LINE_JSON, f"segment {len(segments)} has no start <= end after the one before it")
        segments.append(Segment(start_s, end_s, _text(item, "text")))
    return tuple(segments)
