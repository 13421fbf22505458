"""A real service on loopback: OpenAI's own client is answered, many at once get what each gets alone, and faults pass.

What is heard is held against `Transcriber`, the path of evaluation, in this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
httpx = pytest.importorskip("httpx", reason="the extra `serve` is not installed")

from data.audio import load_waveform  # noqa: E402
from infer.artefact import load_artefact  # noqa: E402
from infer.decoding import DecodeSettings  # noqa: E402
from infer.transcriber import Transcriber  # noqa: E402
from serve.app import build_app  # noqa: E402
from serve.engine import Engine, ModelSpec, Options  # noqa: E402
from serve.settings import ServeSettings  # noqa: E402
from tests.conftest import PROJECT  # noqa: E402

BASE = PROJECT / "data" / "demo" / "base"
CORPUS = PROJECT / "data" / "demo" / "corpus" / "home"
MAX_QUEUE = 24


class Running:
    """A service in a thread, with an engine that tests may ask, too."""

    def __init__(self, folder: Path) -> None:
        self.settings = ServeSettings(
            dir=str(folder), max_queue=MAX_QUEUE, workers=1, threads=1, page=False, decoders=1, max_duration_s=100.0
        )
        profiles = {"greedy": DecodeSettings(), "beam5": DecodeSettings(name="beam5", num_beams=5)}
        self.engine = Engine([ModelSpec("demo", BASE)], self.settings, profiles=profiles)
        config = uvicorn.Config(build_app(self.engine, self.settings), port=0, log_config=None)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the service did not start"
            time.sleep(0.02)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def hear(self, file, **options):
        return self.client.audio.transcriptions.create(model="demo", file=file, **options)

    def uploads(self):
        return [path for path in (Path(self.settings.dir) / "uploads").rglob("*") if path.is_file()]

    def health(self):
        return httpx.get(f"{self.url}/health").json()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("serve"))
    yield running
    running.stop()
    assert not list((Path(running.settings.dir) / "uploads").iterdir())  # the private folder is gone


@pytest.fixture(scope="module")
def clips():
    rows = [json.loads(line) for line in (CORPUS / "test.jsonl").read_text(encoding="utf-8").splitlines()][:20]
    return [CORPUS / row["audio"] for row in rows]


@pytest.fixture(scope="module")
def expected(clips):
    return Transcriber(load_artefact(BASE)).transcribe(clips)


@pytest.fixture(scope="module")
def long(clips, tmp_path_factory):
    """A recording of some windows, and what `Transcriber` hears in it."""
    path = tmp_path_factory.mktemp("long") / "long.flac"
    soundfile.write(path, np.concatenate([load_waveform(clip) for clip in clips] * 2), 16_000, subtype="PCM_16")
    return path, Transcriber(load_artefact(BASE)).transcribe([path])[0]


def _eventually(condition, limit_s=10.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_openais_client_gets_every_format(service, clips, expected):
    clip, heard = clips[1], expected[1]
    assert service.hear(clip).text == heard.text
    assert service.hear(clip, response_format="text").strip() == heard.text
    end = f"00:00:0{heard.duration_s:.3f}"
    srt = service.hear(clip, response_format="srt")
    assert srt == f"1\n00:00:00,000 --> {end.replace('.', ',')}\n{heard.text}\n"
    assert service.hear(clip, response_format="vtt") == f"WEBVTT\n\n00:00:00.000 --> {end}\n{heard.text}\n"
    full = service.hear(clip, response_format="verbose_json", timestamp_granularities=["segment"])
    assert (full.text, full.language) == (heard.text, "english")
    assert full.duration == pytest.approx(heard.duration_s, abs=1e-3)
    assert [(s.text, s.start, round(s.end, 2)) for s in full.segments] == [
        (heard.text, 0.0, round(heard.duration_s, 2))
    ]
    assert full.language_probability == pytest.approx(heard.language_probability, abs=1e-3)
    translated = service.client.audio.translations.create(model="demo", file=clip)
    assert isinstance(translated.text, str)


def test_words_have_times_where_they_are_asked_for(service, clips, long):
    path, _ = long
    transcriber = Transcriber(load_artefact(BASE), DecodeSettings(word_times=True))
    for source, heard in zip((clips[1], path), transcriber.transcribe([clips[1], path]), strict=True):
        full = service.hear(source, response_format="verbose_json", timestamp_granularities=["word"])
        said = [word for segment in heard.segments for word in segment.words]
        assert [word.word for word in full.words] == [word.text for word in said]
        assert [(word.start, word.end) for word in full.words] == [
            pytest.approx((word.start_s, word.end_s), abs=1e-3) for word in said
        ]
        assert all(0 < word.probability <= 1 for word in full.words)
        assert full.segments is None
    assert full.words[-1].end > 30
    both = service.hear(path, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert [(word.word, word.start) for word in both.words] == [(word.word, word.start) for word in full.words]
    assert [segment.text for segment in both.segments] == [segment.text for segment in heard.segments]
    plain = service.hear(path, response_format="verbose_json")
    assert (plain.words, plain.text) == (None, full.text)
    assert len(plain.segments) > 1


def test_a_stream_tells_window_by_window_and_ends_with_the_whole(service, long):
    path, heard = long
    events = list(service.hear(path, stream=True))
    kinds = [event.type for event in events]
    assert kinds == ["transcript.text.delta"] * (len(kinds) - 1) + ["transcript.text.done"]
    assert len(kinds) >= 3  # of two windows or more
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == heard.text


def test_models_say_what_they_are_and_no_path(service):
    (model,) = service.client.models.list().data
    assert model.id == "demo" and "en" in model.languages and model.profiles == ["greedy", "beam5"]
    assert service.client.models.retrieve("demo").description["stored"] == load_artefact(BASE).stored
    assert str(PROJECT) not in json.dumps(httpx.get(f"{service.url}/v1/models").json())
    assert httpx.get(f"{service.url}/openapi.json").json()["paths"].keys() >= {"/v1/audio/transcriptions", "/health"}


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"language": "klingon"}, 400, "invalid_language"),
        ({"response_format": "docx"}, 400, "invalid_response_format"),
        ({"temperature": 3}, 400, "invalid_temperature"),
        ({"prompt": "a <|endoftext|> b"}, 400, "invalid_prompt"),
        ({"prompt": "x" * 5000}, 400, "invalid_prompt"),
        ({"extra_body": {"url": "http://127.0.0.1/a.wav"}}, 400, "invalid_url"),
        ({"extra_body": {"profile": "best"}}, 400, "invalid_profile"),
        (
            {"response_format": "verbose_json", "timestamp_granularities": ["letter"]},
            400,
            "invalid_timestamp_granularities",
        ),
        ({"timestamp_granularities": ["segment"]}, 400, "invalid_timestamp_granularities"),
        ({"timestamp_granularities": ["word"]}, 400, "invalid_timestamp_granularities"),
        ({"stream": True, "response_format": "srt"}, 400, "invalid_stream"),
        ({"file": b"this is no audio" * 50}, 400, "audio_invalid"),
        ({"file": b""}, 400, "audio_invalid"),
        ({"file": b"#EXTM3U\n/etc/passwd\n"}, 400, "audio_invalid"),
        ({"file": bytes(26_000_000)}, 413, "upload_too_large"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_openais_form(service, clips, options, status, code):
    options = {"file": clips[0], **options}
    with pytest.raises(openai.APIStatusError) as error:
        list(service.hear(**options))
    assert (error.value.status_code, error.value.code) == (status, code)
    assert error.value.type == "invalid_request_error"
    assert not service.uploads()


def test_a_model_that_is_not_served_and_forms_that_are_none(service, clips):
    with pytest.raises(openai.NotFoundError, match="whisper-1"):
        service.client.audio.transcriptions.create(model="whisper-1", file=clips[0])
    url = f"{service.url}/v1/audio/transcriptions"
    parts = [("model", (None, "demo"))] * 40
    for answer in (
        httpx.post(url, json={"file": "http://127.0.0.1/"}),
        httpx.post(url, data={"model": "demo"}),
        httpx.post(url, data={"file": "clip.ogg"}, files={"other": b""}),
        httpx.post(url, files=parts),
        httpx.post(url, content=b"--x\r\nno form", headers={"content-type": "multipart/form-data; boundary=x"}),
        httpx.post(url, content=b"", headers={"content-type": "multipart/form-data"}),
    ):
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
    assert httpx.get(f"{service.url}/nothing").json()["error"]["type"] == "invalid_request_error"


async def _ask(client, service, clip, **fields):
    answer = await client.post(
        f"{service.url}/v1/audio/transcriptions", data=fields, files={"file": ("../../x", clip.read_bytes())}
    )
    return answer.status_code, answer.json(), answer.headers


def test_many_at_once_get_what_each_gets_alone(service, clips, expected):
    """Five languages, several lengths and a long beam search between them, in shared batches."""

    async def work():
        async with httpx.AsyncClient(timeout=60) as client:
            languages = [{"language": heard.language} if i % 3 == 0 else {} for i, heard in enumerate(expected)]
            asked = [_ask(client, service, clip, **fields) for clip, fields in zip(clips, languages, strict=True)]
            return await asyncio.gather(*asked)

    before = httpx.get(f"{service.url}/metrics").text
    answers = asyncio.run(work())
    assert [status for status, _, _ in answers] == [200] * len(clips)
    assert [body["text"] for _, body, _ in answers] == [heard.text for heard in expected]
    assert len({heard.language for heard in expected}) == 5
    batches, windows = (
        _metric(httpx.get(f"{service.url}/metrics").text, name) - _metric(before, name)
        for name in ('mezzavoce_batch_size_count{model="demo"}', 'mezzavoce_batch_size_sum{model="demo"}')
    )
    assert windows == len(clips) and batches <= len(clips) / 2
    assert not service.uploads()


def _metric(text, name):
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


def test_who_comes_beyond_the_queue_is_told_to_come_back(service, clips, expected):
    async def work():
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100)) as client:
            return await asyncio.gather(*(_ask(client, service, clips[i % 20]) for i in range(3 * MAX_QUEUE)))

    answers = asyncio.run(work())
    assert {status for status, _, _ in answers} == {200, 429}
    for i, (status, body, headers) in enumerate(answers):
        if status == 200:
            assert body["text"] == expected[i % 20].text
        else:
            assert body["error"]["type"] == "rate_limit_error" and 1 <= int(headers["retry-after"]) <= 30
    _eventually(lambda: service.health()["queue"]["recordings"] == 0)
    assert not service.uploads()


def test_a_client_that_goes_away_leaves_its_place(service, long):
    path, _ = long

    async def work():
        async with httpx.AsyncClient() as client:
            asked = asyncio.create_task(_ask(client, service, path))
            while not service.engine.status()["queue"]["audio_s"]:
                await asyncio.sleep(0.005)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(work())
    _eventually(lambda: service.engine.status()["queue"]["recordings"] == 0, 1.0)
    assert not service.uploads()


def test_a_model_process_that_is_killed_costs_nobody_an_answer(service, clips, expected):
    _, first = service.engine.status(), service.engine.process_ids()

    async def work():
        async with httpx.AsyncClient(timeout=60) as client:
            asked = [asyncio.create_task(_ask(client, service, clip)) for clip in clips[:12]]
            while not service.engine.status()["queue"]["audio_s"]:
                await asyncio.sleep(0.002)
            os.kill(first[0], signal.SIGKILL)
            return await asyncio.gather(*asked)

    answers = asyncio.run(work())
    assert [body["text"] for _, body, _ in answers] == [heard.text for heard in expected[:12]]
    _eventually(lambda: service.engine.process_ids() not in ([], first))
    assert service.health()["models"]["demo"]["restarts"] == 1


def test_a_window_that_ends_two_workers_is_given_up_alone(service, clips, expected, monkeypatch):
    """One client's window kills whatever decodes it; the others lose nothing."""
    model = service.engine._models["demo"]
    worker = model._workers[0]
    decode = worker.decode
    poison = len(load_waveform(clips[2]))

    async def deadly(batch):
        if poison in map(len, batch.waveforms):
            os.kill(worker.process_id, signal.SIGKILL)
        return await decode(batch)

    monkeypatch.setattr(worker, "decode", deadly)

    async def work():
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(_ask(client, service, clip) for clip in clips[:6]))

    answers = asyncio.run(work())
    assert [status for status, _, _ in answers] == [200, 200, 500, 200, 200, 200]
    assert answers[2][1]["error"]["code"] == "model_failed"
    assert all(answers[i][1]["text"] == expected[i].text for i in (0, 1, 3, 4, 5))


