"""Overflows planted at a chosen update, micro-batch and parameter, against an oracle that knows only where they are."""

from __future__ import annotations

import copy
import importlib.util
import random
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from benchmarks.accumulation import build_whisper, split_batches
from train.ema import WeightAverage
from train.loss import TrainingObjective
from train.precision import PrecisionSettings, inspect_device, resolve_precision
from train.runtime import build_accelerator
from train.schedule import ScheduleSettings, rate_share
from train.step import Updater

SETTINGS = PrecisionSettings(
    "fp16", init_scale=2.0**16, growth_interval=2
)  # so that the scale neither falls nor rises without end
MIN_SCALE, MAX_SCALE = 2.0**4, 2.0**18
SCHEDULE = ScheduleSettings("linear", warmup_steps=10)


def kinds() -> list[str]:
    """Return the optimisers that can be tried here."""
    has_8bit = importlib.util.find_spec("bitsandbytes") is not None
    return ["plain", "fused", *(["8bit"] if has_8bit else [])]


def plant_overflows(kind: str, *, num_planted: int) -> dict[str, Any]:
    """Train with planted infinities and NaNs; count where ours and the oracle disagree.

    Args:
        kind: of AdamW.
        num_planted: overflows; about two of three updates are sound.
    """
    AcceleratorState._reset_state(True)
    accelerator = build_accelerator(resolve_precision(SETTINGS, inspect_device(torch.device("cpu"))), SETTINGS)
    whisper = build_whisper()
    objective = accelerator.prepare(TrainingObjective(whisper))
    parameters = [p for p in whisper.parameters() if p.requires_grad]
    optimizer = _build(kind, parameters)
    average = WeightAverage(whisper.named_parameters(), decay=0.9)
    updater = Updater(objective, optimizer, accelerator, max_grad_norm=1.0, average=average)
    batches = split_batches(8)
    rng = random.Random(kind)
    planted = _draw_plan(rng, num_planted)
    num_updates = len(planted)
    plant = _Plant(parameters)
    wrong = dict.fromkeys(("scale", "skipped", "weights", "optimizer", "schedule", "average"), 0)
    scale, streak, applied = SETTINGS.init_scale, 0, 0
    for update, is_planted in enumerate(planted):
        plant.arm(rng, num_micro_batches=len(batches) if is_planted else 0)
        before = _snapshot(parameters, optimizer, average)
        rate = rate_share(SCHEDULE, applied, num_updates)
        result = updater.update(batches, lr=1e-3 * rate)
        if is_planted:
            scale, streak = scale * 0.5, 0
        else:
            streak, applied = streak + 1, applied + 1
            if streak == SETTINGS.growth_interval:
                scale, streak = scale * 2.0, 0
        stayed = _stayed(before, _snapshot(parameters, optimizer, average))
        wrong["scale"] += result.loss_scale != scale
        wrong["skipped"] += result.skipped != is_planted
        wrong["weights"] += stayed["weights"] != is_planted
        wrong["optimizer"] += stayed["optimizer"] != is_planted
        wrong["average"] += stayed["average"] != is_planted
        wrong["schedule"] += (applied + sum(planted[: update + 1])) != update + 1
    return {"updates": num_updates, "planted": num_planted, "skipped": num_updates - applied, "disagreements": wrong}


def _draw_plan(rng: random.Random, num_planted: int) -> list[bool]:
    """Draw which updates overflow, one of three.

    The scale is kept where nothing else overflows: above it the gradients of this model would leave FP16 by themselves,
    of which the oracle knows nothing.
    """
    plan: list[bool] = []
    scale, streak = SETTINGS.init_scale, 0
    while sum(plan) < num_planted:
        plan.append(scale >= MAX_SCALE or (scale > MIN_SCALE and rng.random() < 1 / 3))
        streak = 0 if plan[-1] else streak + 1
        if plan[-1]:
            scale *= 0.5
        elif streak == SETTINGS.growth_interval:
            scale, streak = scale * 2.0, 0
    return plan


class _Plant:
    """Make the gradient of one parameter infinite or NaN in one backward of an update."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self._target = self._at = self._seen = -1
        self._value = torch.inf
        self._num = len(parameters)
        for i, parameter in enumerate(parameters):
            parameter.register_hook(lambda g, i=i: self._hook(i, g))

    def arm(self, rng: random.Random, *, num_micro_batches: int) -> None:
        """Choose a place for this update; 0 micro-batches plants nothing."""
        self._seen = -1
        self._target = rng.randrange(self._num) if num_micro_batches else -1
        self._at = rng.randrange(num_micro_batches) if num_micro_batches else -1
        self._value = rng.choice([torch.inf, -torch.inf, torch.nan])

    def _hook(self, index: int, gradient: Tensor) -> Tensor:
        if index != self._target:
            return gradient
        self._seen += 1
        if self._seen != self._at:
            return gradient
        planted = gradient.clone()
        planted.view(-1)[-1] = self._value
        return planted


def _build(kind: str, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if kind == "8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(parameters, lr=1e-3)
        return optimizer
    return torch.optim.AdamW(parameters, lr=1e-3, fused=kind == "fused", foreach=None if kind == "fused" else False)


def _snapshot(parameters: Any, optimizer: torch.optim.Optimizer, average: WeightAverage) -> dict[str, Any]:
    state = [
        {name: copy.deepcopy(value) for name, value in optimizer.state.get(p, {}).items() if "qmap" not in name}
        for p in parameters
    ]
    return {
        "weights": [p.detach().clone() for p in parameters],
        "optimizer": state,
        "average": [tensor.clone() for tensor in average.average.values()],
    }


def _stayed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, bool]:
    return {
        "weights": _same(before["weights"], after["weights"]),
        "average": _same(before["average"], after["average"]),
        # A fused optimiser makes its empty state also in a first update that is skipped.
        "optimizer": all(
            _same(list(a.values()), list(b.values())) if a else not any(_is_used(value) for value in b.values())
            for a, b in zip(before["optimizer"], after["optimizer"], strict=True)
        ),
    }


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


def _is_used(value: Any) -> bool:
    return bool(torch.as_tensor(value).any())
