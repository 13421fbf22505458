"""Does the loss scale behave? Overflows planted at fixed updates, against an oracle of fifteen lines.

    python -m benchmarks.loss_scale

The real `Updater` runs in FP16 AMP with a real GradScaler; a gradient is made infinite at the planted updates. The
oracle knows only when an overflow was planted. Scale, skips, schedule, weights and average must agree exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

import torch
from accelerate.state import AcceleratorState

from benchmarks.accumulation import build_whisper, make_optimizer, split_batches
from benchmarks.environment import write_result
from train.ema import WeightAverage
from train.loss import TrainingObjective
from train.precision import PrecisionSettings, inspect_device, resolve_precision
from train.runtime import build_accelerator
from train.schedule import ScheduleSettings, rate_share
from train.step import Updater

NUM_UPDATES = 60
PLANTED = {3, 4, 11, 19, 20, 21, 22, 40, 59}
SETTINGS = PrecisionSettings("fp16", init_scale=256.0, growth_interval=5)
SCHEDULE = ScheduleSettings("linear", warmup_steps=10)


def oracle(planted: Set[int], num_updates: int) -> Iterator[tuple[float, bool, float]]:
    """Yield (scale after the update, skipped, share of the rate in the update) for each update."""
    scale, streak, applied = SETTINGS.init_scale, 0, 0
    for update in range(num_updates):
        share = (applied + 1) / 10 if applied < 10 else 1 - (applied - 10) / (num_updates - 10)
        if update in planted:
            scale, streak = scale * SETTINGS.backoff_factor, 0
        else:
            streak, applied = streak + 1, applied + 1
            if streak == SETTINGS.growth_interval:
                scale, streak = scale * SETTINGS.growth_factor, 0
        yield scale, update in planted, share


def run(kind: str, num_updates: int = NUM_UPDATES) -> dict[str, Any]:
    """Train with planted overflows on a GPU, if there is one; count where we and the oracle disagree.

    Args:
        kind: `fused_adamw`, `plain_adamw` or `adamw_8bit`.
        num_updates: more than the warm-up of 10.
    """
    AcceleratorState._reset_state(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(SETTINGS, inspect_device(device))
    accelerator = build_accelerator(precision, SETTINGS)
    whisper = build_whisper()
    objective = accelerator.prepare(TrainingObjective(whisper))
    parameters = [p for p in whisper.parameters() if p.requires_grad]
    optimizer = make_optimizer(kind, whisper)
    average = WeightAverage(whisper.named_parameters(), decay=0.9)
    updater = Updater(objective, optimizer, accelerator, max_grad_norm=1.0, average=average)
    overflow = {"now": False}
    parameters[0].register_hook(lambda g: torch.full_like(g, float("inf")) if overflow["now"] else g)
    batches = split_batches(8)
    wrong = {"scale": 0, "skipped": 0, "rate": 0, "weights": 0, "average": 0}
    applied = 0
    for update, (scale, skipped, share) in enumerate(oracle(PLANTED, num_updates)):
        overflow["now"] = update in PLANTED
        before = [p.detach().clone() for p in parameters]
        average_before = {name: tensor.clone() for name, tensor in average.average.items()}
        rate = rate_share(SCHEDULE, applied, num_updates)
        result = updater.update(batches, lr=1e-3 * rate)
        applied += not result.skipped
        wrong["scale"] += result.loss_scale != scale
        wrong["skipped"] += result.skipped != skipped
        wrong["rate"] += abs(rate - share) > 1e-12
        stayed = all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        average_stayed = all(torch.equal(average_before[n], t) for n, t in average.average.items())
        wrong["weights"] += stayed != skipped
        wrong["average"] += average_stayed != skipped
    planted = sum(update < num_updates for update in PLANTED)
    return {"updates": num_updates, "planted": planted, "device": device.type, "disagreements": wrong}


def main() -> None:
    """Measure and write `results/loss_scale.json`."""
    figures = {kind: run(kind) for kind in ("fused_adamw", "plain_adamw")}
    for name, figure in figures.items():
        print(name, figure)
    write_result("loss_scale", figures)


if __name__ == "__main__":
    main()
