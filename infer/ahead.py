"""Work done in a thread while its last result is used: features of the next batch, audio of the next recordings."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], *, depth: int = 1) -> Generator[T, None, None]:
    """Yield items, of which the next ones are made in a thread meanwhile.

    An error in the making is raised where the item would have come. Where the reader stops early, so does the thread.

    Args:
        items: made one by one, in order.
        depth: items that wait, at most.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None, *, is_last: bool) -> None:
        while not stopped.is_set():
            try:
                waiting.put((item, error, is_last), timeout=0.1)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put(item, None, is_last=False)
                if stopped.is_set():
                    return
        except BaseException as e:
            put(None, e, is_last=True)
        else:
            put(None, None, is_last=True)

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_last = waiting.get()
            if error is not None:
                raise error
            if is_last:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
