"""What a checkpoint costs the demo: seconds in which no update runs, as a share of its wall time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import PROJECT
from scripts.settings import compose_config, to_plain
from scripts.train import settings_from_plain


def demo_cadence() -> tuple[int, int]:
    """Return the updates of the demo, and its checkpoints if every validation is the best so far."""
    trainer = settings_from_plain(_plain()).trainer
    steps = trainer.max_steps
    saves = {steps}
    for every in (trainer.save_every_steps, trainer.eval_every_steps):
        saves |= set(range(every, steps + 1, every)) if every else set()
    return steps, len(saves)


def _plain() -> dict[str, Any]:
    plain = to_plain(compose_config("train"))
    plain.pop("recommended")
    return plain


def measure(folder: Path, *, num_updates: int) -> dict[str, Any]:
    """Train the demo's model for some updates with ten checkpoints; reckon what those of the demo cost.

    Validations are left out: the share of the shorter time is the larger one.
    """
    found = {
        "background": _run(folder / "background", num_updates, "true"),
        "foreground": _run(folder / "foreground", num_updates, "false"),
    }
    figures = found["background"]
    demo_updates, demo_saves = demo_cadence()
    blocked_s = demo_saves * figures["blocked_s"]
    return {
        "updates": num_updates,
        "demo_updates": demo_updates,
        "demo_checkpoints": demo_saves,
        **figures,
        "blocked_s_in_the_foreground": found["foreground"]["blocked_s"],
        "share_of_wall_time": blocked_s / (demo_updates * figures["update_s"] + blocked_s),
    }


def _run(run_dir: Path, num_updates: int, in_background: str) -> dict[str, float]:
    save_every = num_updates // 10
    command = [
        sys.executable,
        str(PROJECT / "scripts" / "train.py"),
        "tracker=none",
        f"run.dir={run_dir}",
        f"trainer.max_steps={num_updates}",
        f"trainer.save_every_steps={save_every}",
        f"trainer.log_every_steps={save_every}",
        "trainer.eval_every_steps=0",
        "trainer.keep_checkpoints=2",
        f"trainer.save_in_background={in_background}",
    ]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, cwd=PROJECT)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train/update_s" in line][1:]  # the first one holds what is done once
    num_saves = len(lines) - 1  # a line tells of the checkpoint before it; the last one is told by none
    return {
        "update_s": sum(line["train/update_s"] for line in lines) / len(lines),
        "blocked_s": sum(line["train/checkpoint_blocked_s"] for line in lines) / max(1, num_saves),
        "written_s": sum(line["train/checkpoint_written_s"] for line in lines) / max(1, num_saves),
        "megabytes": 1073.741824 * sum(line["train/checkpoint_gib"] for line in lines) / max(1, num_saves),
        "wall_s": time.monotonic() - started,
    }
