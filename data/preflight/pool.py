"""Many clips measured on all cores; a clip that kills its process costs that clip and nothing else."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from data.preflight.clip import ClipFigures, ClipJob, measure_clip
from data.reasons import Reason

CHUNK_CLIPS = 32  # clips a worker gets at a time: enough to hide the way to it and back
CHUNKS_AHEAD = 4  # per worker; what waits is bounded, however long the corpus

Measure = Callable[[ClipJob], ClipFigures]
Measured = tuple[ClipJob, ClipFigures]


def measure_clips(
    jobs: Iterable[ClipJob], *, num_workers: int, measure: Measure = measure_clip
) -> Iterator[list[Measured]]:
    """Measure clips, in chunks, in the order in which they are done.

    Media parsers crash on bad files now and then, and take their process with them. The clips that were under way are
    then measured again, each in a process of its own, and the one that kills it gets the code of a corrupt file.

    Args:
        jobs: the clips; taken as they are needed.
        num_workers: processes; 0 measures in this one.
        measure: what to do with each, an importable function.

    Yields:
        Clips with their figures, each clip once.
    """
    iterator = iter(jobs)
    chunks = iter(lambda: list(itertools.islice(iterator, CHUNK_CLIPS)), [])
    if num_workers == 0:
        for chunk in chunks:
            yield _measure_chunk(chunk, measure)
        return
    suspects: list[list[ClipJob]] = []
    while True:
        yield from _until_broken(chunks, suspects, num_workers, measure)
        if not suspects:
            return
        yield from _one_by_one(itertools.chain.from_iterable(suspects), measure)
        suspects.clear()


def _until_broken(
    chunks: Iterator[list[ClipJob]], suspects: list[list[ClipJob]], num_workers: int, measure: Measure
) -> Iterator[list[Measured]]:
    """Yield chunks until all are done, or a worker died: then those that were under way are in `suspects`."""
    running: dict[Future[list[Measured]], list[ClipJob]] = {}
    with _open_pool(num_workers) as pool:
        try:
            for chunk in chunks:
                suspects[:] = [chunk]  # not yet in `running`, should the pool be found broken now
                running[pool.submit(_measure_chunk, chunk, measure)] = chunk
                suspects.clear()
                if len(running) == CHUNKS_AHEAD * num_workers:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        except BrokenProcessPool:
            suspects += running.values()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finished(running: dict[Future[list[Measured]], list[ClipJob]]) -> Iterator[list[Measured]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        yield future.result()
        del running[future]


def _one_by_one(jobs: Iterable[ClipJob], measure: Measure) -> Iterator[list[Measured]]:
    """Measure clips in a process of one worker, so that the clip under way when it dies is the one that killed it."""
    pool = _open_pool(1)
    try:
        for job in jobs:
            try:
                yield [(job, pool.submit(measure, job).result())]
            except BrokenProcessPool:
                pool.shutdown(wait=False)
                pool = _open_pool(1)
                detail = f"{job.name}: the decoder crashed"
                yield [(job, ClipFigures(code=Reason.AUDIO_CORRUPT.code, detail=detail))]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _measure_chunk(chunk: list[ClipJob], measure: Measure) -> list[Measured]:
    return [(job, measure(job)) for job in chunk]


def _open_pool(num_workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork of a process with threads (a progress bar, PyTorch's) may hang.
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
