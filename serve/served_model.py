"""One model of the service: its queue, and the processes that take batches from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.audio import SAMPLING_RATE, Waveform
from data.features import FRAMES_PER_S
from data.windows import Windows
from infer.decoding import Decoded, DecodeSettings
from serve.batch import Batch
from serve.errors import ServiceError
from serve.metrics import Metrics
from serve.model_worker import ModelNursery, ModelWorker, WorkerEndedError
from serve.settings import ServeSettings
from serve.warming import Facts, Load
from serve.window_queue import Recording, Window, WindowQueue

MAX_FAILURES = 2
"""Workers that a window may have ended with before its caller gets an error."""
RESTART_S = 1.0  # between two tries to start a worker
SMALL_BYTES = 300e6  # weights up to this are held once a core on a CPU
MAX_WORKERS = 4
TEST_CLIP = Path(__file__).resolve().parents[1] / "data/demo/corpus/clinic/audio/en-clinic-test-0001.ogg"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """A model to serve."""

    name: str
    """As callers say it, such as `demo`; also as the API's `model`."""
    path: Path
    """Of the artefact."""
    runtime: str = "torch"
    """`torch` or `ctranslate2`."""
    compute: str = "auto"
    """`auto`, `fp16`, `bf16` or `fp32`."""
    reason: str = ""
    """Why it computes so, where it was not asked for."""


