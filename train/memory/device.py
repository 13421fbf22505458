"""What a device has, what a training took of it, and what is said when that is too much."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence

import torch

from data.batches import SpeechBatch
from train.memory.fitting import nearest_fit, statics_of
from train.memory.plan import GIB, Plan, plan_memory
from train.memory.workload import Workload

logger = logging.getLogger(__name__)

CONTEXT_GIB = 0.5
"""Of the reserve, what the CUDA context has taken already when free memory is asked for."""
COMPARED_UPDATES = 3
"""Updates after which the plan is held against what was measured: the optimiser's state is there from the second on."""
ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ([KMG])iB")
UNIT_GIB = {"K": 2**-20, "M": 2**-10, "G": 1.0}


def memory_gib(device: torch.device) -> float:
    """Return what a training may take: of a GPU what is free now and its context, of a host what is available."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = torch.cuda.get_per_process_memory_fraction(device)
        return min(free / GIB + CONTEXT_GIB, share * total / GIB)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            available = next(line for line in file if line.startswith("MemAvailable"))
        return int(available.split()[1]) / 2**20
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def verify_fits(plan: Plan, gib: float, *, device: str) -> None:
    """Stop before a model is loaded where a training cannot fit.

    Raises:
        RuntimeError: naming the nearest training that fits.
    """
    if plan.fits(gib):
        return
    raise RuntimeError(
        f"this training needs {plan.total_gib:.1f} GiB and {device} has {gib:.1f}: {describe(plan)}; "
        f"{_advice(plan.work, gib)}, or look at python scripts/plan.py"
    )


def describe(plan: Plan) -> str:
    """Say in one line what a plan is made of."""
    parts = ", ".join(f"{name} {gib:.1f}" for name, gib in plan.parts.items() if gib >= 0.05)
    return f"{parts} GiB"


def explain_shortage(message: str, work: Workload, device: torch.device) -> str:
    """Say what was asked of the device, what was free, and what would fit.

    Args:
        message: of `torch.OutOfMemoryError`.
        work: the training, at the micro-batch that failed.
        device: where it failed.
    """
    asked = ASKED.search(message)
    asked_gib = float(asked[1]) * UNIT_GIB[asked[2]] if asked else 0.0
    planned_gib = plan_memory(work, statics_of(work.config, work.finetune)).total_gib
    asked_text = f"{asked_gib:.2f} GiB were asked for" if asked else "memory was asked for"
    free_text = ""
    limit_gib = planned_gib - max(asked_gib, 0.05 * planned_gib)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free_text = f", {free / GIB:.2f} of {total / GIB:.2f} were free"
        limit_gib = min(limit_gib, total / GIB)
    return (
        f"out of memory on {device.type}: {asked_text}{free_text}, with {work.micro_batch_size} clips of "
        f"{work.num_frames / 100:g} s and {work.label_tokens} label tokens in a forward, planned at "
        f"{planned_gib:.1f} GiB; {_advice(work, limit_gib)}"
    )


def _advice(work: Workload, gib: float) -> str:
    choice = nearest_fit(work, gib)
    if choice is None:
        return "nothing of this model fits; take a smaller model="
    return f"the nearest that fits: {choice}"


class PlanCheck:
    """Hold the plan of the largest update so far against what the allocator measured; once, on CUDA alone."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan = plan
        self.device = device
        self._num_updates = 0
        self._largest: Workload | None = None

    def record(self, micro_batches: Sequence[SpeechBatch]) -> dict[str, float]:
        """Take in one update; return the two figures once they can be compared, else nothing."""
        self._num_updates += 1
        if self.device.type != "cuda" or self._num_updates > COMPARED_UPDATES:
            return {}
        seen = workload_of(self.plan.work, micro_batches)
        statics = statics_of(seen.config, seen.finetune)
        if (
            self._largest is None
            or plan_memory(seen, statics).update_gib > plan_memory(self._largest, statics).update_gib
        ):
            self._largest = seen
        if self._num_updates < COMPARED_UPDATES:
            return {}
        planned = plan_memory(self._largest, statics).update_gib
        measured = torch.cuda.max_memory_allocated(self.device) / GIB
        logger.info(
            "memory: %.2f GiB planned for %d updates, %.2f measured (plan %+.1f %%); the largest may need %.2f",
            planned,
            COMPARED_UPDATES,
            measured,
            100 * (planned / measured - 1),
            self.plan.update_gib,
        )
        return {"memory/planned_gib": planned, "memory/measured_gib": measured}


def workload_of(work: Workload, micro_batches: Sequence[SpeechBatch]) -> Workload:
    """Return a training's workload with the shapes of real micro-batches."""
    largest = max(micro_batches, key=lambda batch: batch.labels.shape[0] * batch.input_features.shape[-1])
    num_frames = largest.input_features.shape[-1]
    if largest.pending is not None:
        num_frames = largest.pending.frames.shape[-1]
    return work.changed(
        micro_batch_size=largest.labels.shape[0],
        accumulation_steps=len(micro_batches),
        num_frames=num_frames,
        label_tokens=largest.labels.shape[1],
    )