def test_beams_prompts_and_temperature_reach_the_search(service, clips):
    artefact = load_artefact(BASE)
    clip = clips[3]
    beams = Transcriber(artefact, DecodeSettings(name="beam5", num_beams=5)).transcribe([clip])[0]
    drawn = Transcriber(artefact, DecodeSettings(temperature=(1.0,))).transcribe([clip])[0]
    assert service.hear(clip, extra_body={"profile": "beam5"}).text == beams.text
    assert service.hear(clip, temperature=1.0).text == drawn.text
    plain = service.hear(clip).text
    assert service.hear(clip, temperature=0).text == plain
    assert service.hear(clip, prompt="hello hello hello").text != ""  # heard in two steps: its language, then its text


def test_progress_and_live_windows(service, long, clips, expected):
    path, heard = long
    seen = []

    def ask(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    loop = service.engine._models["demo"]._tasks[0].get_loop()
    found = ask(service.engine.transcribe(path, on_progress=seen.append))
    assert found == heard
    assert [progress.num_done for progress in seen] == list(range(1, seen[-1].num_windows + 1))
    assert seen[-1].text == heard.text and all(heard.text.startswith(progress.text) for progress in seen)
    window = ask(service.engine.transcribe_window(load_waveform(clips[0]), Options(language="auto")))
    assert window.text == expected[0].text


def test_metrics_count_and_hold_no_text(service, clips, expected):
    service.hear(clips[0])
    text = httpx.get(f"{service.url}/metrics").text
    assert _metric(text, 'mezzavoce_requests_total{route="/v1/audio/transcriptions",status="200"}') >= 1
    assert _metric(text, "mezzavoce_audio_seconds_total") > 1
    assert _metric(text, 'mezzavoce_memory_bytes{process="model-0"}') > 1e7
    assert expected[0].text not in text
