"""Resume at every update, and with each part of the state left out: what is left out must be noticed or be seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.toy_run import NUM_UPDATES, ToyRuns, spread, wait_for
from train.checkpoint import load_checkpoint, save_checkpoint, step_dir

CUT_AT = 7


def resume_everywhere(folder: Path, *, steps: list[int], workers: int) -> dict[str, Any]:
    """Go on from the checkpoint of each update, in a fresh process, and compare with the run that never stopped."""
    toys = ToyRuns(folder)
    every = {"save_every_steps": 1, "keep_checkpoints": NUM_UPDATES}
    ending = wait_for(toys.start("whole", **every))
    assert ending.code == 0, toys.output("whole")
    whole = toys.fingerprint("whole")

    def judge(step: int) -> dict[str, Any]:
        name = f"from-{step}"
        _cut(folder, name, step)
        ending = wait_for(toys.start(name, **every))
        return {"equal": ending.code == 0 and toys.fingerprint(name) == whole}

    found = spread(steps, judge, workers=workers, folder=folder)
    skipped = [line["step"] for line in whole["log"] if line.get("train/grad_norm") is None]
    return {
        "resumes": len(found),
        "equal": sum(f["equal"] for f in found),
        "overflows_at": skipped,
    }


def leave_out(folder: Path, *, parts: list[str], workers: int) -> dict[str, Any]:
    """Leave one part of the state out of a checkpoint that is else whole; call after `resume_everywhere`."""
    toys = ToyRuns(folder)
    whole = toys.fingerprint("whole")

    def judge(part: str) -> dict[str, Any]:
        name = f"without-{part.replace(' ', '-')}"
        _cut(folder, name, CUT_AT)
        path = step_dir(folder / name / "checkpoints", CUT_AT)
        checkpoint = load_checkpoint(path)
        ABLATIONS[part](checkpoint)
        shutil.rmtree(path)
        save_checkpoint(path.parent, CUT_AT, checkpoint)
        every = {"save_every_steps": 1, "keep_checkpoints": NUM_UPDATES}
        ending = wait_for(toys.start(name, **every))
        if ending.code != 0:
            return {"found": "noticed"}
        try:
            after = toys.fingerprint(name)
        except ValueError as e:
            return {"found": str(e)}
        first = [a["step"] for a, b in zip(whole["log"], after["log"], strict=False) if a != b]
        if first:
            return {"found": f"log differs from update {first[0]}"}
        return {"found": "final weights or state differ" if after != whole else "unseen"}

    return dict(zip(parts, (f["found"] for f in spread(parts, judge, workers=workers, folder=folder)), strict=True))


def _cut(folder: Path, name: str, step: int) -> None:
    """Copy the uninterrupted run as it was after an update."""
    shutil.copytree(folder / "whole", folder / name)
    shutil.rmtree(folder / name / "export")
    for path in (folder / name / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def _without_moments(checkpoint: Any) -> None:
    checkpoint.optimizer["state"] = {}


def _without_scaler(checkpoint: Any) -> None:
    checkpoint.state["scaler"].update(scale=1048576.0, _growth_tracker=0)


def _without_tracker(checkpoint: Any) -> None:
    checkpoint.state["scaler"]["_growth_tracker"] = 0


def _without_schedule(checkpoint: Any) -> None:
    checkpoint.state["progress"]["applied"] = 0


def _without_position(checkpoint: Any) -> None:
    checkpoint.state["progress"]["position"].update(epoch=0, update=0)


def _without_torch(checkpoint: Any) -> None:
    checkpoint.state["random"][0]["torch"] = _first_states()["torch"]


def _without_average(checkpoint: Any) -> None:
    for name, tensor in checkpoint.model.items():
        checkpoint.average[name].copy_(tensor)


def _without_weights(checkpoint: Any) -> None:
    first = min(checkpoint.model)
    checkpoint.model[first] += 1e-6


def _without_guard(checkpoint: Any) -> None:
    checkpoint.state["guard"].update(num_skipped=0, num_in_a_row=0, recent=[])


def _without_key(key: str) -> Callable[[Any], None]:
    return lambda checkpoint: checkpoint.state.pop(key)


def _first_states() -> dict[str, Any]:
    import torch

    from train.random_state import random_states

    torch.manual_seed(0)
    return random_states()


ABLATIONS: dict[str, Callable[[Any], Any]] = {
    "weights (one, by 1e-6)": _without_weights,
    "moments": _without_moments,
    "loss scale": _without_scaler,
    "growth counter": _without_tracker,
    "applied updates": _without_schedule,
    "data position": _without_position,
    "torch generator": _without_torch,
    "moving average": _without_average,
    "skip counters": _without_guard,
    "random states": _without_key("random"),
    "quarantine": _without_key("quarantine"),
    "identity": _without_key("identity"),
    "configuration": _without_key("config"),
}
