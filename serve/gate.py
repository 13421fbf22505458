"""What stands before every route: whom the service answers, how much it reads, and how long it took.

Plain ASGI, so that it sees bodies before anything parses them, and WebSockets as well.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from serve.errors import ServiceError
from serve.metrics import Metrics
from serve.settings import ServeSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_ROUTES = ("/health",)
COUNTED_ROUTES = ("/v1", "/health", "/metrics")
QUIET_ROUTES = ("/health", "/metrics")  # asked every few seconds
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
POLICY_VIOLATION = 1008  # WebSocket close code

logger = logging.getLogger(__name__)


class Gate:
    """Check host, origin, key and size of every request, and count it."""

    def __init__(self, app: App, *, settings: ServeSettings, key: str | None, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._key = key
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._verify(scope, headers)
        except ServiceError as e:
            await refuse(scope, watched, e)
        else:
            limited = _Limited(receive, self._settings) if scope["type"] == "http" else receive
            try:
                await self._app(scope, limited, watched)
            except ServiceError as e:  # raised by `_Limited`, where the body was read outside a route
                if status == 0:
                    await refuse(scope, watched, e)
        elapsed_s = time.monotonic() - begin
        if scope["type"] == "http":
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.note_request(
                route if route.startswith(("/v1", "/health", "/metrics")) else "other", status, elapsed_s
            )
            if route.startswith("/v1"):
                logger.info("%s %s %d %.0f ms", scope["method"], route, status, 1000 * elapsed_s)

    def _verify(self, scope: Scope, headers: MutableMapping[str, str]) -> None:
        """Stop what comes under another name, from another web page, without the key, or is too large."""
        host = headers.get("host", "")
        names = (*LOCAL_NAMES, *self._settings.hosts)
        if self._settings.is_local and _name_of(host) not in names:
            raise ServiceError(
                f"this service does not go by the name {_name_of(host)!r}; serve.hosts=[NAME] allows one",
                status=421,
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise ServiceError("requests of other web pages are not answered", status=403, code="foreign_origin")
        if self._key is not None and scope["path"] not in OPEN_ROUTES and not self._brings_key(headers):
            raise ServiceError("the key is missing or wrong", status=401, code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._settings.max_upload_bytes:
            raise too_large(self._settings)

    def _brings_key(self, headers: MutableMapping[str, str]) -> bool:
        """Look for the key: a bearer token, as API clients send it, or the password of a browser's login."""
        assert self._key is not None
        scheme, _, value = headers.get("authorization", "").partition(" ")
        given = value.strip()
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")[2]
            except binascii.Error:
                return False
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._key.encode())


class _Limited:
    """The body of a request, counted and timed while it comes."""

    def __init__(self, receive: Receive, settings: ServeSettings) -> None:
        self._receive = receive
        self._settings = settings
        self._num_bytes = 0
        self._is_read = False

    async def __call__(self) -> Message:
        if self._is_read:  # what comes now is the end of the connection, whenever that is
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._settings.upload_timeout_s)
        except TimeoutError:
            raise ServiceError("the upload stopped", status=408, code="upload_timeout") from None
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._is_read = not message.get("more_body", False)
            if self._num_bytes > self._settings.max_upload_bytes:
                raise too_large(self._settings)
        return message


def too_large(settings: ServeSettings) -> ServiceError:
    """Return what is said of a body over the limit."""
    return ServiceError(
        f"the upload is larger than {settings.max_upload_mb:g} MB", status=413, code="upload_too_large", param="file"
    )


async def refuse(scope: Scope, send: Send, error: ServiceError) -> None:
    """Answer with an error in OpenAI's form, or close a WebSocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": error.message[:120]})
        return
    body = json.dumps(error.as_dict(), ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="Mezzavoce", charset="UTF-8"'))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name_of(host: str) -> str:
    """Return the name in a Host header, without the port."""
    return (urlsplit(f"//{host}").hostname or "") if "@" not in host else ""
