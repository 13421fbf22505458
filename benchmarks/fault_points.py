"""Places in the writing of a checkpoint where something can go wrong: before every touch of the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import train.checkpoint
import train.durable

TOUCHES = (
    (train.durable, "_write"),
    (train.durable, "_sync"),
    (train.durable, "_hash"),
    (train.checkpoint, "rename"),
    (train.checkpoint, "sync_folder"),
)


def install(act: Callable[[int, str], None]) -> None:
    """Call `act(number, name)` before each touch, counted from 1; what it raises, the touch raises.

    For a child process: nothing is put back.
    """
    count = [0]

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*arguments: Any) -> Any:
            count[0] += 1
            act(count[0], name)
            return real(*arguments)

        return touch

    for module, name in TOUCHES:
        setattr(module, name, wrap(name, getattr(module, name)))


def kill_at(number: int, signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a preparation of a child that signals itself before a touch."""

    def act(found: int, _name: str) -> None:
        if found == number:
            os.kill(os.getpid(), signal_number)

    return lambda: install(act)


def fail_at(number: int, error: int, *, num_touches: int = 1) -> Callable[[], None]:
    """Return a preparation of a child in which touches fail with an error number of the system."""

    def act(found: int, _name: str) -> None:
        if number <= found < number + num_touches:
            raise OSError(error, os.strerror(error))

    return lambda: install(act)


def count_into(path: Path) -> Callable[[], None]:
    """Return a preparation of a child that writes the number of touches into a file."""
    return lambda: install(lambda found, _name: path.write_text(str(found)) and None)
