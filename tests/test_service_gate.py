"""Nobody gets past the gate without the key, under a strange name, from a strange page, or with too much."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from serve.gate import Gate
from serve.metrics import Metrics
from serve.settings import KEY_NAME, ServeSettings, verify_key

KEY = "0123456789abcdef0123"


def _ask(*, key=None, path="/v1/models", headers=None, bodies=(b"",), kind="http", **settings):
    """Return (status, body, headers) of a request through the gate, or the close code of a WebSocket."""
    sent, given = [], {"host": "127.0.0.1:7860", **(headers or {})}
    messages = [
        {"type": "http.request", "body": body, "more_body": i + 1 < len(bodies)} for i, body in enumerate(bodies)
    ]

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        more = True
        while more:
            more = (await receive())["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.sleep(3600)

    async def send(message):
        sent.append(message)

    scope = {
        "type": kind,
        "path": path,
        "method": "POST",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    gate = Gate(app, settings=ServeSettings(**settings), key=key, metrics=Metrics())
    asyncio.run(asyncio.wait_for(gate(scope, receive, send), 5))
    if kind == "websocket":
        return sent[0]["type"], sent[0].get("code")
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


def _basic(password, name="anybody"):
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def test_the_key_opens_as_a_bearer_token_and_as_a_browsers_password():
    assert _ask(key=KEY, headers={"authorization": f"Bearer {KEY}"})[0] == 200
    assert _ask(key=KEY, headers=_basic(KEY))[0] == 200
    assert _ask(key=KEY, path="/health")[0] == 200
    assert _ask()[0] == 200  # no key asked for


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": KEY},
        {"authorization": "Bearer ключ"},
        {"authorization": "Basic ???"},
        _basic("wrong"),
        _basic("", name=KEY),
        {"x-api-key": KEY},
    ],
    ids=str,
)
def test_without_the_key_nothing_opens(headers):
    for path in ("/v1/models", "/metrics", "/", "/docs", "/health/../v1/models"):
        status, body, answered = _ask(key=KEY, path=path, headers=headers)
        assert status == 401
        assert json.loads(body)["error"]["code"] == "invalid_api_key"
        assert answered[b"www-authenticate"].startswith(b"Basic")  # a browser then asks for it
    assert _ask(key=KEY, headers=headers, kind="websocket", path="/v1/realtime") == ("websocket.close", 1008)


def test_web_pages_reach_the_machine_under_no_other_name():
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "localhost@evil.example"):
        assert _ask(headers={"host": host})[0] == 421
    for host in ("localhost:7860", "127.0.0.1", "[::1]:7860", "LOCALHOST"):
        assert _ask(headers={"host": host})[0] == 200
    assert _ask(headers={"host": "speech.example"}, hosts=("speech.example",))[0] == 200
    assert _ask(headers={"host": "speech.example"}, host="0.0.0.0")[0] == 200


def test_other_pages_are_not_answered():
    assert _ask(headers={"origin": "http://127.0.0.1:7860"})[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert _ask(headers={"origin": origin})[0] == 403
        assert _ask(headers={"origin": origin}, kind="websocket")[0] == "websocket.close"


def test_a_body_is_counted_whatever_its_header_says():
    limits = {"max_upload_mb": 0.001}
    assert _ask(bodies=(b"x" * 1000,), **limits)[0] == 200
    assert _ask(bodies=(b"x" * 600, b"x" * 600), **limits)[0] == 413
    assert _ask(headers={"content-length": "1001"}, **limits)[0] == 413
    assert _ask(headers={"content-length": "-5"}, **limits)[0] == 413
    assert json.loads(_ask(bodies=(b"x" * 1001,), **limits)[1])["error"]["code"] == "upload_too_large"


def test_a_body_that_stops_coming_is_given_up():
    sent = []

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    async def receive():
        if not sent:
            sent.append(1)
            return {"type": "http.request", "body": b"begin", "more_body": True}
        await asyncio.sleep(3600)

    answered = []

    async def send(message):
        answered.append(message)

    gate = Gate(app, settings=ServeSettings(upload_timeout_s=0.05), key=None, metrics=Metrics())
    scope = {"type": "http", "path": "/v1/x", "method": "POST", "headers": [(b"host", b"localhost")]}
    asyncio.run(asyncio.wait_for(gate(scope, receive, send), 5))
    assert answered[0]["status"] == 408


def test_others_reach_the_service_only_with_a_key_or_where_it_is_open():
    assert verify_key(ServeSettings(), None) is None
    assert verify_key(ServeSettings(host="localhost"), None) is None
    assert verify_key(ServeSettings(host="0.0.0.0", open=True), None) is None
    assert verify_key(ServeSettings(host="0.0.0.0"), KEY) == KEY
    for host in ("0.0.0.0", "::", "192.168.1.5", "speech.example"):
        with pytest.raises(ValueError, match=f"{KEY_NAME}.*serve.open=true"):
            verify_key(ServeSettings(host=host), None)
    with pytest.raises(ValueError, match="at least 16"):
        verify_key(ServeSettings(), "short")


@pytest.mark.parametrize("change", [{"port": 70_000}, {"max_batch": 0}, {"max_wait_ms": -1.0}, {"max_upload_mb": 0.0}])
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match=f"serve.{next(iter(change))}="):
        ServeSettings(**change)
