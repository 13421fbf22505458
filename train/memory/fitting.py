"""From a plan that does not fit to the nearest one that does, and what to type for it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import WhisperConfig

from train.adapters import FinetuneSettings
from train.memory.plan import Plan, plan_memory
from train.memory.statics import Statics, meta_parameters
from train.memory.workload import Workload

HALF_BASE = "fp16"


@dataclass(frozen=True)
class Choice:
    """A plan, and the overrides that lead to it."""

    plan: Plan
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' '.join(self.overrides)} ({self.plan.total_gib:.1f} GiB)"


def nearest_fit(work: Workload, gib: float) -> Choice | None:
    """Return the plan that changes least and fits, or None where nothing does.

    Tried in this order, each with the micro-batch halved until one clip is left while the clips of an update stay:
    smaller validation batches, the average on the host, recomputing, 8-bit moments, a frozen encoder, LoRA on an FP16
    base.

    Args:
        work: what was asked for.
        gib: memory of the device.
    """
    best: Choice | None = None
    for changed, overrides in _alternatives(work):
        choice = _largest_micro_batch(changed, overrides, gib)
        if choice is None:
            continue
        if choice.plan.work.micro_batch_size * 4 >= work.micro_batch_size:
            return choice
        best = best or choice  # a much smaller micro-batch is slow; look on, but remember it
    return best


def fit_micro_batch(work: Workload, gib: float, *, global_batch_size: int) -> Workload | None:
    """Return the largest micro-batch that fits and divides the clips of an update, or None where not even one does.

    Args:
        work: the training, with any micro-batch.
        gib: memory of the device.
        global_batch_size: clips of an update over all processes.

    Raises:
        ValueError: if the processes cannot share the clips evenly.
    """
    if global_batch_size % work.num_processes:
        raise ValueError(
            f"trainer.global_batch_size={global_batch_size} does not divide by {work.num_processes} processes"
        )
    share = global_batch_size // work.num_processes
    statics = statics_of(work.config, work.finetune)
    for clips in (n for n in range(share, 0, -1) if share % n == 0):
        tried = work.changed(micro_batch_size=clips, accumulation_steps=share // clips)
        if plan_memory(tried, statics).fits(gib):
            return tried
    return None


def statics_of(config: WhisperConfig, finetune: FinetuneSettings) -> Statics:
    """Count a model on the meta device, once for each configuration."""
    return _count(_Key(config, finetune))


@dataclass(frozen=True, eq=False)
class _Key:
    config: WhisperConfig
    finetune: FinetuneSettings

    def __hash__(self) -> int:
        return hash(self._identity())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._identity() == other._identity()

    def _identity(self) -> tuple[str, FinetuneSettings]:
        return self.config.to_json_string(), self.finetune


@functools.lru_cache(maxsize=32)
def _count(key: _Key) -> Statics:
    return Statics(tuple(meta_parameters(key.config, key.finetune)))


def _alternatives(work: Workload) -> Iterator[tuple[Workload, tuple[str, ...]]]:
    """Yield what could be changed, the least first; each keeps the changes before it, where they still help."""
    overrides: tuple[str, ...] = ()
    yield work, overrides
    if work.eval_batch_size > 4:
        work, overrides = work.changed(eval_batch_size=4), (*overrides, "trainer.eval_batch_size=4")
        yield work, overrides
    if work.averages_on_device:
        work, overrides = work.changed(averages_on_device=False), (*overrides, "trainer.ema_device=cpu")
        yield work, overrides
    if work.checkpoint_every_layers != 1:
        work = work.changed(checkpoint_every_layers=1)
        overrides = (*overrides, "trainer.gradient_checkpointing=true", "trainer.checkpoint_every_layers=1")
        yield work, overrides
    if work.num_moment_shards > 1:  # neither 8-bit moments nor adapters are cut
        if work.finetune.name == "full":
            yield work.changed(finetune=FinetuneSettings("frozen_encoder")), (*overrides, "finetune=frozen_encoder")
        return
    if work.optimizer == "adamw" and work.finetune.name != "lora":
        yield work.changed(optimizer="adamw_8bit"), (*overrides, "optimizer=adamw_8bit")
    if work.finetune.name == "full":
        frozen = work.changed(finetune=FinetuneSettings("frozen_encoder"))
        yield frozen, (*overrides, "finetune=frozen_encoder")
        yield frozen.changed(optimizer="adamw_8bit"), (*overrides, "finetune=frozen_encoder", "optimizer=adamw_8bit")
    if work.finetune.name != "lora" or work.finetune.base_dtype == "fp32":
        lora = work.changed(finetune=FinetuneSettings("lora", base_dtype=HALF_BASE), optimizer="adamw")
        yield lora, (*overrides, "finetune=lora", f"finetune.base_dtype={HALF_BASE}")
    int8 = work.changed(finetune=FinetuneSettings("lora", base_dtype="int8"), optimizer="adamw")
    yield int8, (*overrides, "finetune=lora", "finetune.base_dtype=int8")


def _largest_micro_batch(work: Workload, overrides: tuple[str, ...], gib: float) -> Choice | None:
    statics = statics_of(work.config, work.finetune)
    clips, steps = work.micro_batch_size, work.accumulation_steps
    while True:
        plan = plan_memory(work.changed(micro_batch_size=clips, accumulation_steps=steps), statics)
        if plan.fits(gib):
            if clips != work.micro_batch_size:
                sizes = (f"trainer.micro_batch_size={clips}", f"trainer.accumulation_steps={steps}")
                overrides = (*sizes, *overrides)
            return Choice(plan, overrides)
        if clips == 1:
            return None
        steps = -(-clips * steps // (clips // 2))
        clips //= 2
