"""The live route speaks OpenAI's realtime events, with OpenAI's own client, and bears clients that misbehave."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

fastapi = pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
websockets = pytest.importorskip("websockets", reason="the extra `serve` is not installed")

from infer.decoding import Decoded  # noqa: E402
from serve.errors import ServiceError  # noqa: E402
from serve.live import LiveSession, Places  # noqa: E402
from serve.realtime import ITEM, RealtimeLimits, build_realtime  # noqa: E402
from serve.realtime_session import Session, update_session  # noqa: E402
from serve.settings import ServeSettings  # noqa: E402
from serve.stream_settings import StreamSettings  # noqa: E402
from tests.test_streaming import loud  # noqa: E402

RATE = 24_000


def decoded(text: str, language: str = "en") -> Decoded:
    return Decoded(text, language, language, 0.9, (), False)


class CountingEngine:
    """Hears one word for each begun half second of sound that is not silent."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s, self.asked, self.fails = delay_s, [], False

    async def transcribe_window(self, waveform, options):
        self.asked.append((len(waveform), options))
        await asyncio.sleep(self.delay_s)
        if self.fails:
            raise ServiceError("the model is gone", status=503, code="unavailable")
        loud_s = (np.abs(waveform) > 0.01).mean() * len(waveform) / 16_000
        return decoded(" ".join(f"w{i}" for i in range(int(loud_s * 2 + 0.9))))

    def models(self):
        return ["demo", "other"]

    def languages(self, model=""):
        return [("en", "English"), ("zh", "Chinese")]


def pcm(duration_s: float, *, rate: int = RATE, is_loud: bool = True) -> str:
    rng = np.random.default_rng(0)
    samples = rng.choice([-0.3, 0.3], round(duration_s * rate)) if is_loud else np.zeros(round(duration_s * rate))
    return base64.b64encode((samples * 32767).astype("<i2").tobytes()).decode()


class Running:
    """The route on a port of its own."""

    def __init__(self, engine, *, limits=None, max_streams=2, stream=None):
        app = fastapi.FastAPI()
        self.places = Places(max_streams)
        app.include_router(build_realtime(engine, self.places, stream=stream, limits=limits))
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)

    async def __aenter__(self):
        self.task = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        self.server.should_exit = True
        await self.task

    def connect(self, query: str = ""):
        return websockets.connect(f"ws://{self.address}/v1/realtime{query}", proxy=None)


@pytest.fixture(autouse=True)
def by_level(monkeypatch):
    """Take what is not silent for speech, so that made sounds will do."""
    monkeypatch.setattr("serve.live.load_detector", lambda: loud)


async def collect(socket, until: str, limit_s: float = 10) -> list[dict]:
    events = []
    while not events or events[-1]["type"] != until:
        events.append(json.loads(await asyncio.wait_for(socket.recv(), limit_s)))
    return events


def append(audio: str) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": audio})


def test_the_official_client_gets_deltas_that_join_to_the_transcript():
    openai = pytest.importorskip("openai", reason="openai is not installed; pip install -e .[dev]")

    async def talk():
        engine = CountingEngine()
        async with Running(engine) as running:
            client = openai.AsyncOpenAI(api_key="none", base_url=f"http://{running.address}/v1")
            async with client.realtime.connect(
                model="demo", websocket_connection_options={"proxy": None}
            ) as connection:
                asked = {"format": {"type": "audio/pcm", "rate": RATE}, "transcription": {"language": "en"}}
                await connection.session.update(session={"type": "transcription", "audio": {"input": asked}})
                for _ in range(20):
                    await connection.input_audio_buffer.append(audio=pcm(0.1))
                    await asyncio.sleep(0.005)
                await connection.input_audio_buffer.append(audio=pcm(1.0, is_loud=False))
                events = []
                async for event in connection:
                    events.append(event)
                    if event.type == f"{ITEM}.completed":
                        return events, engine

    events, engine = asyncio.run(talk())
    kinds = [event.type for event in events]
    assert kinds[:2] == ["session.created", "session.updated"]
    assert kinds[-3:] == ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed", f"{ITEM}.completed"]
    deltas = [event.delta for event in events if event.type == f"{ITEM}.delta"]
    assert "".join(deltas) == events[-1].transcript == "w0 w1 w2 w3"
    assert len({event.item_id for event in events if hasattr(event, "item_id")}) == 1
    assert events[-1].usage.seconds == pytest.approx(2.3, abs=0.1)
    assert {options.language for _, options in engine.asked} == {"en"}
    assert {options.model for _, options in engine.asked} == {"demo"}