class ServedModel:
    """A model with its queue and its workers."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: ServeSettings,
        profiles: Mapping[str, DecodeSettings],
        nursery: ModelNursery,
        metrics: Metrics,
        *,
        num_expected: Callable[[], int],
    ) -> None:
        """Remember what to serve; `start` loads it.

        Args:
            spec: which model.
            settings: limits and batching.
            profiles: ways to decode by name.
            nursery: starts processes.
            metrics: counts.
            num_expected: returns how many recordings the service works on.
        """
        self.spec = spec
        self.num_restarts = 0
        self._metrics = metrics
        num_workers, num_threads = share_cores(spec.path, settings)
        load = Load(
            path=str(spec.path),
            runtime=spec.runtime,
            compute=spec.compute,
            num_threads=num_threads,
            cache_dir=str(Path(settings.dir) / "converted"),
            profiles=dict(profiles),
            max_batch=settings.max_batch,
            max_batch_audio_s=settings.max_batch_audio_s,
            self_test=settings.self_test or (str(TEST_CLIP) if TEST_CLIP.is_file() else ""),
            self_test_text=settings.self_test_text,
            tests=True,
        )
        self._workers = [
            ModelWorker(nursery, load, batch_timeout_s=settings.batch_timeout_s) for _ in range(num_workers)
        ]
        self.queue = WindowQueue(
            max_batch=settings.max_batch,
            max_batch_audio_s=settings.max_batch_audio_s,
            max_wait_s=settings.max_wait_ms / 1000,
            frames_per_s=FRAMES_PER_S,
            num_expected=num_expected,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._facts: Facts | None = None

    @property
    def facts(self) -> Facts:
        """What the model can.

        Raises:
            ServiceError: 503 before it is loaded.
        """
        if self._facts is None:
            raise ServiceError("the service is starting", status=503, code="unavailable", retry_after_s=5)
        return self._facts

    async def start(self) -> None:
        """Load and test the first worker, then the others, and begin to take batches.

        Raises:
            RuntimeError: if the model cannot be loaded, or fails its self-test.
        """
        facts = await self._workers[0].start(tests=True)
        self._windows = Windows(facts.edges_s)
        self.queue.mixes_lengths = facts.mixes_lengths
        self.queue.num_workers = len(self._workers)
        await asyncio.gather(*(worker.start(tests=False) for worker in self._workers[1:]))
        self._facts = facts
        logger.info("model %s: %s; self-test: %s", self.spec.name, facts.description, facts.self_test)
        self._tasks = [asyncio.create_task(self._run(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """End the workers; who still waits is told so."""
        for task in self._tasks:
            task.cancel()
        for worker in self._workers:
            await asyncio.to_thread(worker.end)
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def decode(self, recording: Recording, waveforms: list[Waveform]) -> list[Decoded]:
        """Queue the windows of a recording and return what they say, in order.

        Raises:
            ServiceError: if a window cannot be decoded.
        """
        frames = [self._windows.num_frames(len(waveform) / SAMPLING_RATE) for waveform in waveforms]
        self.queue.add(recording, zip(waveforms, frames, strict=True))
        try:
            return await recording.done
        finally:
            self.queue.drop(recording)

    def status(self) -> dict[str, Any]:
        """Return what `/health` says of it."""
        return {
            "workers": len(self._workers),
            "workers_up": len(self.process_ids()),
            "restarts": self.num_restarts,
            "self_test": self._facts.self_test if self._facts else None,
        }

    def process_ids(self) -> list[int]:
        """Return the numbers of the processes that are up."""
        return [worker.process_id for worker in self._workers if worker.process_id is not None]

    async def _run(self, worker: ModelWorker) -> None:
        while True:
            windows = await self.queue.take()
            try:
                await self._decode(worker, windows)
            except WorkerEndedError as e:
                logger.error("model %s: %s; a new one starts", self.spec.name, e)
                self._give_back(windows)
                await self._restart(worker)
            except asyncio.CancelledError:
                for window in windows:
                    window.recording.fail(ServiceError("the service ends", status=503, code="unavailable"))
                raise

    async def _decode(self, worker: ModelWorker, windows: list[Window]) -> None:
        first = windows[0].recording
        batch = Batch(
            waveforms=[window.waveform for window in windows],
            num_frames=[window.num_frames for window in windows],
            settings=first.settings,
            languages=[window.recording.language for window in windows],
            prompt=first.prompt,
        )
        now_s = time.monotonic()
        for window in windows:
            self._metrics.wait_s.observe(now_s - window.arrived_s)
        answer = await worker.decode(batch)
        self._metrics.note_batch(self.spec.name, worker.process_id or 0, len(windows), answer)
        for window, decoded in zip(windows, answer.decoded, strict=True):
            if isinstance(decoded, str):
                window.recording.fail(ServiceError(decoded, status=503, code="out_of_memory", retry_after_s=10))
            else:
                window.recording.take(window, decoded)

    def _give_back(self, windows: list[Window]) -> None:
        """Queue the windows of a worker that ended again, each alone; what ends a second one is given up."""
        again: list[Window] = []
        for window in windows:
            window.num_failures += 1
            if window.num_failures < MAX_FAILURES:
                again.append(window)
            else:
                window.recording.fail(
                    ServiceError("the model failed on this recording", status=500, code="model_failed", param="file")
                )
        self.queue.put_back(again)

    async def _restart(self, worker: ModelWorker) -> None:
        while True:
            try:
                await worker.start(tests=False)
            except RuntimeError as e:
                logger.error("model %s: %s", self.spec.name, e)
                await asyncio.sleep(RESTART_S)
            else:
                self.num_restarts += 1
                self._metrics.restarts.inc()
                return


def share_cores(path: Path, settings: ServeSettings) -> tuple[int, int]:
    """Return (processes, threads of each) for a model; 0 threads leaves them to the runtime.

    A small model spends much of its time between kernels, so on a CPU two processes of one thread do more than one of
    two. A large one would fill the memory so, and its kernels use the cores.

    Args:
        path: of the artefact.
        settings: say what the user wants.
    """
    if torch.cuda.is_available():
        return settings.workers or 1, settings.threads
    cores = len(os.sched_getaffinity(0))
    weights = path / "model.safetensors"
    is_small = weights.is_file() and weights.stat().st_size <= SMALL_BYTES
    num_workers = settings.workers or (min(cores, MAX_WORKERS) if is_small else 1)
    return num_workers, settings.threads or max(1, cores // num_workers)
