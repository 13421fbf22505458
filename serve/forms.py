"""The form of a transcription request, checked field by field before any audio is looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from data.languages import verify_language
from serve.errors import ServiceError
from serve.options import Options

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = ("segment", "word")
KNOWN_FIELDS = (
    *("file", "model", "language", "prompt", "response_format", "temperature", "stream"),
    *("timestamp_granularities[]", "timestamp_granularities", "include[]", "chunking_strategy"),
    "profile",
)
MAX_FIELDS = 32
MAX_FIELD_BYTES = 1 << 16


@dataclass(frozen=True)
class TranscriptionForm:
    """What a caller sent."""

    file: UploadFile
    options: Options
    response_format: str
    granularities: tuple[str, ...]
    stream: bool


@asynccontextmanager
async def read_form(request: Request, *, task: str) -> AsyncIterator[TranscriptionForm]:
    """Read the body of a request.

    Args:
        request: its body is not read yet.
        task: `transcribe` or `translate`, by the route.

    Raises:
        ServiceError: 400 for a form that cannot be used.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ServiceError("send a multipart/form-data body with a field `file`", status=400, code="invalid_form")
    try:
        form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except HTTPException as e:
        raise ServiceError(f"the form cannot be read: {e.detail}", status=400, code="invalid_form") from e
    except ClientDisconnect as e:
        raise ServiceError("the client went away", status=499, code="client_gone") from e
    try:
        yield _checked(form, task)
    finally:
        await form.close()


def _checked(form: FormData, task: str) -> TranscriptionForm:
    unknown = [name for name in form if name not in KNOWN_FIELDS]
    if unknown:
        raise _wrong(
            unknown[0][:40], f"the field {unknown[0][:40]!r} is not known; known are {', '.join(KNOWN_FIELDS)}"
        )
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise _wrong("file", "the field `file` must hold an audio file; addresses are never fetched")
    response_format = _text(form, "response_format") or "json"
    if response_format not in RESPONSE_FORMATS:
        raise _wrong("response_format", f"response_format must be one of {', '.join(RESPONSE_FORMATS)}")
    granularities = tuple(
        str(value) for name in ("timestamp_granularities[]", "timestamp_granularities") for value in form.getlist(name)
    )
    _verify_granularities(granularities, response_format)
    stream = _text(form, "stream").lower() in ("true", "1")
    if stream and response_format not in ("json", "text"):
        raise _wrong("stream", "stream=true goes with response_format json or text")
    options = Options(
        model=_text(form, "model"),
        language=_language(_text(form, "language")),
        task=task,
        profile=_text(form, "profile"),
        temperature=_number(form, "temperature"),
        prompt=_text(form, "prompt") or None,
        words="word" in granularities,
    )
    return TranscriptionForm(file, options, response_format, granularities, stream)


def _verify_granularities(granularities: tuple[str, ...], response_format: str) -> None:
    if not granularities:
        return
    if response_format != "verbose_json":
        raise _wrong("timestamp_granularities", "timestamp_granularities go with response_format=verbose_json")
    unknown = [name for name in granularities if name not in GRANULARITIES]
    if unknown:
        raise _wrong("timestamp_granularities", f"timestamp_granularities must be among {', '.join(GRANULARITIES)}")


def _language(given: str) -> str:
    """Return the code; none given is detected."""
    if not given or given == "auto":
        return "auto"
    try:
        return verify_language(given)
    except ValueError as e:
        raise _wrong("language", str(e)[:200]) from e


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    if isinstance(value, UploadFile):
        raise _wrong(name, f"the field `{name}` must be text")
    return (value or "").strip()


def _number(form: FormData, name: str) -> float | None:
    text = _text(form, name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise _wrong(name, f"{name}={text[:20]!r} must be a number") from None
    if not 0 <= value <= 1:
        raise _wrong(name, f"{name}={text[:20]} must lie in 0 to 1")
    return value


def _wrong(param: str, message: str) -> ServiceError:
    return ServiceError(message, status=400, code=f"invalid_{param}", param=param)
