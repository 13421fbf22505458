"""Damaged checkpoints, disks that are full, and what is left of a run after each."""

from __future__ import annotations

import errno
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fault_kills import reference
from benchmarks.fault_points import fail_at
from benchmarks.toy_run import ToyRuns, spread, wait_for
from train.checkpoint import DamagedError, find_checkpoint, list_checkpoints, verify_checkpoint
from train.signals import EXIT_STORAGE

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)


def damage_checkpoints(folder: Path, *, num_flips: int, num_cuts: int, num_missing: int) -> dict[str, Any]:
    """Flip single bits, cut files and take files away; each must be found, and the older checkpoint be taken."""
    toys = ToyRuns(folder)
    ending = toys.finish("whole")
    assert ending.code == 0, toys.output("whole")
    checkpoints = folder / "whole" / "checkpoints"
    newest = list_checkpoints(checkpoints)[-1]
    older = list_checkpoints(checkpoints)[-2].name
    files = sorted(newest.iterdir())
    rng = random.Random(0)

    def flip(content: bytearray) -> None:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)

    def cut(content: bytearray) -> None:
        del content[rng.randrange(len(content)) :]

    def count(change: Callable[[bytearray], None] | None, number: int) -> dict[str, int]:
        found = fell_back = 0
        for i in range(number):
            file = files[i % len(files)]
            before = file.read_bytes()
            if change is None:
                file.unlink()
            else:
                content = bytearray(before)
                change(content)
                file.write_bytes(content)
            try:
                verify_checkpoint(newest)
            except DamagedError:
                found += 1
            if i < 2 * len(files):  # each file twice: reading the older one costs more than finding the damage
                taken = find_checkpoint(checkpoints)
                fell_back += taken is not None and taken[0].name == older
            file.write_bytes(before)
        return {"cases": number, "found": found, "fell_back_of_the_first_10": fell_back}

    figures = {
        "flips": count(flip, num_flips),
        "cuts": count(cut, num_cuts),
        "missing": count(None, num_missing),
    }
    verify_checkpoint(newest)
    return figures


def fill_disk(folder: Path, *, num_points: int, workers: int) -> dict[str, Any]:
    """Let one touch of the disk fail with ENOSPC, EIO, EDQUOT or EROFS; the training must not notice."""
    toys = ToyRuns(folder)
    whole, _, num_touches = reference(toys)
    cases = [(1 + i * (num_touches - 3) // num_points, ERRORS[i % len(ERRORS)]) for i in range(num_points)]

    def judge(case: tuple[int, int]) -> dict[str, Any]:
        touch, error = case
        name = f"point-{touch}-{error}"
        ending = wait_for(toys.start(name, prepare=fail_at(touch, error)))
        checkpoints = folder / name / "checkpoints"
        intact = all(_is_whole(path) for path in list_checkpoints(checkpoints))
        said = "bytes was not written" in toys.output(name) and str(checkpoints) in toys.output(name)
        return {
            "intact": intact,
            "rest": len(list(checkpoints.glob(".*"))),
            # The last checkpoint of a run must stand: where it fails, the run ends with the code for that.
            "equal": ending.code == 0 and toys.fingerprint(name) == whole,
            "code_75": ending.code == EXIT_STORAGE,
            "said": said,
        }

    found = spread(cases, judge, workers=workers, folder=folder)
    return {
        "points": len(found),
        "previous_intact": sum(f["intact"] for f in found),
        "without_rest": sum(f["rest"] == 0 for f in found),
        "went_on_and_ended_equal": sum(f["equal"] for f in found),
        "last_one_failed_code_75": sum(f["code_75"] for f in found),
        "path_and_bytes_named": sum(f["said"] for f in found),
        "full_for_ever": full_for_ever(toys),
    }


def full_for_ever(toys: ToyRuns) -> dict[str, Any]:
    """Fill the disk after the first checkpoint and for good: by injection, and by a real limit on the size of files."""
    figures: dict[str, Any] = {}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    for name, prepare in (
        ("injected", fail_at(19, errno.ENOSPC, num_touches=10**9)),
        ("file_size_limit", limit),
    ):
        ending = wait_for(toys.start(name, prepare=prepare, save_every_steps=2))
        paths = list_checkpoints(toys.folder / name / "checkpoints")
        rests = list((toys.folder / name / "checkpoints").glob(".*"))
        figures[name] = {
            "code": ending.code,
            "checkpoints": len(paths),
            "intact": all(_is_whole(path) for path in paths),
            "rests": len(rests),
        }
        shutil.rmtree(toys.folder / name)
    return figures


def _is_whole(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except DamagedError:
        return False
    return True
