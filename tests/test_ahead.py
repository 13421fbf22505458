"""Read ahead or not, the same comes in the same order, faults in their place; it ends when nobody listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from data.ahead import read_ahead


def test_items_come_in_order_and_the_end_is_the_end() -> None:
    assert list(read_ahead(iter(range(100)))) == list(range(100))
    assert list(read_ahead(iter([]))) == []
    assert list(read_ahead(iter([None, 1]))) == [None, 1]


def test_a_fault_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("of the data")

    found = read_ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="of the data"):
        next(found)


@pytest.mark.parametrize("count", [1, 3])
def test_it_reads_while_nobody_waits_and_no_further_than_it_was_told(count: int) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    found = read_ahead(items(), count=count)
    _wait_until(lambda: len(made) == count + 1)  # before the first `next`
    assert next(found) == 0
    _wait_until(lambda: len(made) == count + 2)
    time.sleep(0.05)
    assert len(made) == count + 2


def test_its_thread_ends_with_it() -> None:
    before = threading.active_count()
    endless = iter(int, 1)
    found = read_ahead(endless)
    assert next(found) == 0
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before
    assert next(endless) == 0


def _wait_until(is_done) -> None:
    end = time.monotonic() + 10
    while not is_done() and time.monotonic() < end:
        time.sleep(0.005)
    assert is_done()
