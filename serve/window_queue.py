"""The windows of all callers, and which of them the model takes next.

A batch holds one way to decode, whatever the languages, and windows of like length: of one, or in torch of all within a
factor of two. It begins with the caller who has waited for his turn longest, and takes one window of each caller before
it takes a second one of any. So a long recording never starves short ones, and callers with like clips share the model.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from data.audio import Waveform
from infer.decoding import Decoded, DecodeSettings


@dataclass(eq=False)
class Window:
    """One window to decode, at its place in a recording."""

    recording: Recording
    index: int
    waveform: Waveform
    num_frames: int
    arrived_s: float = 0.0
    """By the monotonic clock."""
    num_failures: int = 0
    """How often a worker ended while it had this window."""


@dataclass(eq=False)
class Recording:
    """What one caller asked for."""

    settings: DecodeSettings
    """Language is `auto`; each batch says it by row."""
    language: str
    prompt: str | None
    is_live: bool
    """Goes before recordings of files."""
    done: asyncio.Future[list[Decoded]]
    on_window: Callable[[list[Decoded | None]], None] | None = None
    results: list[Decoded | None] = field(default_factory=list)
    waiting: deque[Window] = field(default_factory=deque)

    @property
    def way(self) -> Hashable:
        """What the windows of a batch have in common, besides their length.

        A prompt takes the room of the longest one beside it, so only callers with the same prompt meet.
        """
        return (self.settings, self.prompt)

    @property
    def is_plain(self) -> bool:
        """Whether the search is one that windows of several lengths can share."""
        return self.settings.num_beams == 1 and self.settings.temperature == (0.0,) and self.prompt is None

    def take(self, window: Window, decoded: Decoded) -> None:
        """Keep a result; the last one ends the waiting."""
        if self.done.done():
            return
        self.results[window.index] = decoded
        if self.on_window is not None:
            self.on_window(self.results)
        found = [result for result in self.results if result is not None]
        if len(found) == len(self.results):
            self.done.set_result(found)

    def fail(self, error: Exception) -> None:
        """End the waiting without a text."""
        self.waiting.clear()
        if not self.done.done():
            self.done.set_exception(error)


class WindowQueue:
    """Recordings in turn, each with its windows in order."""

    def __init__(
        self,
        *,
        max_batch: int,
        max_batch_audio_s: float,
        max_wait_s: float,
        frames_per_s: int,
        num_expected: Callable[[], int] = lambda: 1 << 30,
    ) -> None:
        """Remember the limits of a batch.

        Args:
            max_batch: windows.
            max_batch_audio_s: of windows, as they are padded; a batch holds one window in any case.
            max_wait_s: that a window waits for others, where a worker is idle.
            frames_per_s: of windows.
            num_expected: returns how many recordings the service works on, those among them that are not queued yet.
        """
        self.num_expected = num_expected
        self._max_batch = max_batch
        self._max_frames = max_batch_audio_s * frames_per_s
        self._max_wait_s = max_wait_s
        self._live: deque[Recording] = deque()
        self._turn: deque[Recording] = deque()
        self._changed = asyncio.Event()
        self.num_workers = 1
        self.mixes_lengths = False
        """Whether the decoder takes windows of several lengths together."""

    @property
    def num_waiting(self) -> int:
        """Windows that no batch holds yet."""
        return sum(len(recording.waiting) for recording in (*self._live, *self._turn))

    def add(self, recording: Recording, windows: Iterable[tuple[Waveform, int]]) -> None:
        """Queue the windows of a recording.

        Args:
            recording: new.
            windows: (waveform, frames of the padded window) of each.
        """
        now_s = time.monotonic()
        found = [Window(recording, i, waveform, frames, now_s) for i, (waveform, frames) in enumerate(windows)]
        recording.results = [None] * len(found)
        recording.waiting = deque(found)
        self._ring(recording).append(recording)
        self._changed.set()

    def drop(self, recording: Recording) -> None:
        """Forget what is left of a recording whose caller is gone."""
        recording.waiting.clear()
        ring = self._ring(recording)
        if recording in ring:
            ring.remove(recording)

    def put_back(self, windows: Iterable[Window]) -> None:
        """Queue windows again, before all others: their worker ended."""
        for window in reversed(list(windows)):
            recording = window.recording
            if recording.done.done():
                continue
            recording.waiting.appendleft(window)
            ring = self._ring(recording)
            if recording in ring:
                ring.remove(recording)
            ring.appendleft(recording)
        self._changed.set()

    async def take(self) -> list[Window]:
        """Wait for windows and return a batch of them."""
        while True:
            self._changed.clear()
            batch, is_full = self._gather()
            if batch:
                left_s = batch[0].arrived_s + self._max_wait_s - time.monotonic()
                if left_s <= 0 or is_full or not self._others_come(batch):
                    self._remove(batch)
                    return batch
                try:
                    await asyncio.wait_for(self._changed.wait(), left_s)
                except TimeoutError:
                    continue
            else:
                await self._changed.wait()

    def _ring(self, recording: Recording) -> deque[Recording]:
        return self._live if recording.is_live else self._turn

    def _others_come(self, batch: list[Window]) -> bool:
        """Whether this worker's share of all callers is not here yet; nobody waits for nobody."""
        return self.num_expected() > self.num_workers * len({window.recording for window in batch})

    def _gather(self) -> tuple[list[Window], bool]:
        """Return the next batch, still in the queue, and whether no more would fit."""
        order = [*self._live, *self._turn]
        if not order:
            return [], False
        lead = order[0].waiting[0]
        if lead.num_failures:  # alone: should it end a second worker, nobody else goes with it
            return [lead], True
        fits = self._fits(lead)
        alike = [
            [window for window in recording.waiting if fits(window)]
            for recording in order
            if recording.way == lead.recording.way
        ]
        batch: list[Window] = []
        num_frames = 0
        for nth in range(max(map(len, alike))):
            for windows in alike:
                if nth < len(windows):
                    window = windows[nth]
                    if batch and num_frames + window.num_frames > self._max_frames:
                        return batch, True
                    batch.append(window)
                    num_frames += window.num_frames
                    if len(batch) == self._max_batch:
                        return batch, True
        return batch, False

    def _fits(self, lead: Window) -> Callable[[Window], bool]:
        """Return which windows may stand beside the first one: none that is much longer, for it would have to wait."""
        shortest = longest = lead.num_frames
        if self.mixes_lengths and lead.recording.is_plain:
            shortest, longest = lead.num_frames // 2, 2 * lead.num_frames
        return lambda window: shortest <= window.num_frames <= longest and not window.num_failures

    def _remove(self, batch: list[Window]) -> None:
        """Take a batch out; whoever had a window in it goes to the end of the line."""
        for window in batch:
            window.recording.waiting.remove(window)
        for recording in dict.fromkeys(window.recording for window in batch):
            ring = self._ring(recording)
            ring.remove(recording)
            if recording.waiting:
                ring.append(recording)
