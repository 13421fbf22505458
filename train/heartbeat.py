"""Find the process that is dead or hangs, name it, and end this one: a run on two cards must not wait all night.

Each process writes every second how far it is into the store that the launcher made, and reads the others. A process
whose mark stands still is dead or stopped; one that lags behind the others, which wait for it, hangs.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]

from train.signals import EXIT_PROCESSES

logger = logging.getLogger(__name__)

BEAT_S = 1.0
DEAD_S = 30.0
SLOW_S = 1800.0  # for what may take long on one rank while the others wait
PHASES = ("start", "data", "update", "validation", "checkpoint", "end")
"""In the order of one round."""
SLOW_PHASES = ("start", "validation", "checkpoint", "end")


@dataclass
class Mark:
    """What is known of a process, and since when."""

    beats: int = -1
    step: int = 0
    phase: str = "start"
    beaten_at: float = 0.0
    """When its mark was last seen to change."""
    moved_at: float = 0.0
    """When its step or phase was last seen to change."""

    @property
    def place(self) -> tuple[int, int]:
        """How far it is."""
        return self.step, PHASES.index(self.phase)


def find_lost(own: Mark, peers: dict[int, Mark], *, now: float, timeout_s: float) -> str | None:
    """Say which process is lost, and how it was found, or None.

    Args:
        own: of this process.
        peers: of the others, by rank.
        now: of the same clock as the marks.
        timeout_s: how long others wait for one within an update.
    """
    for rank, mark in sorted(peers.items()):
        where = f"step {mark.step}, {mark.phase}"
        if now - mark.beaten_at > DEAD_S:
            return f"rank {rank} is dead or stopped: no sign of life for {now - mark.beaten_at:.0f} s (last: {where})"
        limit_s = SLOW_S if mark.phase in SLOW_PHASES else timeout_s
        waited_s = now - max(mark.moved_at, own.moved_at)
        if mark.place < own.place and waited_s > limit_s:
            return f"rank {rank} hangs: it stands at {where} while the others wait since {waited_s:.0f} s"
    return None


class Heartbeat:
    """A thread that beats and looks; without peers, nothing."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        timeout_s: float,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """Start to beat.

        Args:
            rank: of this process.
            world_size: number of processes.
            timeout_s: how long the others wait for one within an update.
            on_lost: what to do when a process is lost; None ends this one.
        """
        self._rank = rank
        self._timeout_s = timeout_s
        self._on_lost = on_lost or _end_process
        now = time.monotonic()
        self._own = Mark(moved_at=now)
        self._peers = {i: Mark(beaten_at=now, moved_at=now) for i in range(world_size) if i != rank}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if world_size > 1:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()

    def at(self, phase: str, *, step: int | None = None) -> None:
        """Say where this process is."""
        self._own.phase = phase
        self._own.step = self._own.step if step is None else step
        self._own.moved_at = time.monotonic()

    def wait_for_verdict(self) -> None:
        """After a failed exchange: leave the thread time to find out who is lost and to end this process."""
        if self._thread is not None:
            self._closed.wait(DEAD_S + 5 * BEAT_S)

    def close(self) -> None:
        """Stop to look; the others may end at another moment."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * BEAT_S)

    def _beat(self) -> None:
        store = _open_store()
        beats = 0
        while not self._closed.wait(BEAT_S):
            beats += 1
            try:
                store.set(_key(self._rank), json.dumps([beats, self._own.step, self._own.phase]))
                for rank, mark in self._peers.items():
                    if store.check([_key(rank)]):
                        _take_in(mark, *json.loads(store.get(_key(rank))), now=time.monotonic())
            except (RuntimeError, DistError) as e:
                if not self._closed.is_set():
                    self._on_lost(f"the store of rank 0 or of the launcher is gone ({str(e).splitlines()[0]})")
                return
            lost = find_lost(self._own, self._peers, now=time.monotonic(), timeout_s=self._timeout_s)
            if lost is not None and not self._closed.is_set():
                self._on_lost(lost)
                return


def _take_in(mark: Mark, beats: int, step: int, phase: str, *, now: float) -> None:
    if beats != mark.beats:
        mark.beats, mark.beaten_at = beats, now
    if (step, phase) != (mark.step, mark.phase):
        mark.step, mark.phase, mark.moved_at = step, phase, now


def _key(rank: int) -> str:
    return f"mezzavoce/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def _open_store() -> Store:
    # A connection of our own: the one of torch may be held by a waiting main thread.
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=DEAD_S / 2),
    )


def _end_process(lost: str) -> None:
    text = f"{lost}; stopping (exit code {EXIT_PROCESSES}). The same command goes on from the last checkpoint"
    logger.critical("%s", text)
    os.write(2, f"error: {text}\n".encode())
    os._exit(EXIT_PROCESSES)  # the main thread waits for the lost one, and hears no exception
