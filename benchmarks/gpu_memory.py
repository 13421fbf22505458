"""The plan of memory against what the allocator gave out, for each recipe of a 24 GB card, under its cap."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.gpu_parts import Scale
from benchmarks.gpu_training import (
    Figures,
    Job,
    build_updater,
    build_whisper,
    device,
    peak_gib,
    synchronize,
    uniform_batch,
)
from train.adapters import FinetuneSettings

CAP_GIB = 22.5  # what a 24 GB card of the Ada generation leaves to a program


@dataclass(frozen=True)
class Recipe:
    """One of `conf/experiment/ada24_*.yaml`."""

    finetune: FinetuneSettings
    optimizer: str
    micro_batch_size: int
    checkpointing: bool = True


RECIPES = {
    "ada24_lora": Recipe(FinetuneSettings("lora", base_dtype="fp16"), "adamw", 16),
    "ada24_full": Recipe(FinetuneSettings("full"), "adamw_8bit", 8),
    "ada24_frozen_encoder": Recipe(FinetuneSettings("frozen_encoder"), "adamw", 8),
}


def plan_against_peaks(scale: Scale) -> Figures:
    """Train each recipe for a few updates under the cap."""
    if torch.cuda.is_available():
        total_gib = torch.cuda.get_device_properties(device()).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB / total_gib))
    try:
        return {
            f"{name}_{precision}": _measure(recipe, precision, scale)
            for name, recipe in RECIPES.items()
            for precision in ("fp16", "bf16")
        }
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)


def _measure(recipe: Recipe, precision: str, scale: Scale) -> Figures:
    num_clips = recipe.micro_batch_size if scale.size == "large_v3" else scale.num_clips
    figures: Figures = {"micro_batch_size": num_clips, "planned_gib": planned_gib(recipe, precision, scale)}
    peak_gib(reset=True)
    # The norms of the CPU take no half-precision weights beside FP32 states.
    finetune = recipe.finetune if torch.cuda.is_available() else replace(recipe.finetune, base_dtype="fp32")
    job = Job(
        scale.size,
        precision,
        finetune,
        recipe.optimizer,
        checkpointing=recipe.checkpointing,
        caches_autocast=not recipe.checkpointing,
    )
    try:
        updater = build_updater(job, build_whisper(job))
    except (RuntimeError, ImportError) as e:
        if "bitsandbytes" in str(e) or "peft" in str(e):
            return {**figures, "left_out": str(e)}
        raise
    losses = []
    for i in range(scale.num_updates):
        batch = uniform_batch(
            scale.size, num_clips=num_clips, num_frames=scale.num_frames, num_labels=scale.num_labels, seed=i % 2
        )
        losses.append(updater.update([batch], lr=1e-6).loss)
    synchronize()
    figures.update(peak_gib=peak_gib(), first_loss=losses[0], last_loss=losses[-1])
    if figures["planned_gib"] and torch.cuda.is_available():
        figures["plan_over_peak"] = figures["planned_gib"] / figures["peak_gib"]
    return figures


def planned_gib(recipe: Recipe, precision: str, scale: Scale) -> float | None:
    """Return what the plan of memory says; None where there is no plan."""
    return None
