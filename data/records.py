"""What a source says of its clips, checked field by field; what passes becomes a row, the rest is listed."""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.languages import TASKS, verify_language
from data.reasons import Reason, Rejected, reject
from data.rows import SCHEMA, Row, RowTable, Segment, StoredAudio
from data.texts import TextError, clean_text

CHUNK_ROWS = 65_536  # rows that wait as Python objects before they become columns


@dataclass(frozen=True, slots=True)
class Record:
    """What a source says of one clip, before it is checked."""

    line: int
    fields: dict[str, Any]
    """By our names: audio, text, language, ..."""
    byte_offset: int | None = None
    """Where the line begins in the file; None where lines are not bytes."""


@dataclass(frozen=True, slots=True)
class BrokenRecord:
    """A line that cannot be read at all."""

    line: int
    reason: Reason
    detail: str
    byte_offset: int | None = None


class FieldError(Exception):
    """A field that cannot be used; `reason` says why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RowTableBuilder:
    """Check records one by one, and gather those that pass into columns."""

    def __init__(
        self,
        path: Path,
        *,
        folder: Path | None = None,
        root: Path | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        """Begin an empty table.

        Args:
            path: of the source, for messages.
            folder: what relative audio paths begin at; the folder of `path` if None.
            root: audio must lie below this folder; None allows any.
            defaults: fields of records that have none of their own, such as the language.
        """
        self.path = path
        self.folder = str(folder if folder is not None else path.parent)
        self.root = None if root is None else root.resolve()
        self.defaults = {name: value for name, value in (defaults or {}).items() if value is not None}
        self.rejected: list[Rejected] = []
        self._columns: dict[str, list[Any]] = {field.name: [] for field in SCHEMA}
        self._batches: list[pa.RecordBatch] = []
        # Hashes of 64 bits instead of the ids: among 1,000,000 of them, two fall together once in 40 million corpora.
        self._seen: dict[int, int] = {}
        self._known_languages: set[str] = set()

    def add(self, record: Record | BrokenRecord) -> None:
        """Check one record; it becomes a row or a line in `rejected`."""
        if isinstance(record, BrokenRecord):
            self._reject(record, record.reason, {}, record.detail)
            return
        fields = record.fields
        try:
            row, place = self._check(record)
            first = self._seen.setdefault(hash(row.id), record.line)
            if first != record.line:
                raise FieldError(Reason.LINE_DUPLICATE_ID, f"{row.id!r}, first on line {first}")
        except FieldError as e:
            self._reject(record, e.reason, fields, e.detail)
            return
        self.append(row, place)

    def append(self, row: Row, place: int | None = None) -> None:
        """Take a row that is known to be right."""
        columns = self._columns
        columns["id"].append(row.id)
        columns["audio"].append(str(row.audio))
        columns["stored"].append(place)
        columns["text"].append(row.text)
        columns["language"].append(row.language)
        columns["task"].append(row.task)
        columns["duration_s"].append(row.duration_s)
        columns["offset_s"].append(row.offset_s)
        columns["segments"].append(
            [{"start_s": s.start_s, "end_s": s.end_s, "text": s.text} for s in row.segments] if row.segments else None
        )
        columns["prompt"].append(row.prompt)
        columns["speaker"].append(row.speaker)
        columns["line"].append(row.line)
        columns["open_start_s"].append(row.open_start_s)
        columns["no_speech"].append(row.no_speech)
        if len(columns["id"]) >= CHUNK_ROWS:
            self._flush()

    def columns(self) -> pa.Table:
        """Return all rows so far."""
        self._flush()
        return pa.Table.from_batches(self._batches, SCHEMA).unify_dictionaries()

    def build(self, *, open_stored: Callable[[int], StoredAudio] | None = None) -> RowTable:
        """Return the table."""
        return RowTable(self.path, self.columns(), self.rejected, open_stored=open_stored)

    def _flush(self) -> None:
        arrays = [pa.array(self._columns[field.name], field.type) for field in SCHEMA]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        for values in self._columns.values():
            values.clear()

    def _reject(self, record: Record | BrokenRecord, reason: Reason, fields: dict[str, Any], detail: str) -> None:
        self.rejected.append(
            reject(
                reason,
                manifest=self.path,
                line=record.line,
                id=str(fields.get("id") or ""),
                audio=fields.get("audio") or "",
                detail=detail,
                byte_offset=record.byte_offset,
            )
        )

    def _check(self, record: Record) -> tuple[Row, int | None]:
        fields = {**self.defaults, **{k: v for k, v in record.fields.items() if v is not None}}
        place = fields.get("stored")
        audio = _text(fields, "audio")
        path = Path(audio) if place is not None else Path(self._find_audio(audio))
        language = _text(fields, "language")
        if language not in self._known_languages:
            try:
                self._known_languages.add(verify_language(language))
            except ValueError as e:
                raise FieldError(Reason.TEXT_LANGUAGE, str(e)) from e
        task = _text(fields, "task", default="transcribe")
        if task not in TASKS:
            raise FieldError(Reason.TEXT_TASK, repr(task))
        no_speech = _flag(fields, "no_speech")
        text = _clean(_text(fields, "text", default="" if no_speech else None), may_be_empty=no_speech)
        if no_speech and text:
            raise FieldError(Reason.LINE_JSON, f"no_speech is true, and yet the text is {text!r:.40}")
        offset_s = _seconds(fields, "offset_s")
        prompt = _text(fields, "prompt", default="")
        row = Row(
            id=_text(fields, "id", default="") or (f"{audio}@{offset_s:g}" if offset_s else audio),
            audio=path,
            text=text,
            language=language,
            task=task,
            duration_s=_seconds(fields, "duration_s"),
            offset_s=offset_s,
            segments=_segments(fields),
            prompt=_clean(prompt, may_be_empty=True) if prompt else "",
            speaker=_text(fields, "speaker", default=""),
            manifest=self.path,
            line=record.line,
            no_speech=no_speech,
        )
        return row, place

    def _find_audio(self, audio: str) -> str:
        if "://" in audio or audio.startswith(("data:", "file:", "\\\\")):
            raise FieldError(Reason.LINE_URL, audio[:80])
        if "\0" in audio:
            raise FieldError(Reason.LINE_JSON, "NUL in audio")
        try:
            if audio.startswith("~"):
                audio = str(Path(audio).expanduser())
            # Strings, not Paths: a million of those take ten seconds.
            path = audio if os.path.isabs(audio) else f"{self.folder}/{audio}"  # noqa: PTH117
            found = _stat(path)
            if found is None:  # macOS writes names decomposed, others composed
                twins = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
                path = next((twin for twin in twins if twin != path and _stat(twin) is not None), path)
                found = _stat(path)
        except (OSError, RuntimeError, ValueError) as e:  # too long, a folder that may not be entered, `~nobody`
            raise FieldError(Reason.AUDIO_MISSING, f"{audio:.200}: {getattr(e, 'strerror', None) or e}") from e
        if found is None:
            raise FieldError(Reason.AUDIO_MISSING, path)
        if not stat.S_ISREG(found):
            raise FieldError(Reason.AUDIO_NOT_A_FILE, path)
        if self.root is not None and not Path(path).resolve().is_relative_to(self.root):
            raise FieldError(Reason.LINE_URL, f"{path} lies outside dataset.root={self.root}")
        return path


def table_of_rows(rows: Sequence[Row], stored: Sequence[int | None]) -> pa.Table:
    """Turn rows into columns of `SCHEMA`.

    Args:
        rows: in order.
        stored: place of each clip in its archive, None for a file of its own.
    """
    builder = RowTableBuilder(Path())
    for row, place in zip(rows, stored, strict=True):
        builder.append(row, place)
    return builder.columns()


def _stat(path: str) -> int | None:
    try:
        return os.stat(path).st_mode  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None


def _clean(text: str, *, may_be_empty: bool) -> str:
    try:
        return clean_text(text, may_be_empty=may_be_empty)
    except TextError as e:
        raise FieldError(e.reason, str(e)) from e


def _text(fields: dict[str, Any], name: str, *, default: str | None = None) -> str:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        known = ", ".join(sorted(fields)) or "nothing"
        raise FieldError(Reason.LINE_JSON, f"field {name!r} is missing; found {known}")
    if not isinstance(value, str):
        raise FieldError(Reason.LINE_JSON, f"field {name!r} must be text, found {value!r:.40}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as e:
            raise FieldError(Reason.LINE_ENCODING, f"field {name!r} holds half a surrogate pair") from e
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise FieldError(Reason.LINE_JSON, f"field {name!r} must be true or false, found {value!r:.40}")
    return value


def _seconds(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise FieldError(Reason.LINE_JSON, f"field {name!r} must be seconds, 0 or more, found {value!r:.40}")
    return float(value)


def _segments(fields: dict[str, Any]) -> tuple[Segment, ...]:
    raw = fields.get("segments")
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise FieldError(Reason.LINE_JSON, "field 'segments' must be a list")
    segments: list[Segment] = []
    for item in raw:
        if not isinstance(item, dict):
            raise FieldError(Reason.LINE_JSON, "a segment must be an object with start, end and text")
        start_s, end_s = _seconds(item, "start"), _seconds(item, "end")
        if start_s is None or end_s is None or end_s < start_s:
            raise FieldError(Reason.LINE_JSON, f"segment {len(segments)} has no start <= end")
        segments.append(Segment(start_s, end_s, _clean(_text(item, "text"), may_be_empty=True)))
    return tuple(segments)
