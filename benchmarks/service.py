"""The service under load, for long, and under attack: each figure beside what was asked of it.

    python -m benchmarks.service [--only batching load faults tricks soak] [--quick] [--minutes 20]

A service of the demo artefact on loopback, clients on the same machine. `--quick` takes fewer clips and a soak of one
minute. Texts are held against those of the same service asked one clip at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import PROJECT, RESULTS, write_result
from benchmarks.service_clients import Answer, Client, HealthWatch, build_request, quantile
from benchmarks.service_faults import measure_faults
from benchmarks.service_process import Service
from benchmarks.service_soak import measure_soak
from benchmarks.service_tricks import measure_tricks

CORPUS = PROJECT / "data" / "demo" / "corpus" / "clinic"


@dataclass(frozen=True)
class Clips:
    """What clients send."""

    requests: list[bytes]
    durations_s: list[float]


def load_clips(num_clips: int) -> Clips:
    """Return clips in all languages of the demo."""
    rows = [json.loads(line) for line in (CORPUS / "test.jsonl").read_text(encoding="utf-8").splitlines()][:num_clips]
    return Clips(
        [build_request((CORPUS / row["audio"]).read_bytes()) for row in rows], [row["duration_s"] for row in rows]
    )


async def send_all(port: int, clips: Clips, num_clients: int) -> tuple[list[Answer], float]:
    """Send every clip once, from clients that each wait for their answer; return the answers and the seconds."""
    answers: list[Answer | None] = [None] * len(clips.requests)
    todo = iter(range(len(clips.requests)))

    async def work() -> None:
        client = Client(port)
        for i in todo:
            while True:
                answers[i] = answer = await client.ask(clips.requests[i])
                if answer.status != 429:
                    break
                refused.append(answer)
                await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
        client.close()

    refused: list[Answer] = []
    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(num_clients)))
    elapsed_s = time.perf_counter() - begin
    return [answer for answer in (*answers, *refused) if answer is not None], elapsed_s


async def measure_batching(service: Service, arguments: argparse.Namespace) -> dict[str, Any]:
    """16 clients at once against one after another, in turns."""
    clips = load_clips(40 if arguments.quick else 200)
    audio_s = sum(clips.durations_s)
    await send_all(service.port, clips, 8)  # warm-up
    turns: list[dict[str, Any]] = []
    num_different = 0
    for _ in range(2 if arguments.quick else 5):
        one, one_s = await send_all(service.port, clips, 1)
        many, many_s = await send_all(service.port, clips, 16)
        num_different += sum(a.text != b.text for a, b in zip(one, many, strict=True))
        one_p95, many_p95 = (quantile([a.elapsed_s for a in answers], 0.95) for answers in (one, many))
        turns.append(
            {
                "audio_s_per_s": [round(audio_s / one_s, 1), round(audio_s / many_s, 1)],
                "ratio": round(one_s / many_s, 2),
                "p95_ms": [round(1000 * one_p95, 1), round(1000 * many_p95, 1)],
                "p95_ratio": round(many_p95 / one_p95, 2),
            }
        )
    middle = sorted(turns, key=lambda turn: turn["ratio"])[len(turns) // 2]
    p95_ratio = sorted(turn["p95_ratio"] for turn in turns)[len(turns) // 2]
    return {
        "asked": {"ratio": 3.0, "p95_ratio": 4.0, "different_texts": 0},
        "clips": len(clips.requests),
        "mean_clip_s": round(audio_s / len(clips.requests), 2),
        "ratio": middle["ratio"],
        "p95_ratio": p95_ratio,
        "different_texts": num_different,
        "turns": turns,
        "is_met": middle["ratio"] >= 3.0 and p95_ratio <= 4.0 and num_different == 0,
    }


async def measure_load(service: Service, arguments: argparse.Namespace) -> dict[str, Any]:
    """1, 4, 16 and 64 clients against a queue of 32, /health asked all the while."""
    per_client_s = 3.0 if arguments.quick else 15.0
    clips = load_clips(200)
    found: dict[str, Any] = {}
    for num_clients in (1, 4, 16, 64):
        watch = HealthWatch(service.port)
        answers: list[tuple[int, Answer]] = []
        end_s = time.perf_counter() + per_client_s

        async def work(first: int, answers: list[tuple[int, Answer]] = answers, end_s: float = end_s) -> None:
            client = Client(service.port)
            i = first
            while time.perf_counter() < end_s:
                answer = await client.ask(clips.requests[i % len(clips.requests)])
                answers.append((i % len(clips.requests), answer))
                if answer.status == 429:
                    await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
                i += 7
            client.close()

        begin = time.perf_counter()
        await asyncio.gather(*(work(i) for i in range(num_clients)))
        elapsed_s = time.perf_counter() - begin
        await watch.stop()
        done = [(i, answer) for i, answer in answers if answer.status == 200]
        refused = [answer.elapsed_s for _, answer in answers if answer.status == 429]
        found[str(num_clients)] = {
            "audio_s_per_s": round(sum(clips.durations_s[i] for i, _ in done) / elapsed_s, 1),
            "answered": len(done),
            "p95_ms": round(1000 * quantile([answer.elapsed_s for _, answer in done], 0.95), 1),
            "refused": len(refused),
            "refused_max_ms": round(1000 * max(refused, default=0.0), 1),
            "refused_p99_ms": round(1000 * quantile(refused, 0.99), 1) if refused else 0.0,
            "other_statuses": sorted({answer.status for _, answer in answers} - {200, 429}),
            "health_p99_ms": round(1000 * quantile(watch.latencies_s, 0.99), 1),
            "health_statuses": sorted(watch.statuses),
        }
        print(num_clients, json.dumps(found[str(num_clients)]), flush=True)
    kept = found["64"]["audio_s_per_s"] / found["16"]["audio_s_per_s"]
    worst_refused = max(entry["refused_max_ms"] for entry in found.values())
    worst_health = max(entry["health_p99_ms"] for entry in found.values())
    return {
        "asked": {"refused_max_ms": 100, "health_p99_ms": 100, "kept_at_64": 0.9},
        "refused_max_ms": worst_refused,
        "health_p99_ms": worst_health,
        "kept_at_64": round(kept, 3),
        "clients": found,
        "is_met": worst_refused <= 100 and worst_health <= 100 and kept >= 0.9 and found["64"]["refused"] > 0,
    }


Section = Callable[[Service, argparse.Namespace], Awaitable[dict[str, Any]]]
SECTIONS: dict[str, tuple[Section, tuple[str, ...]]] = {
    "batching": (measure_batching, ("serve.page=false",)),
    "load": (measure_load, ("serve.page=false", "serve.max_queue=32")),
    "faults": (measure_faults, ("serve.upload_timeout_s=2",)),
    "tricks": (measure_tricks, ()),
    "soak": (measure_soak, ()),
}


def main() -> None:
    """Measure, and write `results/service.json`; sections that were not asked for keep what stands there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the soak")
    parser.add_argument("--note", default="", help="what else the machine did, written beside the figures")
    arguments = parser.parse_args()
    path = RESULTS / "service.json"
    for name in arguments.only:
        measure, overrides = SECTIONS[name]
        with tempfile.TemporaryDirectory() as folder, Service(Path(folder) / "service", *overrides) as service:
            found = asyncio.run(measure(service, arguments))
        figures = json.loads(path.read_text()) if path.is_file() else {}  # read now: another section may have ended
        figures.pop("environment", None)
        figures[name] = {**({"note": arguments.note} if arguments.note else {}), "quick": arguments.quick, **found}
        print(
            name,
            json.dumps({key: value for key, value in found.items() if key not in ("turns", "clients")}),
            flush=True,
        )
        write_result("service", figures)


if __name__ == "__main__":
    main()
