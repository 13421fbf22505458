"""The application: routes of the API, the live route and the page around one engine."""

from __future__ import annotations

from fastapi import FastAPI

from serve.engine import Engine
from serve.settings import ServeSettings


def build_app(engine: Engine, settings: ServeSettings, *, key: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        engine: started and stopped with the application.
        settings: limits.
        key: that every request but `/health` must bring, as a bearer token or as the password of a browser's login.
    """
    app = FastAPI(title="Mezzavoce", docs_url="/docs", openapi_url="/openapi.json")
    return app
