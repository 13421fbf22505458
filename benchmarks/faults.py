"""What a run survives: killed, stopped, damaged, out of disk, overflowing, bereft of its other process.

    python -m benchmarks.faults                     the whole table, about a quarter of an hour on two cores
    python -m benchmarks.faults --quick             small fixed samples
    python -m benchmarks.faults --only kills ranks  parts of it; figures of the others stay as they are

Everything is a real run of `train.run.run_training`, in children of a warm process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch

from benchmarks import (
    fault_cost,
    fault_files,
    fault_kills,
    fault_overflow,
    fault_ranks,
    fault_resume,
    fault_secrets,
    fault_shards,
)
from benchmarks.environment import RESULTS, write_result
from benchmarks.toy_run import NUM_UPDATES, spread

LOSSES = ("rank 1 killed", "rank 0 killed", "rank 1 stopped", "rank 1 hangs")


def kills(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """SIGKILL."""
    background = fault_kills.kill_runs(
        folder / "background", num_random=3 if quick else 140, num_in_writes=3 if quick else 60, workers=workers
    )
    foreground = fault_kills.kill_runs(
        folder / "foreground",
        num_random=3 if quick else 30,
        num_in_writes=3 if quick else 50,
        workers=workers,
        in_background=False,
    )
    return {**background, "in_the_foreground": foreground}


def resume(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Resume at every update, and the ablations."""
    steps = [1, 7, 13] if quick else list(range(1, NUM_UPDATES))
    parts = ["torch generator", "data position", "random states"] if quick else list(fault_resume.ABLATIONS)
    figures = fault_resume.resume_everywhere(folder, steps=steps, workers=workers)
    return {**figures, "left_out": fault_resume.leave_out(folder, parts=parts, workers=workers)}


