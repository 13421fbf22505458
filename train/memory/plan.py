"""The plan of a training's memory: its peak on the device, predicted from shapes, and what it is made of.

Two moments are looked at: an update, at the worst point of its backward, and a validation, where the half copy and its
caches of keys and values lie beside the optimiser's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from train.memory.activations import FLOAT_BYTES, Stage, kept_by_head, logits_bytes, stages_of
from train.memory.statics import LARGEST_WORKING_COPIES, Statics
from train.memory.workload import Workload

GIB = 2**30
RESERVE_GIB = 1.0
"""CUDA context, workspaces of cuBLAS and cuDNN, and what the allocator cannot use; outside what it reports."""
PARTS = (
    "weights",
    "gradients",
    "optimiser",
    "average",
    "autocast copies",
    "activations",
    "logits",
    "half copy",
    "reserve",
)


@dataclass(frozen=True)
class Plan:
    """The predicted peak of one training on one device."""

    work: Workload
    update: dict[str, float]
    """GiB of each part at the worst point of an update, without the reserve."""
    validation: dict[str, float]
    """The same while the half copy is scored; empty without validation."""
    num_parameters: int
    num_trainable: int
    reserve_gib: float = RESERVE_GIB

    @property
    def update_gib(self) -> float:
        """What `max_memory_allocated` should show before the first validation."""
        return sum(self.update.values())

    @property
    def validation_gib(self) -> float:
        """The peak of a validation, as the allocator counts."""
        return sum(self.validation.values())

    @property
    def parts(self) -> dict[str, float]:
        """GiB of each part at the larger of the two moments, the reserve with it."""
        worst = self.update if self.update_gib >= self.validation_gib else self.validation
        return {name: worst.get(name, 0.0) for name in PARTS[:-1]} | {"reserve": self.reserve_gib}

    @property
    def total_gib(self) -> float:
        """What the device must have."""
        return max(self.update_gib, self.validation_gib) + self.reserve_gib

    def fits(self, gib: float) -> bool:
        """Return whether a device with so much memory is enough."""
        return self.total_gib <= gib


def plan_memory(work: Workload, statics: Statics) -> Plan:
    """Predict the peak memory of a training.

    Args:
        work: the training, at one window and label length.
        statics: of its model.
    """
    peak = _update_peak(work, statics)
    cut, cut_moments = work.num_shards, work.num_moment_shards
    copies = FLOAT_BYTES * statics.num_trainable if cut_moments > cut else 0  # of DeepSpeed's piece of the weights
    update = {
        "weights": statics.weights(work.precision) // cut + statics.gathered(work),
        "gradients": peak.gradients // cut,
        "optimiser": (statics.moments(work.optimizer, work.precision) + copies) // cut_moments,
        "average": FLOAT_BYTES * statics.num_trainable // cut if work.averages_on_device else 0,
        "autocast copies": peak.casts,
        "activations": peak.activations,
        "logits": peak.logits,
    }
    step = _step_peak(work, statics)
    if step // cut_moments > sum(update[name] for name in ("gradients", "autocast copies", "activations", "logits")):
        update |= {"gradients": step // cut_moments, "autocast copies": 0, "activations": 0, "logits": 0}
    validation: dict[str, int] = {}
    if work.validates:
        still = {name: update[name] for name in ("weights", "optimiser", "average")}
        validation = still | {"half copy": half_copy_bytes(work, statics)}
    return Plan(
        work,
        {name: value / GIB for name, value in update.items()},
        {name: value / GIB for name, value in validation.items()},
        statics.num_parameters,
        statics.num_trainable,
        RESERVE_GIB if work.device == "cuda" else 0.5,
    )


def worst_plan(works: Sequence[Workload], statics: Statics) -> Plan:
    """Return the plan of the window that needs most."""
    return max((plan_memory(work, statics) for work in works), key=lambda plan: plan.total_gib)


@dataclass(frozen=True)
class _Peak:
    gradients: int
    casts: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.gradients + self.casts + self.activations + self.logits


def _update_peak(work: Workload, statics: Statics) -> _Peak:
    """Walk the backward of the last micro-batch and return its worst point.

    From the second micro-batch on, and with several processes, all gradients lie there from the start; else each stage
    adds its own while it frees what it kept.
    """
    clips = work.micro_batch_size
    batches = FLOAT_BYTES * int(work.config.num_mel_bins) * work.num_frames * clips * work.accumulation_steps
    head = Stage("head", kept_by_head(work), 0)
    stages = [*stages_of(work), head]
    by_stage = dict(statics.gradients_by_stage(work.precision))
    everything = statics.gradients(work.precision)
    is_resident = work.accumulation_steps > 1 or work.num_processes > 1
    casts, working_casts = statics.casts(work), statics.working_casts(work)
    kept = batches + clips * sum(stage.kept for stage in stages)
    made = everything if is_resident else 0
    worst = _Peak(0, 0, 0, 0)
    for stage in reversed(stages):
        if not is_resident:
            made += by_stage.get(stage.name, 0)
        is_head = stage is head
        # The log-softmax of the plain way is part of its logits.
        activations = kept - (clips * head.kept if is_head else 0) + clips * stage.working
        point = _Peak(
            made if not is_head or is_resident else 0,
            casts + (working_casts if stage.name.rpartition(".")[2].isdigit() else 0),
            activations,
            logits_bytes(work) if is_head else 0,
        )
        worst = max(worst, point, key=lambda peak: peak.total)
        kept -= clips * stage.kept
    return worst


def _step_peak(work: Workload, statics: Statics) -> int:
    """Return the gradients and temporaries while the optimiser steps, where it makes any of size."""
    if work.optimizer != "adafactor":
        return statics.gradients(work.precision)
    largest = max((p.numel for p in statics.parameters if p.learns), default=0)
    return statics.gradients(work.precision) + LARGEST_WORKING_COPIES * FLOAT_BYTES * largest


def half_copy_bytes(work: Workload, statics: Statics) -> int:
    """Return the bytes of a validation: the half copy, its caches of keys and values, and its encoder at work."""
    config, width = work.config, work.width
    element = 2 if work.device == "cuda" else 4
    clips = work.eval_batch_size
    positions = int(config.max_target_positions) + work.num_positions
    caches = 2 * int(config.decoder_layers) * width * positions * element * clips * work.num_beams
    rows = work.num_positions * clips
    working = rows * element * (4 * width + 2 * work.encoder_ffn)
    # Reordering beams copies a layer's cache at a time; the teacher-forced loss needs less than that.
    return element * statics.num_parameters + caches + working
