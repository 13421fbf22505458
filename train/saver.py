"""Write checkpoints while training goes on, and bear with a disk that is full for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.checkpoint import Checkpoint, prune_checkpoints, save_checkpoint, step_dir
from train.durable import free_bytes, num_bytes
from train.signals import StorageError

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
SPARE_BYTES = 256 << 20  # of the host's memory, that a copy must leave


@dataclass
class SaveCost:
    """What checkpoints have cost since the last look."""

    blocked_s: float = 0.0
    """Seconds in which no update could run."""
    written_s: float = 0.0
    """Seconds that writing took, beside the training or not."""
    num_bytes: int = 0


@dataclass
class _Attempt:
    step: int
    progress: Mapping[str, Any]
    best: int | None
    size: int
    started: float
    error: OSError | None = None
    crash: BaseException | None = None
    elapsed_s: float = 0.0


class CheckpointSaver:
    """One checkpoint at a time, in a thread where the memory allows a copy.

    After a failure the training goes on. The next try is one interval later, then two; the third failure in a row
    ends the run.
    """

    def __init__(
        self,
        checkpoints_dir: Path,
        *,
        keep_last: int,
        in_background: bool,
        write: Callable[[Path, int, Checkpoint], Path] | None = None,
        prunes: bool = True,
    ) -> None:
        """Remember how.

        Args:
            checkpoints_dir: the folder.
            keep_last: newest checkpoints that stay.
            in_background: write beside the training, where the memory holds a copy.
            write: takes folder, step and checkpoint; None is `save_checkpoint`. One that all ranks call together must
                fail on all of them.
            prunes: delete old ones; one rank does.
        """
        self.write = write
        self.prunes = prunes
        self.checkpoints_dir = checkpoints_dir
        self.keep_last = keep_last
        self.in_background = in_background
        self.saved: Mapping[str, Any] | None = None
        """Progress of the latest checkpoint that was begun and has not failed."""
        self.verified: int | None = None
        """Step of the latest checkpoint that was read and found whole."""
        self.longest_s = 0.0
        """Of one checkpoint so far, in seconds."""
        self.num_failures = 0
        """In a row."""
        self._num_waiting = 0
        self._error: str = ""
        self._thread: threading.Thread | None = None
        self._attempt: _Attempt | None = None
        self._cost = SaveCost()
        self._said_foreground = False
        self._knows_room = False

    @property
    def is_exhausted(self) -> bool:
        """Whether three tries in a row have failed."""
        return self.num_failures >= MAX_FAILURES

    def save(
        self,
        step: int,
        build: Callable[[], Checkpoint],
        *,
        progress: Mapping[str, Any],
        best: int | None,
        must: bool = False,
    ) -> None:
        """Begin to write a checkpoint; return when training may go on.

        Args:
            step: its number.
            build: what to save; its tensors may be those that training changes.
            progress: by which it is known; nothing is written where it is that of the latest one.
            best: step of the best checkpoint, which is kept.
            must: wait until it is written, and raise where it cannot be: the last one of a run.

        Raises:
            StorageError: if it must be written and cannot be.
        """
        started = time.perf_counter()
        self.join()
        if progress == self.saved:
            return
        if self._num_waiting > 0 and not must:
            self._num_waiting -= 1
            return
        checkpoint = build()
        attempt = _Attempt(step, progress, best, num_bytes(checkpoint.tensors()), started)
        self.saved = progress
        self._attempt = attempt
        self._warn_of_room(attempt.size)
        if self.in_background and not must and self._has_memory(attempt.size):
            copied = checkpoint.on_host()
            self._thread = threading.Thread(target=self._write, args=(attempt, copied), name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._write(attempt, checkpoint)
            self._finish()
        self._cost.blocked_s += time.perf_counter() - started
        if must and self.num_failures:
            raise StorageError(self.describe_failure())

    def poll(self) -> None:
        """Take in what a finished thread has found, without waiting."""
        if self._thread is not None and not self._thread.is_alive():
            self.join()

    def join(self) -> None:
        """Wait until nothing is being written: before the next one, before reading, and at the end."""
        if self._thread is not None:
            started = time.perf_counter()
            self._thread.join()
            self._thread = None
            self._finish()
            self._cost.blocked_s += time.perf_counter() - started

    def take_cost(self) -> SaveCost:
        """Return what checkpoints have cost since the last call."""
        cost, self._cost = self._cost, SaveCost()
        return cost

    def describe_failure(self) -> str:
        """Say what stands in the way."""
        return (
            f"{self._error}. Make room there, or name another run.dir=; the same command goes on from the last "
            "checkpoint"
        )

    def _write(self, attempt: _Attempt, checkpoint: Checkpoint) -> None:
        begun = time.perf_counter()
        try:
            (self.write or save_checkpoint)(self.checkpoints_dir, attempt.step, checkpoint)
        except OSError as e:
            attempt.error = e
        except BaseException as e:  # raised again in the thread that waits
            attempt.crash = e
        attempt.elapsed_s = time.perf_counter() - begun

    def _finish(self) -> None:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        if attempt.crash is not None:
            raise attempt.crash
        if attempt.error is not None:
            self._fail(attempt, attempt.error)
            return
        self.num_failures = self._num_waiting = 0
        self.verified = attempt.step
        self.longest_s = max(self.longest_s, attempt.elapsed_s)
        self._cost.written_s += attempt.elapsed_s
        self._cost.num_bytes += attempt.size
        logger.info(
            "checkpoint step-%06d: %.1f MB written and read back in %.2f s",
            attempt.step,
            attempt.size / 1e6,
            attempt.elapsed_s,
        )
        if self.prunes:  # only now that a newer one stands
            prune_checkpoints(
                self.checkpoints_dir, keep_last=self.keep_last, keep={"best": attempt.best, "verified": self.verified}
            )

    def _fail(self, attempt: _Attempt, error: OSError) -> None:
        self.saved = None
        self.num_failures += 1
        self._num_waiting = self.num_failures - 1
        path = step_dir(self.checkpoints_dir, attempt.step)
        self._error = f"checkpoint {path} of {attempt.size:,} bytes was not written ({error.strerror or error})"
        logger.error("%s; failure %d of %d in a row, training goes on", self._error, self.num_failures, MAX_FAILURES)

    def _warn_of_room(self, size: int) -> None:
        """Say at the first checkpoint that the later ones will not fit."""
        if self._knows_room:
            return
        self._knows_room = True
        free, needed = free_bytes(self.checkpoints_dir.parent), (self.keep_last + 2) * size
        if free < needed:
            logger.warning(
                "%s has %.1f GB free, checkpoints take up to %.1f GB: lower trainer.keep_checkpoints=%d, or make room",
                self.checkpoints_dir,
                free / 1e9,
                needed / 1e9,
                self.keep_last,
            )

    def _has_memory(self, size: int) -> bool:
        available = available_memory()
        if available is None or available >= size + SPARE_BYTES:
            return True
        if not self._said_foreground:
            logger.warning(
                "training waits for checkpoints: a copy of %.1f GB does not fit into the %.1f GB of free memory",
                size / 1e9,
                available / 1e9,
            )
            self._said_foreground = True
        return False


def available_memory() -> int | None:
    """Return the bytes of host memory that this process may still take, or None where the system does not say."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(held.get("inactive_file", 0))
            found.append(int(limit) - used)
    except (OSError, ValueError, IndexError):
        pass  # no Linux, or no limit of a container
    return min(found, default=None)
