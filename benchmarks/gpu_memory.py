"""The plan of memory against what the allocator gave out, for each recipe of a 24 GB card, under its cap."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import yaml

from benchmarks.absent import without_absent
from benchmarks.environment import PROJECT
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
from benchmarks.speed_corpus import build_config
from train.adapters import FinetuneSettings

CAP_GIB = 22.5  # what a 24 GB card of the Ada generation leaves to a program


LOSS_CHUNK_TOKENS = 512  # the default of `trainer.loss_chunk_tokens`


@dataclass(frozen=True)
class Recipe:
    """What of a recipe decides about memory."""

    size: str
    precision: str
    finetune: FinetuneSettings
    optimizer: str
    micro_batch_size: int
    accumulation_steps: int
    checkpointing: bool


def read_recipes(folder: Path = PROJECT / "conf") -> dict[str, Recipe]:
    """Read `experiment/ada24_*.yaml`, without the package that composes them in a run."""
    found = {}
    for path in sorted((folder / "experiment").glob("ada24_*.yaml")):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        groups = {key.removeprefix("override /"): name for entry in recipe["defaults"] for key, name in entry.items()}
        finetune = yaml.safe_load((folder / "finetune" / f"{groups['finetune']}.yaml").read_text(encoding="utf-8"))
        known = {field.name for field in fields(FinetuneSettings)}
        values = {**finetune, **recipe.get("finetune", {})}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        trainer = recipe["trainer"]
        found[path.stem] = Recipe(
            groups["model"],
            groups["precision"],
            FinetuneSettings(**{key: value for key, value in values.items() if key in known}),
            groups["optimizer"],
            trainer["micro_batch_size"],
            trainer["accumulation_steps"],
            trainer["gradient_checkpointing"],
        )
    return found


def plan_against_peaks(scale: Scale) -> Figures:
    """Train each recipe for a few updates under the cap."""
    if torch.cuda.is_available():
        total_gib = torch.cuda.get_device_properties(device()).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB / total_gib))
    try:
        return {name: _measure(recipe, scale) for name, recipe in read_recipes().items()}
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)


def _measure(recipe: Recipe, scale: Scale) -> Figures:
    is_toy = scale.size == "toy"
    num_clips = scale.num_clips if is_toy else recipe.micro_batch_size
    size = "toy" if is_toy else recipe.size
    # The norms of the CPU take no half-precision weights beside FP32 states.
    finetune = recipe.finetune if torch.cuda.is_available() else replace(recipe.finetune, base_dtype="fp32")
    job = Job(
        size,
        recipe.precision,
        finetune,
        recipe.optimizer,
        checkpointing=recipe.checkpointing,
        caches_autocast=not recipe.checkpointing,
        loss_chunk_tokens=LOSS_CHUNK_TOKENS,
    )
    figures: Figures = {"micro_batch_size": num_clips, "planned_gib": planned_gib(job, recipe, scale, num_clips)}
    peak_gib(reset=True)
    try:
        updater = build_updater(job, build_whisper(job))
    except (RuntimeError, ImportError) as e:
        if "bitsandbytes" in str(e) or "peft" in str(e):
            return {**figures, "left_out": str(e)}
        raise
    losses = []
    num_steps = 2 if recipe.accumulation_steps > 1 else 1  # gradients lie beside activations from the second on
    shape = {"num_clips": num_clips, "num_frames": scale.num_frames, "num_labels": scale.num_labels}
    batches = [uniform_batch(size, **shape, seed=seed) for seed in range(num_steps)]
    for _ in range(scale.num_updates):
        losses.append(updater.update(batches, lr=1e-6).loss)
    synchronize()
    figures.update(peak_gib=peak_gib(), first_loss=losses[0], last_loss=losses[-1])
    if figures["planned_gib"] and torch.cuda.is_available():
        figures["plan_over_peak"] = figures["planned_gib"] / figures["peak_gib"]
    return figures


def planned_gib(job: Job, recipe: Recipe, scale: Scale, num_clips: int) -> float:
    """Return the peak of an update that the plan of memory predicts, as the allocator counts."""
    with without_absent():
        from train.memory.plan import plan_memory
        from train.memory.statics import Statics, meta_parameters
        from train.memory.workload import Workload
    config = build_config(job.size)
    work = Workload(
        config=config,
        finetune=job.finetune,
        precision=job.precision,
        optimizer=job.optimizer,
        micro_batch_size=num_clips,
        accumulation_steps=recipe.accumulation_steps,
        num_frames=scale.num_frames,
        label_tokens=scale.num_labels,
        checkpoint_every_layers=int(job.checkpointing),
        loss_chunk_tokens=job.loss_chunk_tokens,
        validates=False,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    return plan_memory(work, Statics(tuple(meta_parameters(config, job.finetune)))).update_gib
