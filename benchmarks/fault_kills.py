"""Runs that are killed or told to stop at any moment, and what they end in."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import train.rehearsal
from benchmarks.fault_points import count_into, kill_at
from benchmarks.toy_run import INTERVAL, Ending, ToyRuns, newest_step, sample_ids, spread, wait_for
from train.checkpoint import DamagedError, find_checkpoint

SIGTERM_CODE = 128 + signal.SIGTERM


def reference(toys: ToyRuns) -> tuple[dict[str, Any], float, int]:
    """Run without a fault; return its fingerprint, its seconds and its touches of the disk."""
    counted = toys.folder / "touches"
    ending = wait_for(toys.start("whole", prepare=count_into(counted)))
    assert ending.code == 0, toys.output("whole")
    again = toys.finish("again")
    whole = toys.fingerprint("whole")
    assert again.code == 0 and toys.fingerprint("again") == whole, "two runs without a fault differ"
    return whole, again.elapsed_s, int(counted.read_text())


def kill_runs(
    folder: Path, *, num_random: int, num_in_writes: int, workers: int, in_background: bool = True
) -> dict[str, Any]:
    """SIGKILL at random moments and before touches of the disk; each run is then started again until its end.

    What may be lost: written in the foreground, one interval; in the background, the updates besides that are made
    while one write lasts. Here these are many, for an update takes milliseconds.
    """
    toys = ToyRuns(folder, f"trainer.save_in_background={str(in_background).lower()}")
    whole, elapsed_s, num_touches = reference(toys)
    rng = random.Random(0)
    cases: list[tuple[str, float]] = [("moment", rng.uniform(0.0, elapsed_s)) for _ in range(num_random)]
    cases += [("touch", 1 + i * num_touches // num_in_writes) for i in range(num_in_writes)]

    def judge(case: tuple[str, float]) -> dict[str, Any]:
        kind, when = case
        name = f"{kind}-{when:.6f}"
        started = time.monotonic()
        prepare = kill_at(int(when)) if kind == "touch" else None
        pid = toys.start(name, prepare=prepare)
        if kind == "moment":
            time.sleep(when)
            os.kill(pid, signal.SIGKILL)
        killed = wait_for(pid, started=started)
        run_dir = folder / name
        try:
            find_checkpoint(run_dir / "checkpoints")
            readable = True
        except DamagedError:
            readable = False
        lost = max(sample_ids(run_dir), default=0) - newest_step(run_dir)
        ending = toys.finish(name)
        differs = toys.differences(name, whole) if ending.code == 0 else [f"exit code {ending.code}"]
        left = [path.name for path in (run_dir / "checkpoints").glob(".*")]
        return {
            "kind": kind,
            "killed": killed.code == 128 + signal.SIGKILL,
            "readable": readable,
            "lost": lost,
            "name": name,
            "differs": differs,
            "left": left,
        }

    found = spread(cases, judge, workers=workers, folder=folder)
    lost = {kind: max((f["lost"] for f in found if f["kind"] == kind), default=0) for kind in ("moment", "touch")}
    return {
        "cases": len(found),
        "killed": sum(f["killed"] for f in found),
        "killed_in_a_write": sum(f["killed"] and f["kind"] == "touch" for f in found),
        "equal": sum(not f["differs"] for f in found),
        "differ": {f["name"]: f["differs"] for f in found if f["differs"]},
        "newest_readable": sum(f["readable"] for f in found),
        "without_rest": sum(not f["left"] for f in found),
        "save_every_steps": INTERVAL,
        "most_that_may_be_lost": "interval + updates during one write" if in_background else "interval",
        "most_updates_lost": lost,
        "seconds_of_one_run": round(elapsed_s, 2),
    }


def stop_runs(folder: Path, *, num_cases: int, workers: int) -> dict[str, Any]:
    """SIGTERM at random moments, twice within a second, in a validation and in a write."""
    toys = ToyRuns(folder, "trainer.eval_every_steps=5", validation=True)
    whole, elapsed_s, num_touches = reference(toys)
    rng = random.Random(0)
    kinds = ("moment", "twice", "validation", "write")
    cases = [(kinds[i % 4], i, rng.uniform(0.15, 0.9)) for i in range(num_cases)]

    def judge(case: tuple[str, int, float]) -> dict[str, Any]:
        kind, i, share = case
        name = f"{kind}-{i}"
        mark = folder / f"{name}.signalled"
        prepare = None
        if kind == "validation":

            def prepare() -> None:
                _stop_in_validation(mark, share)
        elif kind == "write":
            touch = 1 + int(share * num_touches)

            def prepare() -> None:
                kill_at(touch, signal.SIGTERM)()

        pid = toys.start(name, prepare=prepare)
        started = time.monotonic()
        if kind in ("moment", "twice"):
            # From the first update on: before it there is nothing to save, and the signal ends the process.
            while not (folder / name / "ids.jsonl").exists() and time.monotonic() - started < 60:
                time.sleep(0.002)
            time.sleep(share * 0.3 * elapsed_s)
            os.kill(pid, signal.SIGTERM)
            mark.touch()
            if kind == "twice":
                time.sleep(rng.uniform(0.0, 0.3))
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:  # it has ended before the second one
                    code = os.waitstatus_to_exitcode(status)
                    return _judge_stop(toys, name, whole, Ending(code if code >= 0 else 128 - code, 0.0), mark)
                os.kill(pid, signal.SIGTERM)
        ending = wait_for(pid)
        return _judge_stop(toys, name, whole, ending, mark)

    found = spread(cases, judge, workers=workers, folder=folder)
    return {
        "cases": len(found),
        **{f"{kind}": sum(case[0] == kind for case in cases) for kind in kinds},
        "code_143": sum(f["code"] == SIGTERM_CODE for f in found),
        "ended_before_the_signal_was_heard": sum(f["code"] == 0 for f in found),
        "saved": sum(f["saved"] for f in found),
        "slowest_s": max(f["seconds"] for f in found),
        "equal": sum(f["equal"] for f in found),
    }


def _judge_stop(toys: ToyRuns, name: str, whole: dict[str, Any], ending: Ending, mark: Path) -> dict[str, Any]:
    run_dir = toys.folder / name
    seconds = time.time() - mark.stat().st_mtime if mark.exists() else 0.0
    saved = newest_step(run_dir) == max(sample_ids(run_dir), default=0)
    after = toys.finish(name)
    equal = after.code == 0 and toys.fingerprint(name) == whole
    return {"code": ending.code, "saved": saved, "seconds": round(seconds, 2), "equal": equal}


def _stop_in_validation(mark: Path, share: float) -> None:
    """Let a child send itself SIGTERM in the middle of a validation, by an alarm: between any two lines."""
    real = train.rehearsal.validate

    def validate(*arguments: Any, **options: Any) -> Any:
        def alarm(_number: int, _frame: Any) -> None:
            mark.touch()
            os.kill(os.getpid(), signal.SIGTERM)

        if not mark.exists():
            signal.signal(signal.SIGALRM, alarm)
            signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.03 * share)
        return real(*arguments, **options)

    train.rehearsal.validate = validate  # type: ignore[assignment]
