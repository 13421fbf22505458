"""What ends a run in good order: signals, the time limit, a disk that stays full; and the exit code of each."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

EXIT_PROCESSES = 70  # EX_SOFTWARE: another process of this run is dead or hangs, or holds other weights
EXIT_STORAGE = 75  # EX_TEMPFAIL: checkpoints cannot be written; the same command goes on once they can
EXIT_TIME = 124  # as of `timeout`: trainer.max_hours is over
REPEAT_S = 2.0


class StorageError(RuntimeError):
    """Checkpoints cannot be written, again and again."""


class PeerError(RuntimeError):
    """Another process of this run is dead, hangs, or no longer holds the same weights."""


class EvaluationStopped(BaseException):
    """A signal came during an evaluation, which is given up; no `except Exception` on the way may hold it."""


class StopSignals:
    """Let the first SIGINT, SIGTERM or SIGUSR1 end the run after the present update.

    Launchers and process groups deliver one order twice, so what comes within two seconds is the same order. A later
    signal acts as if we were not here: the process ends at once, and a checkpoint in the making is whole or absent.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._may_interrupt = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in self.NUMBERS:
            self._previous[number] = signal.signal(number, self._stop)
        return self

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = number, now
            # Not through `logging`, which may be in the middle of a line.
            os.write(2, b"\nstopping after this update, with a checkpoint; a second signal stops at once\n")
            if self._may_interrupt:
                raise EvaluationStopped
        elif now - self._received_at > REPEAT_S:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal break off what stands inside, as an evaluation, by `EvaluationStopped`."""
        if self.received is not None:
            raise EvaluationStopped
        self._may_interrupt = True
        try:
            yield
        finally:
            self._may_interrupt = False

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells say it; 0 without one."""
        return 0 if self.received is None else 128 + self.received

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)


class TimeLimit:
    """Say when to stop so that the last checkpoint is written within the hours that a queue gives."""

    def __init__(self, max_hours: float) -> None:
        """Start the clock.

        Args:
            max_hours: from now on; 0 sets no limit.
        """
        self._end = time.monotonic() + 3600 * max_hours if max_hours else float("inf")
        self._last = time.monotonic()
        self._longest_s = 0.0

    def is_over(self, *, save_s: float) -> bool:
        """Say whether one more round, as long as the longest so far, and a checkpoint no longer fit.

        Args:
            save_s: seconds that the longest checkpoint took so far.
        """
        now = time.monotonic()
        self._longest_s, self._last = max(self._longest_s, now - self._last), now
        return now + self._longest_s + save_s >= self._end
