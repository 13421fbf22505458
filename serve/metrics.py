"""What Prometheus may ask, and how long the last recordings took."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serve.batch import Answer

LATENCY_BUCKETS_S = (0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 64)
SMOOTHING = 0.2  # of a new latency in the running one


class Metrics:
    """Counters of one service; a registry of its own, so that two services in one process do not meet."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("mezzavoce_requests", "Requests answered", ("route", "status"), registry=registry)
        self.latency_s = Histogram(
            "mezzavoce_latency_seconds",
            "From the first byte of a request to the last of its answer",
            ("route",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.refused = Counter(
            "mezzavoce_refused", "Recordings refused because all places were taken", registry=registry
        )
        self.places = Gauge("mezzavoce_recordings", "Recordings waited for and worked on", registry=registry)
        self.wait_s = Histogram(
            "mezzavoce_wait_seconds", "Windows in the queue", buckets=LATENCY_BUCKETS_S, registry=registry
        )
        self.batch_size = Histogram(
            "mezzavoce_batch_size", "Windows decoded together", ("model",), buckets=BATCH_BUCKETS, registry=registry
        )
        self.model_s = Counter("mezzavoce_model_seconds", "Time that models computed", ("model",), registry=registry)
        self.audio_s = Counter("mezzavoce_audio_seconds", "Audio transcribed", registry=registry)
        self.halvings = Counter(
            "mezzavoce_halvings", "Batches halved because memory did not suffice", registry=registry
        )
        self.restarts = Counter("mezzavoce_worker_restarts", "Model processes replaced", registry=registry)
        self._memory = Gauge("mezzavoce_memory_bytes", "Resident memory", ("process",), registry=registry)
        self._gpu = Gauge("mezzavoce_gpu_memory_bytes", "GPU memory reserved, at most", ("model",), registry=registry)
        self._speed = Gauge("mezzavoce_audio_seconds_per_second", "Since it was last asked", registry=registry)
        self._last = (time.monotonic(), 0.0)
        self._recent_s = 1.0

    def note_request(self, route: str, status: int, elapsed_s: float) -> None:
        """Count an answer."""
        self.requests.labels(route, str(status)).inc()
        self.latency_s.labels(route).observe(elapsed_s)
        if route.startswith("/v1/audio") and status == 200:
            self._recent_s += SMOOTHING * (elapsed_s - self._recent_s)

    def note_batch(self, model: str, process: int, num_windows: int, answer: Answer) -> None:
        """Count a batch.

        Args:
            model: its name.
            process: number of the process that decoded it.
            num_windows: decoded.
            answer: says how long it took, and how much memory.
        """
        self.batch_size.labels(model).observe(num_windows)
        self.model_s.labels(model).inc(answer.elapsed_s)
        self.halvings.inc(answer.num_halvings)
        self._gpu.labels(model).set(answer.gpu_mib * 2**20)

    def recent_latency_s(self) -> float:
        """Return what a recording took of late, in seconds."""
        return self._recent_s

    def write(self, process_ids: list[int]) -> bytes:
        """Return all counters in Prometheus' text form.

        Args:
            process_ids: of the models; their memory, and that of this process, is looked up.
        """
        self._memory.clear()
        self._memory.labels("service").set(resident_bytes("self"))
        for i, number in enumerate(process_ids):
            self._memory.labels(f"model-{i}").set(resident_bytes(str(number)))
        now_s, audio_s = time.monotonic(), float(self.audio_s._value.get())
        since_s, before_s = self._last
        if now_s - since_s >= 1.0:
            self._speed.set((audio_s - before_s) / (now_s - since_s))
            self._last = (now_s, audio_s)
        written: bytes = generate_latest(self.registry)
        return written


def resident_bytes(process: str) -> int:
    """Return the resident memory of a process, `self` or a number; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()