def damage(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Bit flips, cuts, missing files."""
    numbers = {"num_flips": 50, "num_cuts": 10, "num_missing": 5} if quick else {}
    return fault_files.damage_checkpoints(folder, **(numbers or {"num_flips": 500, "num_cuts": 100, "num_missing": 50}))


def disk(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Full and failing disks."""
    return fault_files.fill_disk(folder, num_points=4 if quick else 100, workers=workers)


def stops(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """SIGTERM."""
    return fault_kills.stop_runs(folder, num_cases=4 if quick else 50, workers=workers)


def overflow(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Planted overflows."""
    folder.mkdir(parents=True)
    kinds = fault_overflow.kinds()

    def judge(kind: str) -> dict[str, Any]:
        return fault_overflow.plant_overflows(kind, num_planted=6 if quick else 100)

    return dict(zip(kinds, spread(kinds, judge, workers=workers, folder=folder), strict=True))


def ranks(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Two processes."""
    seconds = {"rank_timeout_s": 5.0, "dead_s": 5.0} if quick else {"rank_timeout_s": 45.0, "dead_s": 30.0}
    folder.mkdir(parents=True)
    return {
        "gradient_difference": fault_ranks.compare_gradients(folder),
        "planted": fault_ranks.plant_on_one(folder),
        "lost": fault_ranks.lose_one(folder / "lost", kinds=LOSSES[:1] if quick else LOSSES, **seconds),
    }


def shards(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Two processes that share the work: FSDP2 and DeepSpeed."""
    folder.mkdir(parents=True)
    kinds = fault_shards.KINDS if find_spec("deepspeed") else fault_shards.KINDS[:2]
    return {kind: fault_shards.judge(folder / kind, kind) for kind in (kinds[1:2] if quick else kinds)}


def secrets(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Canaries."""
    return fault_secrets.plant_secrets(folder)


def cost(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """What checkpoints cost in the demo."""
    return fault_cost.measure(folder, num_updates=20 if quick else 120)


SECTIONS: dict[str, Callable[[Path, bool, int], dict[str, Any]]] = {
    function.__name__: function
    for function in (kills, resume, damage, disk, stops, overflow, ranks, shards, secrets, cost)
}


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the table: what, and what was found."""
    lines: list[tuple[str, str]] = []
    if k := figures.get("kills"):
        lines.append(_row_of_kills("written beside the training", k))
        if "in_the_foreground" in k:
            lines.append(_row_of_kills("save_in_background=false", k["in_the_foreground"]))
    if r := figures.get("resume"):
        unseen = [part for part, found in r["left_out"].items() if found == "unseen"]
        lines.append(
            (
                "resume at every update",
                f"{r['equal']} of {r['resumes']} equal; left out and unseen: {', '.join(unseen) or 'nothing'} "
                f"of {len(r['left_out'])} parts",
            )
        )
    if d := figures.get("damage"):
        lines.append(
            (
                "damaged checkpoints",
                ", ".join(f"{n}: {d[n]['found']} of {d[n]['cases']} found" for n in d if n != "seconds"),
            )
        )
    if f := figures.get("disk"):
        lines.append(
            (
                "full and failing disks",
                f"previous intact {f['previous_intact']} of {f['points']}, no rest {f['without_rest']}; went on to "
                f"an equal end {f['went_on_and_ended_equal']}, ended with 75 {f['last_one_failed_code_75']}",
            )
        )
    if s := figures.get("stops"):
        lines.append(
            (
                "SIGTERM",
                f"code 143 in {s['code_143']} of {s['cases']}, saved {s['saved']}, slowest {s['slowest_s']} s, "
                f"equal after the resume {s['equal']}",
            )
        )
    for kind, o in figures.get("overflow", {}).items():
        if kind == "seconds":
            continue
        lines.append(
            (f"overflows planted, AdamW {kind}", f"{o['planted']}; disagreements {sum(o['disagreements'].values())}")
        )
    if p := figures.get("ranks"):
        differences = ", ".join(f"{name} {value:.1e}" for name, value in p["gradient_difference"].items())
        lines.append(("two processes: gradient against one", differences))
        lines.append(
            ("two processes: planted on one", f"{sum(p['planted'].values())} of {len(p['planted'])} agreed on both")
        )
        for kind, found in p["lost"].items():
            if isinstance(found, dict):
                lines.append(
                    (
                        f"two processes: {kind}",
                        f"the other ends with {found['code']} after {found['seconds']} s, names it: {found['named']}, "
                        f"then goes on equal: {found['then_equal']}",
                    )
                )
    for kind, s in figures.get("shards", {}).items():
        if isinstance(s, dict):
            lines.append(
                (
                    f"two processes share the work: {kind}",
                    f"norm {s['fp32']['norm']:.1e}, weights {s['fp32']['weights']:.1e} from one process; "
                    f"{sum(s['agreed'].values())} of {len(s['agreed'])} faults as they should end",
                )
            )
    if c := figures.get("secrets"):
        lines.append((f"{c['variables']} canary secrets", f"{c['occurrences']} occurrences in {c['files']} files"))
    if c := figures.get("cost"):
        lines.append(
            (
                "checkpoints at the demo's cadence",
                f"{c['share_of_wall_time']:.2%} of wall time; {c['blocked_s']:.3f} s each",
            )
        )
    return lines


def _row_of_kills(how: str, k: dict[str, Any]) -> tuple[str, str]:
    return (
        f"SIGKILL, {how}",
        f"{k['equal']} of {k['cases']} end equal, {k['killed_in_a_write']} killed inside a write; newest readable "
        f"{k['newest_readable']}; most updates lost {max(k['most_updates_lost'].values())} of an interval of "
        f"{k['save_every_steps']} (bound: {k.get('most_that_may_be_lost', 'not said')})",
    )


def measure(names: list[str], *, quick: bool, workers: int) -> dict[str, Any]:
    """Run sections, each in a folder of its own."""
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix="mezzavoce-faults-"))
        started = time.monotonic()
        try:
            figures[name] = SECTIONS[name](folder / name, quick, workers)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        figures[name]["seconds"] = round(time.monotonic() - started, 1)
        print(name, json.dumps(figures[name]), flush=True)
    return figures


def main() -> None:
    """Measure, print the table, and write `results/faults.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small fixed samples; nothing is written")
    parser.add_argument("--only", nargs="+", choices=sorted(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    figures = measure(arguments.only, quick=arguments.quick, workers=arguments.workers)
    path = RESULTS / "faults.json"
    if not arguments.quick:
        before = json.loads(path.read_text()) if path.is_file() else {}
        before.pop("environment", None)
        figures = {**before, **figures}
        write_result("faults", figures)
    for what, found in rows(figures):
        print(f"{what:55} {found}")


if __name__ == "__main__":
    main()
