"""One training run from settings to artefact, and what is left behind."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from train.assembly import build_loop
from train.checkpoint import DamagedError, load_checkpoint, step_dir, sweep_checkpoints
from train.curves import draw_curves
from train.export import describe_run, export_weights, write_json
from train.heartbeat import Heartbeat
from train.loop import Loop
from train.precision import Precision, apply_matmul_precision, inspect_device, resolve_precision
from train.ranks import Ranks, is_exchange_failure
from train.resume import find_resume, going_on
from train.runtime import build_accelerator, configure_logging, lock_run_dir, open_run_dir, seed_everything
from train.settings import TrainSettings
from train.sharding import Shard, cuts_weights, resolve_shard, verify_shardable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """Where a run ended."""

    run_dir: Path
    step: int
    best_step: int | None
    best_headline: float | None
    export_dir: Path | None
    """The artefact; None if the run was stopped before its end."""
    stop_signal: int | None
    exit_code: int = 0
    """Of the process; not 0 if the run was stopped before its end."""


def run_training(settings: TrainSettings) -> RunResult:
    """Train, and export the best weights.

    Raises:
        ValueError: for settings or data that cannot be used.
        FileNotFoundError: for a model or manifest that is not there.
        RuntimeError: if the machine cannot do what was asked, or the weights do not fit FP16.
    """
    precision = resolve_precision(settings.precision, inspect_device(_device()))
    settings = going_on(settings, os.environ)
    trainer = settings.trainer
    shard = resolve_shard(trainer.shard, os.environ, num_processes=int(os.environ.get("WORLD_SIZE", "1")))
    verify_shardable(settings, shard)
    accelerator = build_accelerator(
        precision,
        settings.precision,
        cache_autocast=not trainer.gradient_checkpointing,
        exchange_timeout_s=trainer.exchange_s,
    )
    ranks = Ranks()
    heartbeat = Heartbeat(ranks.rank, ranks.world_size, timeout_s=trainer.rank_timeout_s)
    run_dir = settings.run_dir.expanduser().absolute()
    with contextlib.ExitStack() as stack:
        stack.callback(heartbeat.close)
        if accelerator.is_main_process:
            open_run_dir(run_dir, resume=settings.run.resume, overwrite=settings.run.overwrite)
            stack.enter_context(lock_run_dir(run_dir))
            sweep_checkpoints(run_dir / "checkpoints")
        ranks.wait()
        try:
            return _train(settings, precision, accelerator, ranks, heartbeat, run_dir, shard)
        except RuntimeError as e:
            if ranks.world_size > 1 and is_exchange_failure(e):
                heartbeat.wait_for_verdict()
            raise


def _train(
    settings: TrainSettings,
    precision: Precision,
    accelerator: Accelerator,
    ranks: Ranks,
    heartbeat: Heartbeat,
    run_dir: Path,
    shard: Shard,
) -> RunResult:
    trainer = settings.trainer
    configure_logging(run_dir, is_main=accelerator.is_main_process)
    seed_everything(trainer.seed)
    apply_matmul_precision(precision)
    logger.info("%s", precision.describe(settings.precision.init_scale))
    checkpoint, changes = find_resume(settings, run_dir, read_shards=not cuts_weights(shard))
    if accelerator.is_main_process:  # first of all: it marks the folder as a run's, also where what follows fails
        write_json(run_dir / "config.yaml", settings.config)
    loop, changed = build_loop(
        settings, precision, accelerator, ranks, heartbeat, run_dir, checkpoint, changes, shard=shard
    )
    saver = loop.parts.saver
    try:
        if checkpoint is not None:
            loop.standing.restore(checkpoint)
            loop.standing.inexact += [f"step {loop.progress.attempted}: {what} changed" for what in changed]
            logger.info("resumed at step %d of %d", loop.progress.attempted, trainer.max_steps)
        is_complete = loop.run()
        heartbeat.at("end")
        export_dir = _export(loop, settings) if is_complete else None
        if is_complete and accelerator.is_main_process:  # a stopped one has no time, and maybe no line yet
            draw_curves(run_dir / "metrics.jsonl", run_dir / "curves.png", title=settings.run.name)
    except Exception:
        if saver is not None:
            saver.join()  # a checkpoint in the making is as good as any
        raise
    finally:
        for tracker in loop.parts.trackers:
            tracker.close()
    ranks.wait()
    progress = loop.progress
    return RunResult(
        run_dir,
        progress.attempted,
        progress.best_step,
        progress.best_headline,
        export_dir,
        loop.signals.received,
        loop.exit_code,
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _export(loop: Loop, settings: TrainSettings) -> Path | None:
    """Write the artefact from the best step, or from the last where there was no validation; one process does."""
    progress, parts = loop.progress, loop.parts
    is_main, is_cut = parts.accelerator.is_main_process, cuts_weights(parts.shard)
    if not is_main and not is_cut:
        return None
    step = progress.best_step if progress.best_step is not None else progress.attempted
    if step != progress.attempted:
        try:
            best = load_checkpoint(step_dir(loop.checkpoints_dir, step), read_shards=not is_cut)
            loop.standing.load_weights(best)
        except DamagedError as e:
            logger.error("the best step cannot be read (%s); the last one, step %d, is exported", e, progress.attempted)
            step = progress.attempted
    weights = loop.standing.weights_to_ship()
    if is_cut:  # each weight is put together by all ranks, and kept by one
        weights = {name: tensor.cpu() for name, tensor in weights.items() if is_main}
    if not is_main:
        return None
    return export_weights(
        parts.run_dir / "export",
        weights,
        parts.half,
        dtype=torch.float16,
        record=describe_run(
            settings,
            parts.source,
            step=step,
            headline=progress.best_headline if step == progress.best_step else None,
            inexact=loop.standing.inexact,
        ),
    )
