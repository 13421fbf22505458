"""Run many cases in a worker process under a watch: one that dies is a crash, one that is silent for long is a hang."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

HANG_S = 10.0
START_S = 120.0  # for the worker's imports, on a busy machine

Case = TypeVar("Case")
Result = TypeVar("Result")


def watch(
    run: Callable[[Case, Path], Result],
    cases: Sequence[Case],
    *,
    first: Case,
    failed: Callable[[str], Result],
    hang_s: float = HANG_S,
) -> Iterator[tuple[Result, int]]:
    """Run cases one after the other; after a crash or a hang, a new worker goes on.

    Args:
        run: a function of a module, which gets a case and a folder for its files.
        cases: what it gets.
        first: a harmless case that each worker runs before its first one, until its imports are done.
        failed: makes the result of a case that gave none, from `hang`, `crash CODE` or `escaped EXCEPTION`.
        hang_s: seconds of silence that count as a hang.

    Yields:
        The result of each case, and the most memory that its worker had so far, in KiB.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        worker: multiprocessing.process.BaseProcess | None = None
        for case in cases:
            if worker is None:
                connection, far_end = context.Pipe()
                worker = context.Process(target=_work, args=(run, far_end, Path(folder)), daemon=True)
                worker.start()
                far_end.close()
                connection.send(first)
                if not connection.poll(START_S):
                    raise RuntimeError("the worker did not start")
                connection.recv()
            connection.send(case)
            result, peak_kib = failed("hang"), 0
            is_lost = True
            if connection.poll(hang_s):
                try:
                    found, peak_kib = connection.recv()
                    result = failed(found) if isinstance(found, str) else found
                    is_lost = False
                except EOFError:
                    worker.join()
                    result = failed(f"crash {worker.exitcode}")
            yield result, peak_kib
            if is_lost:
                worker.kill()
                worker.join()
                worker = None
        if worker is not None:
            connection.send(None)
            worker.join()


def _work(run: Callable[[Any, Path], Any], connection: Connection, folder: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoders' own complaints
    while (case := connection.recv()) is not None:
        try:
            result = run(case, folder)
        except Exception as e:
            result = f"escaped {type(e).__name__}: {e}"
        connection.send((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