def test_the_client_ends_an_utterance_itself_and_halves_of_samples_are_put_together():
    async def talk():
        async with Running(CountingEngine()) as running, running.connect() as socket:
            audio = {"input": {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": None}}
            await socket.send(json.dumps({"type": "session.update", "session": {"audio": audio}}))
            data = base64.b64decode(pcm(1.2, rate=16_000)) + bytes(2 * 32_000)
            for start in range(0, len(data), 3_201):
                await socket.send(append(base64.b64encode(data[start : start + 3_201]).decode()))
            await asyncio.sleep(0.3)
            await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            first = await collect(socket, f"{ITEM}.completed")
            await socket.send(append(pcm(1.0, rate=16_000)))
            await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            return first, await collect(socket, f"{ITEM}.completed")

    first, second = asyncio.run(talk())
    assert first[1]["session"]["audio"]["input"]["turn_detection"] is None
    assert first[-1]["transcript"] == "w0 w1 w2"
    assert second[-1]["transcript"] == "w0 w1"
    committed = next(e for e in second if e["type"] == "input_audio_buffer.committed")
    assert committed["previous_item_id"] == first[-1]["item_id"] != committed["item_id"]


def test_bad_events_get_an_error_and_the_conversation_goes_on():
    bad = [
        "no json",
        "[1]",
        "[" * 100_000,
        json.dumps({"type": "response.create", "event_id": "mine"}),
        append("***"),
        json.dumps({"type": "input_audio_buffer.append"}),
        json.dumps({"type": "session.update"}),
        json.dumps({"type": "session.update", "session": {"audio": 3}}),
        append("A" * 1_000_001),
    ]

    async def talk():
        async with Running(CountingEngine()) as running, running.connect() as socket:
            await collect(socket, "session.created")
            errors = []
            for text in bad:
                await socket.send(text)
                errors += await collect(socket, "error")
            await socket.send(append(pcm(0.5)))
            await socket.send(json.dumps({"type": "input_audio_buffer.clear"}))
            await collect(socket, "input_audio_buffer.cleared")
            await socket.send(append(pcm(1.0)))
            await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            return errors, await collect(socket, f"{ITEM}.completed")

    errors, events = asyncio.run(talk())
    assert len(errors) == len(bad)
    assert all(error["error"]["type"] == "invalid_request_error" for error in errors)
    assert errors[3]["error"]["event_id"] == "mine" and "'response.create'" in errors[3]["error"]["message"]
    assert events[-1]["transcript"] == "w0 w1"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"type": "realtime"}, "give 'transcription'"),
        ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "give 'audio/pcm'"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}}, "give 16000 or 24000"),
        ({"audio": {"input": {"transcription": {"language": "xx"}}}}, "give one of en, zh"),
        ({"audio": {"input": {"transcription": {"model": "gone"}}}}, "give one of demo, other"),
        ({"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}, "server_vad"),
        ({"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 5}}}}, "200 to 10000"),
    ],
)
def test_settings_that_are_not_offered_are_refused_by_name(said, message):
    with pytest.raises(ServiceError, match=message) as caught:
        update_session(Session(), said, CountingEngine())
    assert caught.value.param


def test_places_are_limited_and_come_back_when_a_client_is_gone():
    async def talk():
        async with Running(CountingEngine(), max_streams=1) as running:
            async with running.connect() as first:
                await collect(first, "session.created")
                async with running.connect() as second:
                    refused = await collect(second, "error")
            first.transport.abort()
            for _ in range(200):
                if not running.places.num_taken:
                    break
                await asyncio.sleep(0.01)
            async with running.connect() as third:
                return refused, await collect(third, "session.created")

    refused, _ = asyncio.run(talk())
    assert refused[-1]["error"]["code"] == "streams_full" and "serve.max_streams" in refused[-1]["error"]["message"]


def test_idle_clients_unknown_models_and_a_lost_model_end_with_a_word():
    async def talk():
        engine = CountingEngine()
        async with Running(engine, limits=RealtimeLimits(idle_s=0.2)) as running:
            async with running.connect() as socket:
                idle = await collect(socket, "error")
                with pytest.raises(websockets.ConnectionClosed):
                    await socket.recv()
            async with running.connect("?model=gone") as socket:
                unknown = await collect(socket, "error")
            engine.fails = True
            async with running.connect() as socket:
                await socket.send(append(pcm(1.0)))
                lost = await collect(socket, "error")
        return idle, unknown, lost

    idle, unknown, lost = asyncio.run(talk())
    assert idle[-1]["error"]["code"] == "idle"
    assert unknown[-1]["error"]["code"] == "model_not_found"
    assert lost[-1]["error"] == {
        "message": "the model is gone",
        "type": "server_error",
        "code": "unavailable",
        "param": None,
        "event_id": None,
    }


def test_the_service_says_how_many_passes_must_agree_and_a_client_does_not_change_it():
    settings = ServeSettings(agreement=3, held_words=2)
    session = Session(stream=settings.stream)
    said = {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 900}}}}
    for chosen in (session, update_session(session, said, CountingEngine())):
        assert (chosen.stream_settings.agreement, chosen.stream_settings.held_words) == (3, 2)
    assert chosen.stream_settings.end_silence_s == 0.9
    with pytest.raises(ValueError, match=r"^serve\.agreement=0 must be 1 to 5 passes"):
        ServeSettings(agreement=0)

    async def count_passes(agreement):
        engine = CountingEngine()
        stream = StreamSettings(agreement=agreement)
        async with Running(engine, stream=stream) as running, running.connect() as client:
            while True:
                await client.send(json.dumps({"type": "input_audio_buffer.append", "audio": pcm(0.4)}))
                try:  # all that is said of it, before more sound is sent
                    while json.loads(await asyncio.wait_for(client.recv(), 0.1))["type"] != f"{ITEM}.delta":
                        pass
                    return len(engine.asked)
                except TimeoutError:
                    continue

    passes = [asyncio.run(count_passes(agreement)) for agreement in (1, 2, 5)]
    assert passes[0] < passes[1] < passes[2]


def test_a_slow_model_makes_the_sender_wait_and_nothing_is_lost():
    async def talk():
        engine = SimpleNamespace(longest=0, busy=True)

        async def decode(waveform, language):
            while engine.busy:
                await asyncio.sleep(0.01)
            return decoded(f"{len(waveform)}")

        live = LiveSession(decode)
        texts = []

        async def listen():
            async for update in live.updates():
                engine.longest = max(engine.longest, live.stream.waiting_s)
                texts.append(update)

        listener = asyncio.create_task(listen())
        sound = np.full(16_000, 0.2, dtype=np.float32)
        begin = time.monotonic()
        sent = 0

        async def send_all():
            nonlocal sent
            for _ in range(200):
                await live.add(sound)
                sent += 1

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_all(), 0.5)
        assert 30 <= sent <= 33 and time.monotonic() - begin < 5
        engine.busy = False
        for _ in range(60 - sent):
            await live.add(sound)
        live.finish()
        await listener
        return live, texts, engine.longest

    live, texts, longest = asyncio.run(talk())
    assert live.stream.end == 60 * 16_000 and texts[-1].end_s == pytest.approx(60, abs=0.1)
    assert longest < 33
