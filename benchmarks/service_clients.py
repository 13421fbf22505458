"""Clients of the service that cost as little as they can: requests built beforehand, sent over kept connections."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

RESTED_S = 0.05  # between two looks at /health


@dataclass
class Answer:
    """What came back."""

    status: int
    """0 if the connection ended before an answer."""
    body: bytes
    elapsed_s: float
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Of a transcription."""
        return str(json.loads(self.body)["text"])


def build_request(audio: bytes, fields: dict[str, str] | None = None, *, name: str = "clip.ogg") -> bytes:
    """Return a whole request for a transcription.

    Args:
        audio: the file.
        fields: of the form, besides it.
        name: that the client gives the file.
    """
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in (fields or {}).items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    body = b"".join([*parts, head, audio, f"\r\n--{boundary}--\r\n".encode()])
    return (
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        + f"Content-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


class Client:
    """One connection, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer."""
        begin = time.perf_counter()
        try:
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writer.write(request)
            status, headers, body = await self._read()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return Answer(0, b"", time.perf_counter() - begin)
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, body, time.perf_counter() - begin, headers)

    async def get(self, path: str) -> Answer:
        """Ask for a page."""
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    async def _read(self) -> tuple[int, dict[str, str], bytes]:
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body

    def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class HealthWatch:
    """Ask for /health all the time and keep how long each answer took."""

    def __init__(self, port: int) -> None:
        self.latencies_s: list[float] = []
        self.statuses: set[int] = set()
        self._client = Client(port)
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            answer = await self._client.get("/health")
            self.latencies_s.append(answer.elapsed_s)
            self.statuses.add(answer.status)
            await asyncio.sleep(RESTED_S)

    async def stop(self) -> None:
        """End the watch."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._client.close()


async def health(port: int) -> dict[str, Any]:
    """Return what /health says now."""
    client = Client(port)
    answer = await client.get("/health")
    client.close()
    return dict(json.loads(answer.body)) if answer.body else {}


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
