"""The fields of a row, each checked for itself."""

from __future__ import annotations

import sys
from typing import Any

from data.reasons import Reason
from data.rows import Segment
from data.texts import TextError, clean_text

FIELDS = frozenset(
    ["id", "audio", "text", "language", "task", "duration_s", "offset_s", "segments", "prompt", "speaker", "no_speech"]
)
"""What a row can have; other columns of a source are passed over."""


class FieldError(Exception):
    """A field that cannot be used; `reason` says why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def clean(text: str, *, may_be_empty: bool) -> str:
    """Return a text in one Unicode form; see `clean_text`.

    Raises:
        FieldError: if it is no transcript.
    """
    try:
        return clean_text(text, may_be_empty=may_be_empty)
    except TextError as e:
        raise FieldError(e.reason, str(e)) from e


def read_text(fields: dict[str, Any], name: str, *, default: str | None = None) -> str:
    """Return a field that must be text; `default` where it is not there, if that is not None.

    Raises:
        FieldError: if it is missing, no text, or holds half a character.
    """
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


def read_flag(fields: dict[str, Any], name: str) -> bool:
    """Return a field that must be true or false; false where it is not there.

    Raises:
        FieldError: if it is neither.
    """
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise FieldError(Reason.LINE_JSON, f"field {name!r} must be true or false, found {value!r:.40}")
    return value


def read_seconds(fields: dict[str, Any], name: str) -> float | None:
    """Return a field that must be seconds, finite and not below 0; None where it is not there.

    Raises:
        FieldError: if it is anything else.
    """
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise FieldError(Reason.LINE_JSON, f"field {name!r} must be seconds, 0 or more, found {value!r:.40}")
    return float(value)


def read_segments(fields: dict[str, Any]) -> tuple[Segment, ...]:
    """Return the timed parts of a recording, none where there are none.

    Raises:
        FieldError: if they are no list of objects with start, end and text.
    """
    raw = fields.get("segments")
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise FieldError(Reason.LINE_JSON, "field 'segments' must be a list")
    segments: list[Segment] = []
    for item in raw:
        if not isinstance(item, dict):
            raise FieldError(Reason.LINE_JSON, "a segment must be an object with start, end and text")
        start_s, end_s = read_seconds(item, "start"), read_seconds(item, "end")
        if start_s is None or end_s is None or end_s < start_s:
            raise FieldError(Reason.LINE_JSON, f"segment {len(segments)} has no start <= end")
        segments.append(Segment(start_s, end_s, clean(read_text(item, "text"), may_be_empty=True)))
    return tuple(segments)
