"""The API, in OpenAI's shape: transcriptions, translations, models; and what operators ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from infer.transcript import Transcript
from serve.answers import event, last_event, write_answer
from serve.engine import Engine
from serve.errors import ServiceError
from serve.forms import GRANULARITIES, RESPONSE_FORMATS, TranscriptionForm, read_form
from serve.options import Options, Progress
from serve.uploads import UploadFolder

SHORT_BYTES = 1_000_000  # of a body that comes at once

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "audio of any usual format"},
                        "model": {"type": "string", "description": "a name of GET /v1/models; empty takes the first"},
                        "language": {"type": "string", "description": "ISO code; none is detected"},
                        "prompt": {"type": "string", "description": "text that came before"},
                        "response_format": {"type": "string", "enum": list(RESPONSE_FORMATS), "default": "json"},
                        "temperature": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
                        "timestamp_granularities[]": {
                            "type": "array",
                            "items": {"type": "string", "enum": list(GRANULARITIES)},
                        },
                        "stream": {"type": "boolean", "default": False},
                        "profile": {"type": "string", "description": "way to decode, such as greedy or beam5"},
                    },
                }
            }
        },
    }
}


def build_router(engine: Engine, uploads: UploadFolder) -> APIRouter:
    """Return the routes.

    Args:
        engine: transcribes.
        uploads: where files lie meanwhile.
    """
    router = APIRouter()

    @router.post("/v1/audio/transcriptions", openapi_extra=_FORM, tags=["audio"])
    async def transcriptions(request: Request) -> Response:
        """Return what a recording says, in its language."""
        return await _answer(request, engine, uploads, task="transcribe")

    @router.post("/v1/audio/translations", openapi_extra=_FORM, tags=["audio"])
    async def translations(request: Request) -> Response:
        """Return what a recording says, in English; for models that were trained to translate."""
        return await _answer(request, engine, uploads, task="translate")

    @router.get("/v1/models", tags=["models"])
    async def models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [_model(engine, name) for name in engine.models()]}

    @router.get("/v1/models/{name}", tags=["models"])
    async def model(name: str) -> dict[str, Any]:
        """Describe one model."""
        return _model(engine, name)

    @router.get("/health", tags=["operation"])
    async def health() -> JSONResponse:
        """Say whether the service takes requests; 503 while it starts or ends."""
        return JSONResponse(engine.status(), status_code=200 if engine.state == "ready" else 503)

    @router.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """Return counters for Prometheus."""
        written = engine.metrics.write(engine.process_ids())
        return Response(written, headers={"content-type": engine.metrics.content_type})

    return router


def _model(engine: Engine, name: str) -> dict[str, Any]:
    description = engine.describe(name)
    description.pop("path", None)
    (description.get("source") or {}).pop("path", None)
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "mezzavoce",
        "languages": [code for code, _ in engine.languages(name)],
        "profiles": engine.profiles(name),
        "has_timestamps": engine.has_timestamps(name),
        "description": description,
    }


async def _answer(request: Request, engine: Engine, uploads: UploadFolder, *, task: str) -> Response:
    async with contextlib.AsyncExitStack() as stack:
        has_place = await _take_place(request, engine, stack)
        form = await stack.enter_async_context(read_form(request, task=task))
        options = _with_times(form, engine)
        engine.verify(options)  # before the audio is looked at
        path = await stack.enter_async_context(uploads.keep(form.file.file))
        if form.stream:
            held = stack.pop_all()  # the file stays until the stream ends
            return StreamingResponse(
                _stream(engine, path, options, held, has_place=has_place), media_type="text/event-stream"
            )
        work = asyncio.create_task(engine.transcribe(path, options, has_place=has_place))
        transcript = await _unless_gone(request, work)
        return write_answer(transcript, form.response_format, task=task, granularities=form.granularities)


async def _take_place(request: Request, engine: Engine, stack: contextlib.AsyncExitStack) -> bool:
    """Stop before a body is read that could not be worked on; it is let in and dropped, so that the answer is heard.

    A short upload takes its place now: of many that come at the same moment, all would find one free, and hear only
    after all are read that there is none. A long one takes it when it is here, so that slow lines hold no places.
    """
    is_short = int(request.headers.get("content-length") or SHORT_BYTES + 1) <= SHORT_BYTES
    try:
        if is_short:
            stack.enter_context(engine.admission.place())
        else:
            engine.admission.refuse_if_busy()
    except ServiceError:
        async for _ in request.stream():
            pass
        raise
    return is_short


def _with_times(form: TranscriptionForm, engine: Engine) -> Options:
    """Ask for predicted times where the answer has some and the model can."""
    wants = form.response_format in ("srt", "vtt", "verbose_json")
    return replace(form.options, timestamps=wants and engine.has_timestamps(form.options.model))


async def _unless_gone(request: Request, work: asyncio.Task[Transcript]) -> Transcript:
    """Wait for a transcript, or end the work as soon as the client goes away."""
    gone = asyncio.create_task(_wait_until_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ServiceError("the client went away", status=499, code="client_gone")
        return work.result()
    finally:
        for task in (gone, work):
            task.cancel()
        await asyncio.gather(gone, work, return_exceptions=True)


async def _wait_until_gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


async def _stream(
    engine: Engine, path: Path, options: Options, held: contextlib.AsyncExitStack, *, has_place: bool
) -> AsyncIterator[bytes]:
    """Yield the text of each window as soon as all before it are there."""
    news: asyncio.Queue[str] = asyncio.Queue()
    said = ""

    def note(progress: Progress) -> None:
        news.put_nowait(progress.text)

    async with held:
        work = asyncio.create_task(engine.transcribe(path, options, on_progress=note, has_place=has_place))
        try:
            while not (work.done() and news.empty()):
                coming = asyncio.create_task(news.get())
                await asyncio.wait((work, coming), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    continue
                text = coming.result()
                if len(text) > len(said):
                    yield event({"type": "transcript.text.delta", "delta": text[len(said) :]})
                    said = text
            yield last_event(work.result())
        except ServiceError as e:
            yield event({"type": "error", **e.as_dict()})
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
