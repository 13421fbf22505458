"""Who is let in: places for recordings, the audio that is held for them, and what others are told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import ServiceError, queue_full
from serve.metrics import Metrics
from serve.settings import ServeSettings

MAX_RETRY_S = 30


class Admission:
    """The places of one service, and whether it takes anybody at all."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.state = "starting"
        """Then `ready`, `draining`, and `stopped`."""
        self.num_taken = 0
        """Recordings that the service works on or waits for."""
        self.audio_s = 0.0
        """Of them, that is held in memory."""
        self._settings = settings
        self._metrics = metrics

    def refuse_if_busy(self) -> None:
        """Stop before a body is read that could not be worked on.

        Raises:
            ServiceError: 429 if all places are taken, 503 while the service starts or ends.
        """
        if self.state != "ready":
            raise ServiceError(f"the service is {self.state}", status=503, code="unavailable", retry_after_s=5)
        if self.num_taken >= self._settings.max_queue:
            self._metrics.refused.inc()
            raise queue_full(self._retry_after_s())

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places for recordings.

        Raises:
            ServiceError: as `refuse_if_busy`.
        """
        self.refuse_if_busy()
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @contextmanager
    def audio(self, duration_s: float) -> Iterator[None]:
        """Count audio while it is held in memory; one recording is always taken.

        Args:
            duration_s: of the recording.

        Raises:
            ServiceError: 429 if it would be too much with what is held for others.
        """
        if self.audio_s and self.audio_s + duration_s > self._settings.max_queue_audio_s:
            self._metrics.refused.inc()
            raise queue_full(self._retry_after_s())
        self.audio_s += duration_s
        try:
            yield
        finally:
            self.audio_s = max(0.0, self.audio_s - duration_s)

    def _count(self, change: int) -> None:
        self.num_taken += change
        self._metrics.places.set(self.num_taken)

    def _retry_after_s(self) -> int:
        return max(1, min(MAX_RETRY_S, math.ceil(self._metrics.recent_latency_s())))
