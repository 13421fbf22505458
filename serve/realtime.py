"""The live route, `/v1/realtime`: audio in and text out over one WebSocket, in the events of OpenAI's realtime API."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soxr
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from data.audio import SAMPLING_RATE, Waveform
from infer.decoding import Decoded
from serve.engine import Engine, Options
from serve.errors import ServiceError
from serve.live import LiveSession, Places, with_language
from serve.realtime_session import Session, choose_model, invalid, update_session
from serve.stream_settings import StreamSettings
from serve.streaming import Update

ITEM = "conversation.item.input_audio_transcription"
MAX_EVENT_CHARS = 1_000_000  # 15 s of PCM16 at 24 kHz in base64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealtimeLimits:
    """What a conversation may take."""

    idle_s: float = 60.0
    """Without any event from the client."""
    max_session_s: float = 3600.0
    send_timeout_s: float = 20.0
    """For a client that does not read."""


def build_realtime(
    engine: Engine,
    places: Places,
    *,
    stream: StreamSettings | None = None,
    limits: RealtimeLimits | None = None,
) -> APIRouter:
    """Return the route; key, host and origin are the gate's business.

    Args:
        engine: decodes windows.
        places: of all live conversations.
        stream: how live text is made.
        limits: of each conversation.
    """
    router = APIRouter()
    chosen = limits or RealtimeLimits()

    @router.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
        conversation = Conversation(socket, engine, chosen, stream or StreamSettings())
        try:
            with places.taken():
                await asyncio.wait_for(conversation.run(), chosen.max_session_s)
        except ServiceError as e:
            await conversation.say_error(e)
        except TimeoutError:
            await conversation.say_error(
                invalid(
                    f"a conversation ends after {chosen.max_session_s:.0f} s; connect again", code="session_expired"
                )
            )
        except (WebSocketDisconnect, RuntimeError) as e:  # the latter is how starlette says that a socket is closed
            if not isinstance(e, WebSocketDisconnect) and socket.client_state == WebSocketState.CONNECTED:
                logger.exception("a live conversation failed")
        if WebSocketState.DISCONNECTED not in (socket.client_state, socket.application_state):
            await socket.close()

    return router


class Conversation:
    """One client: its events in, our events out."""

    def __init__(self, socket: WebSocket, engine: Engine, limits: RealtimeLimits, stream: StreamSettings) -> None:
        self._socket = socket
        self._engine = engine
        self._limits = limits
        self._session = Session(stream=stream)
        self._live = LiveSession(self._decode, self._session.stream_settings)
        self._resampler: soxr.ResampleStream | None = None
        self._half_sample = b""
        self._item_id = ""
        self._last_item_id: str | None = None

    async def run(self) -> None:
        """Talk until the client goes away.

        Raises:
            ServiceError: if it asks for a model that is not served, or is silent for too long.
            WebSocketDisconnect: if it goes away.
        """
        asked = self._socket.query_params.get("model", "")
        model = choose_model(asked, self._engine)
        self._session = replace(self._session, options=Options(model=model))
        await self._say("session.created", session=self._session.as_dict())
        tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._answer())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> None:
        while True:
            try:
                text = await asyncio.wait_for(self._socket.receive_text(), self._limits.idle_s)
            except TimeoutError:
                raise invalid(f"no event came for {self._limits.idle_s:.0f} s", code="idle") from None
            except KeyError:
                raise invalid("events are JSON texts; audio goes into them as base64") from None
            event: Any = None
            try:
                event = _parse(text)
                await self._take(event)
            except ServiceError as e:
                await self.say_error(e, event_id=event.get("event_id") if isinstance(event, Mapping) else None)

    async def _take(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "session.update":
            said = event.get("session")
            if not isinstance(said, Mapping):
                raise invalid("session.update needs an object `session`", "session")
            session = update_session(self._session, said, self._engine)
            if session.rate != self._session.rate:
                self._resampler, self._half_sample = None, b""
            self._session = session
            self._live.stream.settings = session.stream_settings
            await self._say("session.updated", session=session.as_dict())
        elif kind == "input_audio_buffer.append":
            await self._live.add(self._to_waveform(event.get("audio")))  # returns when there is room for more
        elif kind == "input_audio_buffer.commit":
            self._live.commit()
        elif kind == "input_audio_buffer.clear":
            self._live.clear()
            self._item_id = ""
            await self._say("input_audio_buffer.cleared")
        else:
            raise invalid(
                f"an event of type {kind!r:.80} is not known here; give session.update or "
                "input_audio_buffer.append, .commit or .clear",
                "type",
                code="unknown_event",
            )

    def _to_waveform(self, audio: object) -> Waveform:
        if not isinstance(audio, str):
            raise invalid("input_audio_buffer.append needs `audio`: PCM16 in base64", "audio")
        try:
            data = self._half_sample + base64.b64decode(audio, validate=True)
        except binascii.Error as e:
            raise invalid(f"`audio` is no base64: {e}", "audio") from None
        whole = len(data) // 2 * 2
        data, self._half_sample = data[:whole], data[whole:]
        waveform = np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768)
        rate = self._session.rate
        if rate == SAMPLING_RATE:
            return waveform
        if self._resampler is None:
            self._resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
        return np.asarray(self._resampler.resample_chunk(waveform), dtype=np.float32)

    async def _decode(self, waveform: Waveform, language: str) -> Decoded:
        return await self._engine.transcribe_window(waveform, with_language(self._session.options, language))

    async def _answer(self) -> None:
        async for update in self._live.updates():
            await self._say_update(update)

    async def _say_update(self, update: Update) -> None:
        if not self._item_id:
            self._item_id = f"item_{uuid.uuid4().hex}"
            start_ms = round(1000 * update.start_s)
            await self._say("input_audio_buffer.speech_started", item_id=self._item_id, audio_start_ms=start_ms)
        item_id = self._item_id
        if update.delta:
            await self._say(f"{ITEM}.delta", item_id=item_id, content_index=0, delta=update.delta)
        if not update.is_end:
            return
        end_ms = round(1000 * update.end_s)
        await self._say("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=end_ms)
        await self._say("input_audio_buffer.committed", item_id=item_id, previous_item_id=self._last_item_id)
        await self._say(
            f"{ITEM}.completed",
            item_id=item_id,
            content_index=0,
            transcript=update.text,
            usage={"type": "duration", "seconds": round(update.end_s - update.start_s, 3)},
            languages=[{"code": update.language}] if update.language else [],
        )
        self._item_id, self._last_item_id = "", item_id

    async def say_error(self, error: ServiceError, *, event_id: object = None) -> None:
        """Tell the client what went wrong; an answer to the event with this id."""
        said: Any = {**error.as_dict()["error"], "event_id": event_id}  # type: ignore[dict-item]
        try:
            await self._say("error", error=said)
        except (WebSocketDisconnect, RuntimeError):
            logger.debug("the client was gone before it heard of an error")

    async def _say(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, "event_id": f"event_{uuid.uuid4().hex}", **fields}
        text = json.dumps(event, ensure_ascii=False)
        try:
            await asyncio.wait_for(self._socket.send_text(text), self._limits.send_timeout_s)
        except TimeoutError:
            raise WebSocketDisconnect(1001, "the client does not read") from None


def _parse(text: str) -> Mapping[str, Any]:
    if len(text) > MAX_EVENT_CHARS:
        raise invalid(f"an event has {len(text)} characters; at most {MAX_EVENT_CHARS} are read", code="too_large")
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("an event must be a JSON object") from None
    if not isinstance(event, Mapping):
        raise invalid("an event must be a JSON object")
    return event
