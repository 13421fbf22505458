"""An iterator that is run ahead by a thread: while the model computes, decoders work, which leave Python to others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
LOOK_S = 0.2  # between two looks at whether anybody still listens


def read_ahead(items: Iterator[Item], *, count: int = 2) -> Generator[Item, None, None]:
    """Yield the items of an iterator, which a thread asks for beforehand, in their order and one at a time.

    The thread starts at once, not with the first `next`, and ends with the iterator that is returned.

    Args:
        items: run by the thread alone from now on; an exception of it is raised where its item would have come.
        count: items that wait at most, besides the one that is in the making.
    """
    ahead = _Ahead(items, count)
    ahead.thread.start()
    return ahead.listen()


class _Ahead(Generic[Item]):
    def __init__(self, items: Iterator[Item], count: int) -> None:
        self.items = items
        self.queue: queue.Queue[Item | _End] = queue.Queue(maxsize=count)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def listen(self) -> Generator[Item, None, None]:
        try:
            # Primed by nobody: were the generator closed before its first `next`, `finally` would never run; then the
            # thread ends with the program.
            while True:
                found = self.queue.get()
                if isinstance(found, _End):
                    if found.error is not None:
                        raise found.error
                    return
                yield found
        finally:
            self.stop.set()
            self.thread.join()

    def _run(self) -> None:
        end = _End(None)
        try:
            for item in self.items:
                if not self._put(item):
                    return
        except BaseException as e:  # belongs to whoever waits for the next item
            end = _End(e)
        self._put(end)

    def _put(self, item: Item | _End) -> bool:
        while not self.stop.is_set():
            try:
                self.queue.put(item, timeout=LOOK_S)
            except queue.Full:
                continue
            return True
        return False


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
