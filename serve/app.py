"""The application: routes of the API, the live route and the page around one engine."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve.api import build_router
from serve.engine import Engine
from serve.errors import ServiceError
from serve.gate import Gate
from serve.live import Places
from serve.page.page import mount_page
from serve.realtime import build_realtime
from serve.settings import ServeSettings
from serve.uploads import UploadFolder

logger = logging.getLogger(__name__)


def build_app(engine: Engine, settings: ServeSettings, *, key: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        engine: started and stopped with the application.
        settings: limits.
        key: that every request but `/health` must bring, as a bearer token or as the password of a browser's login.
    """
    uploads = UploadFolder(Path(settings.dir) / "uploads")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        uploads.open()
        try:
            await engine.start()
            # What was imported stays: looked through at each full collection, it would hold all requests up for 0.2 s.
            gc.collect()
            gc.freeze()
            yield
            await engine.stop()
        finally:
            uploads.close()

    app = FastAPI(
        title="Mezzavoce",
        description="Speech to text through an artefact, in the shape of OpenAI's audio API.",
        lifespan=lifespan,
    )
    app.include_router(build_router(engine, uploads))
    places = Places(settings.max_streams)
    app.include_router(build_realtime(engine, places, stream=settings.stream))
    if settings.page:
        mount_page(app, engine, settings, places, folder=uploads.path / "page")
    _answer_errors(app)
    app.add_middleware(Gate, settings=settings, key=key, metrics=engine.metrics)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Say everything that goes wrong in OpenAI's form; a traceback goes into the log and nowhere else."""

    def answer(error: ServiceError) -> JSONResponse:
        headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
        return JSONResponse(error.as_dict(), status_code=error.status, headers=headers)

    @app.exception_handler(ServiceError)
    async def _(request: Request, error: ServiceError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        return answer(ServiceError(str(error.detail), status=error.status_code, code="invalid_request"))

    @app.exception_handler(ClientDisconnect)
    async def _(request: Request, error: ClientDisconnect) -> JSONResponse:
        return answer(ServiceError("the client went away", status=499, code="client_gone"))

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(ServiceError("something went wrong here; the log says what", status=500, code="internal"))
