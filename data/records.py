"""What a source says of its clips, checked field by field; what passes becomes a row, the rest is listed."""

from __future__ import annotations

import difflib
import os
import stat
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.fields import FIELDS, FieldError, clean, read_flag, read_seconds, read_segments, read_text
from data.languages import TASKS, verify_language
from data.reasons import Reason, Rejected, reject
from data.rows import SCHEMA, LostClip, Row, RowTable, StoredAudio

CHUNK_ROWS = 65_536  # rows that wait as Python objects before they become columns


MAX_PASSED_OVER = 1000  # names that are kept for a warning; a broken source may have another one in every line


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


class RowTableBuilder:
    """Check records one by one, and gather those that pass into columns."""

    def __init__(
        self,
        path: Path,
        *,
        folder: Path | None = None,
        root: Path | None = None,
        is_archive: bool = False,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        """Begin an empty table.

        Args:
            path: of the source, for messages.
            folder: what relative audio paths begin at; the folder of `path` if None.
            root: audio must lie below this folder; None allows any.
            is_archive: the clips lie in the source itself, each at the place that its record calls `stored`.
            defaults: fields of records that have none of their own, such as the language.
        """
        self.path = path
        self.folder = str(folder if folder is not None else path.parent)
        self.root = None if root is None else root.resolve()
        self.defaults = {name: value for name, value in (defaults or {}).items() if value is not None}
        self.is_archive = is_archive
        self.rejected: list[Rejected] = []
        self.num_other_form = 0
        """Audio files that were found by their name in another Unicode form."""
        self.passed_over: set[str] = set()
        """Fields that are none of ours."""
        self._lost: list[tuple[int, str, int | None, float | None, float | None]] = []
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
        if not fields.keys() <= FIELDS and len(self.passed_over) < MAX_PASSED_OVER:
            self.passed_over |= fields.keys() - FIELDS - {"stored"}
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
        columns["byte_offset"].append(row.byte_offset)
        columns["stamp"].append(row.stamp)
        if len(columns["id"]) >= CHUNK_ROWS:
            self._flush()

    def remarks(self) -> list[str]:
        """Return what its author should know of a source, though every line of it may be good."""
        remarks = [
            f"{self.path}: field {name!r} is passed over; did you mean {near[0]}? columns={{{near[0]}: {name}}} says so"
            for name in sorted(self.passed_over, key=str)
            if isinstance(name, str) and (near := difflib.get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.75))
        ]
        if self.num_other_form:
            remarks.append(
                f"{self.path}: {self.num_other_form} audio files have their names in another Unicode form on this disk "
                "(NFC or NFD), and were found by it"
            )
        return remarks

    def columns(self) -> pa.Table:
        """Return all rows so far."""
        self._flush()
        return pa.Table.from_batches(self._batches, SCHEMA).unify_dictionaries()

    def build(self, *, open_stored: Callable[[int], StoredAudio] | None = None) -> RowTable:
        """Return the table."""
        lost = []
        for line, audio, place, offset_s, duration_s in self._lost:
            if place is None:
                lost.append(LostClip(line, Path(audio), offset_s, duration_s))
            elif open_stored is not None:
                lost.append(LostClip(line, open_stored(place), offset_s, duration_s))
        return RowTable(self.path, self.columns(), self.rejected, lost=lost, open_stored=open_stored)

    def _flush(self) -> None:
        arrays = [pa.array(self._columns[field.name], field.type) for field in SCHEMA]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        for values in self._columns.values():
            values.clear()

    def _reject(self, record: Record | BrokenRecord, reason: Reason, fields: dict[str, Any], detail: str) -> None:
        if fields.get("audio"):
            self._lose(record.line, fields)
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

    def _lose(self, line: int, fields: dict[str, Any]) -> None:
        """Remember the audio of a line that cannot be used, if there is any."""
        try:
            times = read_seconds(fields, "offset_s"), read_seconds(fields, "duration_s")
            place = fields.get("stored") if self.is_archive else None
            audio = str(fields["audio"]) if place is not None else self._find_audio(read_text(fields, "audio"))[0]
        except FieldError:
            return
        self._lost.append((line, audio, place, *times))

    def _check(self, record: Record) -> tuple[Row, int | None]:
        fields = {**self.defaults, **{k: v for k, v in record.fields.items() if v is not None}}
        place = fields.get("stored") if self.is_archive else None
        audio = read_text(fields, "audio")
        path, stamp = (audio, None) if place is not None else self._find_audio(audio)
        language = read_text(fields, "language")
        if language not in self._known_languages:
            try:
                self._known_languages.add(verify_language(language))
            except ValueError as e:
                raise FieldError(Reason.TEXT_LANGUAGE, str(e)) from e
        task = read_text(fields, "task", default="transcribe")
        if task not in TASKS:
            raise FieldError(Reason.TEXT_TASK, repr(task))
        no_speech = read_flag(fields, "no_speech")
        text = clean(read_text(fields, "text", default="" if no_speech else None), may_be_empty=no_speech)
        if no_speech and text:
            raise FieldError(Reason.LINE_JSON, f"no_speech is true, and yet the text is {text!r:.40}")
        offset_s = read_seconds(fields, "offset_s")
        prompt = read_text(fields, "prompt", default="")
        row = Row(
            id=read_text(fields, "id", default="") or (f"{audio}@{offset_s:g}" if offset_s else audio),
            audio=Path(path),
            text=text,
            language=language,
            task=task,
            duration_s=read_seconds(fields, "duration_s"),
            offset_s=offset_s,
            segments=read_segments(fields),
            prompt=clean(prompt, may_be_empty=True) if prompt else "",
            speaker=read_text(fields, "speaker", default=""),
            manifest=self.path,
            line=record.line,
            no_speech=no_speech,
            byte_offset=record.byte_offset,
            stamp=stamp,
        )
        return row, place

    def _find_audio(self, audio: str) -> tuple[str, int]:
        """Return the path of a file, and the stamp of what is there now."""
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
                twin = next((twin for twin in twins if twin != path and _stat(twin) is not None), None)
                if twin is not None:
                    self.num_other_form += 1
                    path, found = twin, _stat(twin)
        except (OSError, RuntimeError, ValueError) as e:  # too long, a folder that may not be entered, `~nobody`
            raise FieldError(Reason.AUDIO_MISSING, f"{audio:.200}: {getattr(e, 'strerror', None) or e}") from e
        if found is None:
            raise FieldError(Reason.AUDIO_MISSING, path)
        if not stat.S_ISREG(found.st_mode):
            raise FieldError(Reason.AUDIO_NOT_A_FILE, path)
        if self.root is not None and not Path(path).resolve().is_relative_to(self.root):
            raise FieldError(Reason.LINE_URL, f"{path} lies outside dataset.root={self.root}")
        return path, stamp_of(found)


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


def stamp_of(status: os.stat_result) -> int:
    """Return 63 bits that stand for size and time of change of a file."""
    return (status.st_mtime_ns * 1_000_003 ^ status.st_size) & (2**63 - 1)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
