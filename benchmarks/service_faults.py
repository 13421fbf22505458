"""Clients that go away, uploads that stop, model processes that are killed, and SIGTERM while people wait."""

from __future__ import annotations

import argparse
import asyncio
import io
import time
from typing import Any

import numpy as np
import soundfile

from benchmarks.environment import PROJECT
from benchmarks.service_clients import Client, build_request, health
from benchmarks.service_process import Service, kill
from data.audio import SAMPLING_RATE, load_waveform

CORPUS = PROJECT / "data" / "demo" / "corpus" / "clinic" / "audio"
MAX_FREE_S, MAX_BACK_S = 1.0, 10.0
LOOK_S = 0.01
NUM_WAITING = 8


def long_recording(duration_s: float) -> bytes:
    """Return clips of the demo, one after another, as a FLAC file."""
    parts, found = [], 0
    for path in sorted(CORPUS.glob("*-test-*.ogg")):
        parts.append(load_waveform(path))
        found += len(parts[-1])
        if found >= duration_s * SAMPLING_RATE:
            break
    whole = np.concatenate(parts)
    repeated = np.tile(whole, 1 + int(duration_s * SAMPLING_RATE) // len(whole))[: int(duration_s * SAMPLING_RATE)]
    file = io.BytesIO()
    soundfile.write(file, repeated, SAMPLING_RATE, format="FLAC")
    return file.getvalue()


async def measure_faults(service: Service, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one after another, SIGTERM last."""
    request = build_request(long_recording(60.0 if arguments.quick else 300.0))
    short = build_request(next(iter(sorted(CORPUS.glob("en-*-test-*.ogg")))).read_bytes())
    found: dict[str, Any] = {
        "asked": {"free_s": MAX_FREE_S, "back_s": MAX_BACK_S, "lost": 0},
        "client_gone": await _client_gone(service, request),
        "half_upload": await _half_upload(service, request),
        "stalled_upload": await _stalled_upload(service, request),
        "worker_killed": await _worker_killed(service, request, short),
        "audio_process_killed": await _audio_process_killed(service, short),
        "sigterm": await _sigterm(service, short),
    }
    found["is_met"] = (
        found["client_gone"]["seen_at_work"]
        and found["client_gone"]["free_s"] <= MAX_FREE_S
        and found["half_upload"]["free_s"] <= MAX_FREE_S
        and found["worker_killed"]["back_s"] <= MAX_BACK_S
        and found["worker_killed"]["lost"] == 0
        and set(found["audio_process_killed"]["statuses"]) == {200}
        and found["sigterm"]["lost"] == 0
        and not found["half_upload"]["uploads_left"]
    )
    return found


async def _until(condition: Any, limit_s: float) -> float:
    """Return the seconds until a condition on /health holds; the limit if it does not."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < limit_s:
        if await condition():
            return round(time.perf_counter() - begin, 3)
        await asyncio.sleep(LOOK_S)
    return limit_s


async def _is_idle(port: int) -> bool:
    queue = (await health(port)).get("queue", {})
    return bool(queue.get("recordings") == 0 and queue.get("windows") == 0)


async def _client_gone(service: Service, request: bytes) -> dict[str, Any]:
    """A client sends a long recording, and goes away while it is decoded."""
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(request)
    await writer.drain()

    async def is_at_work() -> bool:
        return bool((await health(service.port))["queue"]["audio_s"])  # decoded, and waiting for the model

    waited_s = await _until(is_at_work, 20.0)
    writer.close()
    return {
        "seen_at_work": waited_s < 20.0,
        "free_s": await _until(lambda: _is_idle(service.port), 20.0),
        "uploads_left": service.uploads(),
    }


async def _half_upload(service: Service, request: bytes) -> dict[str, Any]:
    """A client goes away in the middle of its upload."""
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(request[: len(request) // 2])
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.close()
    free_s = await _until(lambda: _is_idle(service.port), 20.0)
    return {"free_s": free_s, "uploads_left": service.uploads()}


async def _stalled_upload(service: Service, request: bytes) -> dict[str, Any]:
    """A client stops in the middle of its upload and stays; the service ends it after `serve.upload_timeout_s`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(request[: len(request) // 2])
    begin = time.perf_counter()
    first = await asyncio.wait_for(reader.readline(), 30.0)
    elapsed_s = time.perf_counter() - begin
    writer.close()
    return {"answer": first.decode().strip(), "after_s": round(elapsed_s, 2)}


async def _worker_killed(service: Service, request: bytes, short: bytes) -> dict[str, Any]:
    """All model processes are killed while a long recording and short ones wait."""
    workers = len(service.model_processes())
    waiting = [asyncio.create_task(Client(service.port).ask(item)) for item in (request, *[short] * NUM_WAITING)]
    await asyncio.sleep(1.0)
    victims = service.model_processes()
    for number in victims:
        kill(number)

    async def is_back() -> bool:
        now = service.model_processes()
        return len(now) == workers and not set(now) & set(victims)

    back_s = await _until(is_back, 30.0)
    begin = time.perf_counter()
    answer = await Client(service.port).ask(short)
    answered_s = time.perf_counter() - begin
    answers = await asyncio.gather(*waiting)
    return {
        "workers": workers,
        "processes_back_s": back_s,
        "back_s": round(back_s + answered_s, 3),
        "first_answer": answer.status,
        "statuses": [answer.status for answer in answers],
        "lost": sum(answer.status == 0 for answer in answers),
    }


async def _audio_process_killed(service: Service, short: bytes) -> dict[str, Any]:
    """The processes that decode audio are killed; the next clips are decoded all the same, or refused in words."""
    from benchmarks.service_process import children

    holders = {number for number in children(service.process.pid) if children(number)}
    victims = [number for number in children(service.process.pid) if number not in holders]
    for number in victims:
        kill(number)
    answers = [await Client(service.port).ask(short) for _ in range(2 * len(victims))]
    return {
        "killed": len(victims),
        "statuses": [answer.status for answer in answers],
    }


async def _sigterm(service: Service, short: bytes) -> dict[str, Any]:
    """SIGTERM while clients wait: each still gets an answer, and the process ends with 0."""
    waiting = [asyncio.create_task(Client(service.port).ask(short)) for _ in range(NUM_WAITING)]

    async def is_busy() -> bool:
        return bool((await health(service.port))["queue"]["recordings"])

    await _until(is_busy, 5.0)
    await asyncio.sleep(0.05)
    begin = time.perf_counter()
    service.terminate()
    answers = await asyncio.gather(*waiting)
    code = await asyncio.to_thread(service.process.wait, 60)
    return {
        "statuses": [answer.status for answer in answers],
        "lost": sum(answer.status == 0 for answer in answers),
        "ended_s": round(time.perf_counter() - begin, 2),
        "exit_code": code,
        "folder_left": [path.name for path in (service.folder / "uploads").iterdir()],
    }
