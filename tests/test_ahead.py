"""What is made ahead comes in order, stops with its reader, and loses no error."""

from __future__ import annotations

import threading
import time

import pytest

from infer.ahead import ahead


def _threads() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def test_items_come_in_order_and_are_made_before_they_are_asked_for() -> None:
    made: list[int] = []

    def items():
        for i in range(5):
            made.append(i)
            yield i

    reader = ahead(items())
    assert next(reader) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [0, 1, 2]  # one waits, and one is held by the thread that found no room
    assert list(reader) == [1, 2, 3, 4]
    assert list(ahead([])) == []


def test_an_error_comes_where_the_item_would_have_come() -> None:
    def items():
        yield 1
        raise ValueError("broken")

    reader = ahead(items())
    assert next(reader) == 1
    with pytest.raises(ValueError, match="broken"):
        next(reader)


def test_the_thread_ends_with_its_reader() -> None:
    before = _threads()
    reader = ahead(iter(range(1000)))
    assert next(reader) == 0
    assert _threads() == before + 1
    reader.close()
    assert _threads() == before
