"""One person who speaks: sound goes in as it comes, text comes out, and a slow model makes the sender wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from data.audio import MIN_DURATION_S, SAMPLING_RATE, Waveform
from infer.decoding import Decoded
from serve.errors import ServiceError
from serve.options import Options
from serve.stream_settings import StreamSettings
from serve.streaming import Heard, Stream, Update, Window
from serve.voice import Detector, load_detector

MAX_WAITING_S = 30.0  # sound that no pass has heard; beyond it the sender waits
PIECE = 16_000  # samples taken in at once, so that a long message does not hold up everybody

Decode = Callable[[Waveform, str], Awaitable[Decoded]]
"""Says what a window says; the language is empty where it is not known yet."""


class Places:
    """How many people may speak at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_taken = 0

    def take(self) -> None:
        """Take a place.

        Raises:
            ServiceError: 429 if all are taken.
        """
        if self.num_taken >= self.limit:
            raise ServiceError(
                f"all {self.limit} live conversations of this service are taken; try again in a minute, "
                "or raise serve.max_streams",
                status=429,
                code="streams_full",
                retry_after_s=60,
            )
        self.num_taken += 1

    def give_back(self) -> None:
        """Free a place."""
        self.num_taken -= 1

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a place for as long as a conversation lasts."""
        self.take()
        try:
            yield
        finally:
            self.give_back()


async def hear(decode: Decode, window: Window) -> Heard:
    """Decode a window; one that is too short for a sound says nothing."""
    if len(window.waveform) < MIN_DURATION_S * SAMPLING_RATE:
        return Heard("", "")
    decoded = await decode(window.waveform, window.language)
    return Heard(decoded.text, decoded.language, decoded.segments)


def with_language(options: Options, language: str) -> Options:
    """Return options with the language that an utterance has begun in, where none was asked for."""
    return replace(options, language=language) if language and options.language == "auto" else options


class LiveSession:
    """Decode what comes in, pass by pass, one at a time."""

    def __init__(
        self, decode: Decode, settings: StreamSettings | None = None, *, detector: Detector | None = None
    ) -> None:
        """Begin in silence.

        Args:
            decode: called for one window after the other.
            settings: how.
            detector: of voices; Silero's where none is given.
        """
        self._detector = detector if detector is not None else load_detector()
        self.stream = Stream(settings, detector=self._detector)
        self._decode = decode
        self._is_over = False
        self._is_committing = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def add(self, waveform: Waveform) -> None:
        """Take in sound; returns when there is room for more.

        Args:
            waveform: (num_samples,) float32 at 16 kHz.
        """
        for start in range(0, len(waveform), PIECE):
            await self._room.wait()
            self.stream.add(np.asarray(waveform[start : start + PIECE], dtype=np.float32))
            self._notify()
            await asyncio.sleep(0)

    def commit(self) -> None:
        """End the utterance here: all that came in so far becomes final."""
        self._is_committing = True
        self._notify()

    def clear(self) -> None:
        """Forget the sound that is not final, and what the present utterance said."""
        self.stream = Stream(self.stream.settings, detector=self._detector, start=self.stream.end)
        self._notify()

    def finish(self) -> None:
        """Say that no more sound will come."""
        self._is_over = True
        self._notify()

    async def updates(self) -> AsyncIterator[Update]:
        """Yield what each pass changed, until the sound has ended and all of it was heard.

        Raises:
            ServiceError: if a window cannot be decoded.
        """
        while True:
            self._changed.clear()
            stream = self.stream
            window = stream.next_window(is_over=self._is_over or self._is_committing)
            if window is not None:
                heard = await hear(self._decode, window)
                if stream is self.stream:  # it was not cleared meanwhile
                    yield stream.take(window, heard)
                self._notify()
                continue
            self._is_committing = False
            if self._is_over:
                return
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        if self.stream.waiting_s > MAX_WAITING_S:
            self._room.clear()
        else:
            self._room.set()
