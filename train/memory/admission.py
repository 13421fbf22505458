"""Before a model is loaded: how large a micro-batch may be, and whether the training fits at all."""

from __future__ import annotations

import dataclasses
import logging

import torch
from transformers import WhisperConfig

from train.memory.device import describe, memory_gib, verify_fits
from train.memory.fitting import fit_micro_batch, statics_of
from train.memory.plan import Plan, worst_plan
from train.memory.workload import TYPICAL_LABEL_TOKENS, Workload, workloads_of
from train.precision import Precision
from train.settings import TrainSettings

logger = logging.getLogger(__name__)

HOST_SHARE = 0.5  # of the free memory of a host that `micro_batch_size=auto` may take: others live there as well


def admit(
    settings: TrainSettings,
    config: WhisperConfig,
    precision: Precision,
    *,
    device: torch.device,
    num_processes: int,
    shard: str = "none",
) -> tuple[TrainSettings, Plan]:
    """Resolve `trainer.micro_batch_size=auto`, and stop where a training cannot fit.

    It is planned with texts of usual length; a warning says where the longest that the model takes would not fit.

    Args:
        settings: of the run.
        config: of its model.
        precision: resolved for the device.
        device: where it will run.
        num_processes: processes that train together.
        shard: how weights are cut over them.

    Returns:
        The settings with numbers, and the plan of the largest window.

    Raises:
        RuntimeError: if it cannot fit on a GPU, naming the nearest training that does.
        ValueError: if the clips of an update cannot be shared evenly.
    """
    available_gib = memory_gib(device)
    limit_gib = available_gib if device.type == "cuda" else HOST_SHARE * available_gib
    if settings.trainer.micro_batch_size == "auto":
        settings = _take_largest(settings, config, precision, device, num_processes, shard, limit_gib)
    works = _workloads(settings, config, precision, device, num_processes, shard, TYPICAL_LABEL_TOKENS)
    plan = worst_plan(works, statics_of(config, settings.finetune))
    logger.info(
        "memory: planned peak %.2f GiB of %.1f on %s (%s)", plan.total_gib, available_gib, device.type, describe(plan)
    )
    if device.type == "cuda":
        verify_fits(plan, available_gib, device=torch.cuda.get_device_name(device))
        longest = _workloads(
            settings, config, precision, device, num_processes, shard, int(config.max_target_positions)
        )
        longest_gib = worst_plan(longest, statics_of(config, settings.finetune)).total_gib
        if longest_gib > available_gib:
            logger.warning("texts of %d tokens would need %.1f GiB", config.max_target_positions, longest_gib)
    return settings, plan


def _take_largest(
    settings: TrainSettings,
    config: WhisperConfig,
    precision: Precision,
    device: torch.device,
    num_processes: int,
    shard: str,
    limit_gib: float,
) -> TrainSettings:
    wanted = settings.trainer.global_batch_size
    assert wanted is not None
    one = _with_batch(settings, 1, 1)
    # Long texts are rare, but an update that fails on one after hours is worse than a smaller micro-batch.
    longest = _workloads(one, config, precision, device, num_processes, shard, int(config.max_target_positions))
    largest = max(longest, key=lambda work: work.num_frames)
    found = fit_micro_batch(largest, limit_gib, global_batch_size=wanted)
    if found is None:
        clips, steps = 1, max(1, wanted // num_processes)
    else:
        clips, steps = found.micro_batch_size, found.accumulation_steps
    logger.info("trainer.micro_batch_size=auto: %d clips, %d forwards an update, %d clips in all", clips, steps, wanted)
    return _with_batch(settings, clips, steps)


def _with_batch(settings: TrainSettings, clips: int, steps: int) -> TrainSettings:
    trainer = dataclasses.replace(settings.trainer, micro_batch_size=clips, accumulation_steps=steps)
    return dataclasses.replace(settings, trainer=trainer)


def _workloads(
    settings: TrainSettings,
    config: WhisperConfig,
    precision: Precision,
    device: torch.device,
    num_processes: int,
    shard: str,
    label_tokens: int,
) -> list[Workload]:
    return workloads_of(
        settings,
        config,
        precision=precision.mode,
        label_tokens=label_tokens,
        device="cuda" if device.type == "cuda" else "cpu",
        num_processes=num_processes,
        shard=shard,
    )
