"""The service for a long time: eight clients, a fifth of what they send is bad, each answer held against its clip."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

from benchmarks.environment import PROJECT
from benchmarks.service_clients import Client, build_request
from benchmarks.service_process import Service

CORPUS = PROJECT / "data" / "demo" / "corpus" / "clinic"
NUM_CLIENTS = 8
BAD_SHARE = 0.2
WARM_UP_SHARE = 0.15  # of the time, at least one minute in a full soak: caches and allocators fill
LOOK_S = 5.0
MAX_GROWTH_MIB = 50.0
SETTLE_S = 3.0


def bad_requests(clip: bytes) -> list[tuple[str, bytes]]:
    """Return requests that must be refused with a 4xx, by name; `gone` ones are dropped half-way instead."""
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    whole = build_request(clip)
    return [
        ("noise", build_request(random.Random(0).randbytes(20_000))),
        ("text", build_request(b"this is no audio" * 100)),
        ("empty", build_request(b"")),
        ("cut", build_request(clip[: len(clip) // 2])),
        ("playlist", build_request(playlist, name="list.m3u8")),
        ("language", build_request(clip, {"language": "klingon"})),
        ("format", build_request(clip, {"response_format": "docx"})),
        ("field", build_request(clip, {"url": "http://127.0.0.1/"})),
        ("no file", whole.replace(b'name="file"', b'name="fool"')),
        ("path", build_request(b"nothing", name="../../../../etc/passwd")),
        ("gone", whole[: len(whole) // 2]),
    ]


async def measure_soak(service: Service, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run for the minutes asked and return what was counted."""
    rows = [json.loads(line) for line in (CORPUS / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    clips = [(CORPUS / row["audio"]).read_bytes() for row in rows]
    requests = [build_request(clip) for clip in clips]
    bad = bad_requests(clips[0])
    first = Client(service.port)
    expected = [(await first.ask(request)).text for request in requests]
    files_before = service.num_open_files()
    duration_s = 60.0 if arguments.quick else 60.0 * arguments.minutes
    begin = time.monotonic()
    counts: Counter[str] = Counter()
    crossed: list[str] = []

    async def work(seed: int) -> None:
        rng = random.Random(seed)
        client = Client(service.port)
        while time.monotonic() - begin < duration_s:
            if rng.random() < BAD_SHARE:
                name, request = rng.choice(bad)
                if name == "gone":
                    await _leave(service.port, request)
                    counts["gone"] += 1
                    continue
                answer = await client.ask(request)
                counts[f"bad {answer.status}"] += 1
                if answer.status == 200:
                    crossed.append(f"{name} was taken")
            else:
                i = rng.randrange(len(requests))
                answer = await client.ask(requests[i])
                counts[f"good {answer.status}"] += 1
                if answer.status == 200 and answer.text != expected[i]:
                    crossed.append(f"{rows[i]['id']}: {answer.text!r}, not {expected[i]!r}")
                if answer.status == 429:
                    await asyncio.sleep(1.0)
        client.close()

    async def watch() -> list[tuple[float, float]]:
        found = []
        while time.monotonic() - begin < duration_s:
            memory = await asyncio.to_thread(service.memory_mib)
            found.append((round(time.monotonic() - begin, 1), round(memory, 1)))
            await asyncio.sleep(min(LOOK_S, duration_s / 20))
        return found

    memory, *_ = await asyncio.gather(watch(), *(work(seed) for seed in range(NUM_CLIENTS)))
    await asyncio.sleep(SETTLE_S)
    warm = [mib for at_s, mib in memory if at_s >= WARM_UP_SHARE * duration_s]
    tenth = max(1, len(warm) // 10)
    growth = sum(warm[-tenth:]) / tenth - sum(warm[:tenth]) / tenth
    unexpected = sum(number for name, number in counts.items() if name.split()[-1] in ("0", "500", "502", "503", "504"))
    files_left = service.num_open_files() - files_before
    uploads_left = service.uploads()
    return {
        "asked": {"unexpected_5xx": 0, "crossed": 0, "growth_mib": MAX_GROWTH_MIB, "files_left": 0, "uploads_left": 0},
        "minutes": round(duration_s / 60, 1),
        "answers": dict(sorted(counts.items())),
        "unexpected_5xx": unexpected,
        "crossed": len(crossed),
        "first_crossed": crossed[:5],
        "growth_mib": round(growth, 1),
        "memory_mib": memory[:: max(1, len(memory) // 40)],
        "files_left": files_left,
        "uploads_left": len(uploads_left),
        "health": service.health()["models"],
        "is_met": not unexpected and not crossed and growth <= MAX_GROWTH_MIB and files_left <= 0 and not uploads_left,
    }


async def _leave(port: int, part: bytes) -> None:
    """Send a part of a request and go away."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(part)
    await writer.drain()
    writer.close()
