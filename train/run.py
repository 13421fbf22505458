"""One training run from settings to artefact: what is built, in which order, and what is left behind."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import WhisperConfig

from data.augment import open_recordings
from data.dataset import Clips
from data.features import LogMel
from data.labels import LabelBuilder
from data.loaders import ClipRecipe
from train.adapters import choose_trainable, count_parameters, enable_checkpointing
from train.checkpoint import Checkpoint, DamagedError, find_checkpoint, load_checkpoint, step_dir, sweep_checkpoints
from train.compiling import compile_layers
from train.corpus import all_texts, open_training, open_validation
from train.curves import draw_curves
from train.ema import WeightAverage
from train.export import describe_run, export_weights, write_json
from train.half import HalfCopy
from train.heartbeat import Heartbeat
from train.identity import Change, admit_changes, describe_identity, find_changed_settings, find_changes
from train.loop import Loop, Parts
from train.loss import TrainingObjective
from train.memory.admission import admit
from train.memory.device import PlanCheck
from train.memory.plan import Plan
from train.memory.shortage import Shortage
from train.model import LoadedModel, load_model, read_config
from train.optim import build_optimizer, embedding_parameters
from train.precision import (
    Precision,
    apply_matmul_precision,
    inspect_device,
    resolve_precision,
    verify_trainable_dtype,
)
from train.quarantine import append_quarantine
from train.ranks import Ranks, is_exchange_failure
from train.runtime import build_accelerator, configure_logging, lock_run_dir, open_run_dir, seed_everything
from train.saver import CheckpointSaver
from train.settings import TrainSettings
from train.step import Updater
from train.throughput import measure_matmul_rate
from train.tracking import MetricsFile, Tracker, WandbTracker

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
    trainer = settings.trainer
    accelerator = build_accelerator(
        precision,
        settings.precision,
        cache_autocast=not trainer.gradient_checkpointing,
        rank_timeout_s=trainer.rank_timeout_s,
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
            return _train(settings, precision, accelerator, ranks, heartbeat, run_dir)
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
) -> RunResult:
    trainer = settings.trainer
    configure_logging(run_dir, is_main=accelerator.is_main_process)
    seed_everything(trainer.seed)
    apply_matmul_precision(precision)
    logger.info("%s", precision.describe(settings.precision.init_scale))
    checkpoint, changes = _find_resume(settings, run_dir)
    if accelerator.is_main_process:  # first of all: it marks the folder as a run's, also where what follows fails
        write_json(run_dir / "config.yaml", settings.config)
    loop, changed = _build_loop(settings, precision, accelerator, ranks, heartbeat, run_dir, checkpoint, changes)
    saver = loop.parts.saver
    try:
        if checkpoint is not None:
            loop.restore(checkpoint)
            loop.inexact += [f"step {loop.progress.attempted}: {what} changed" for what in changed]
            logger.info("resumed at step %d of %d", loop.progress.attempted, trainer.max_steps)
        is_complete = loop.run()
        heartbeat.at("end")
        export_dir = _export(loop, settings) if is_complete and accelerator.is_main_process else None
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


def _find_resume(settings: TrainSettings, run_dir: Path) -> tuple[Checkpoint | None, list[Change]]:
    """Return the checkpoint to go on from, and the settings that are not as they were."""
    resume = settings.run.resume
    if resume == "never":
        return None, []
    if resume != "auto":
        path = Path(resume).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(f"run.resume={resume} must be auto, never or the folder of a checkpoint")
        checkpoint = load_checkpoint(path)
    else:
        found = find_checkpoint(run_dir / "checkpoints")
        if found is None:
            return None, []
        checkpoint = found[1]
    changes = find_changed_settings(checkpoint.state["config"], settings.config)
    admit_changes(changes, inexact=settings.run.inexact)  # said before gigabytes are loaded
    return checkpoint, changes


def _build_loop(
    settings: TrainSettings,
    precision: Precision,
    accelerator: Accelerator,
    ranks: Ranks,
    heartbeat: Heartbeat,
    run_dir: Path,
    checkpoint: Checkpoint | None,
    changes: Sequence[Change],
) -> tuple[Loop, list[str]]:
    """Build all parts; also return what is not as the checkpoint knew it."""
    is_auto = settings.trainer.micro_batch_size == "auto"
    texts = all_texts(settings) if settings.model.path is None else []
    recordings = open_recordings(settings.augment)  # a missing file is said before gigabytes are loaded
    if settings.model.path is not None:  # planned before gigabytes are loaded
        settings, plan = _admit(settings, read_config(settings.model), precision, accelerator)
    loaded = load_model(settings.model, texts=texts)
    whisper = loaded.whisper
    if settings.model.path is None:
        settings, plan = _admit(settings, whisper.config, precision, accelerator)
    choose_trainable(whisper, settings.finetune)
    if precision.mode == "bf16_pure":
        whisper.to(torch.bfloat16)
    verify_trainable_dtype(whisper.named_parameters(), precision.param_dtype)
    trainer = settings.trainer
    if trainer.gradient_checkpointing:
        enable_checkpointing(whisper, every_layers=trainer.checkpoint_every_layers, offload=trainer.checkpoint_offload)
    if trainer.compile:
        compile_layers(whisper)
    label_builder = LabelBuilder(
        loaded.tokenizer,
        max_positions=whisper.config.max_target_positions,
        vocabulary_size=whisper.config.vocab_size,
    )
    validation_clips = open_validation(settings, label_builder)
    recipe = ClipRecipe(
        label_builder=label_builder,
        labels=settings.labels,
        log_mel=LogMel(whisper.config.num_mel_bins),
        augmentation=settings.augment,
        recordings=recordings,
        pad_id=int(whisper.config.eos_token_id),
        seed=trainer.seed,
        on_device=settings.features.device == "train",
    )
    dataset, refused = open_training(
        settings, recipe, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    if accelerator.is_main_process:
        quarantine = run_dir / "quarantine.jsonl"
        quarantine.unlink(missing_ok=True)
        append_quarantine(quarantine, refused)
    _describe_model(loaded)
    identity = describe_identity(
        whisper.named_parameters(),
        loaded.tokenizer,
        [source for split in ("train", "replay", "validation") for source in settings.dataset.sources(split)],
        world_size=ranks.world_size,
        device=accelerator.device,
    )
    changed = [change.what for change in changes]
    if checkpoint is not None:
        changed += admit_changes(find_changes(checkpoint.state["identity"], identity), inexact=settings.run.inexact)
    ranks.wait()  # ranks load at unlike speed, and building the exchange has its own, shorter time limit
    objective = accelerator.prepare(
        TrainingObjective(whisper, label_smoothing=trainer.label_smoothing, chunk_tokens=trainer.loss_chunk_tokens)
    )
    optimizer = build_optimizer(
        settings.optimizer, whisper.named_parameters(), embeddings=embedding_parameters(whisper)
    )
    average = _build_average(settings, loaded)
    updater = Updater(
        objective,
        optimizer,
        accelerator,
        max_grad_norm=settings.optimizer.max_grad_norm,
        average=average,
        log_mel=recipe.log_mel,
        shortage=Shortage(plan.work, accelerator.device, may_split=is_auto),
    )
    parts = Parts(
        accelerator=accelerator,
        whisper=whisper,
        objective=objective,
        optimizer=optimizer,
        updater=updater,
        average=average,
        refused=refused,
        label_builder=label_builder,
        dataset=dataset,
        validation_clips=validation_clips,
        half=HalfCopy(whisper, loaded.tokenizer, settings.window.windows(), device=accelerator.device),
        trackers=_open_trackers(settings, run_dir, checkpoint, validation_clips) if accelerator.is_main_process else (),
        run_dir=run_dir,
        source=loaded.source,
        identity=identity,
        saver=CheckpointSaver(
            run_dir / "checkpoints", keep_last=trainer.keep_checkpoints, in_background=trainer.save_in_background
        )
        if accelerator.is_main_process
        else None,
        ranks=ranks,
        heartbeat=heartbeat,
        matmul_flops_per_s=_matmul_rate(accelerator.device, precision),
        memory=PlanCheck(plan, accelerator.device),
    )
    return Loop(parts, settings), changed


def _matmul_rate(device: torch.device, precision: Precision) -> float | None:
    """Measure what the card does in the precision of the run; on a CPU it would tell little and take long."""
    if device.type != "cuda":
        return None
    rate = measure_matmul_rate(device, precision.compute_dtype)
    logger.info("matrix products: %.0f TFLOP/s measured; MFU is a share of that", rate / 1e12)
    return rate


def _admit(
    settings: TrainSettings, config: WhisperConfig, precision: Precision, accelerator: Accelerator
) -> tuple[TrainSettings, Plan]:
    return admit(settings, config, precision, device=accelerator.device, num_processes=accelerator.num_processes)


def _describe_model(loaded: LoadedModel) -> None:
    learning, total = count_parameters(loaded.whisper)
    logger.info(
        "model %s: %.1f M parameters, %.1f M learn; vocabulary %d",
        loaded.source["path"] or loaded.source["name"],
        total / 1e6,
        learning / 1e6,
        loaded.whisper.config.vocab_size,
    )


def _build_average(settings: TrainSettings, loaded: LoadedModel) -> WeightAverage | None:
    trainer = settings.trainer
    if trainer.ema_decay == 0.0:
        return None
    device = torch.device("cpu") if trainer.ema_device == "cpu" else None
    return WeightAverage(loaded.whisper.named_parameters(), decay=trainer.ema_decay, device=device)


def _open_trackers(
    settings: TrainSettings, run_dir: Path, checkpoint: Checkpoint | None, validation_clips: Clips | None
) -> Sequence[Tracker]:
    last_step = checkpoint.state["progress"]["attempted"] if checkpoint is not None else 0
    metrics = MetricsFile(run_dir / "metrics.jsonl", last_step=last_step)
    trackers: list[Tracker] = [metrics]
    if settings.tracker.name == "wandb":
        clips = tuple(validation_clips.rows) if validation_clips is not None else ()
        trackers.append(
            WandbTracker(
                settings.tracker,
                run_dir=run_dir,
                name=settings.run.name,
                config=settings.config,
                run_id=checkpoint.state["tracker_run_id"] if checkpoint is not None else None,
                audio={row.id: row.audio for row in clips if isinstance(row.audio, Path)}
                if settings.tracker.log_audio
                else {},
                # A run that begins anew has a new id, and sends everything.
                last_sent=metrics.last_seen if checkpoint is not None else -1,
            )
        )
    return trackers


def _export(loop: Loop, settings: TrainSettings) -> Path:
    """Write the artefact from the best step, or from the last where there was no validation."""
    progress = loop.progress
    step = progress.best_step if progress.best_step is not None else progress.attempted
    if step != progress.attempted:
        try:
            loop.load_weights(load_checkpoint(step_dir(loop.checkpoints_dir, step)))
        except DamagedError as e:
            logger.error("the best step cannot be read (%s); the last one, step %d, is exported", e, progress.attempted)
            step = progress.attempted
    return export_weights(
        loop.parts.run_dir / "export",
        loop.weights_to_ship(),
        loop.parts.half,
        dtype=torch.float16,
        record=describe_run(
            settings,
            loop.parts.source,
            step=step,
            headline=progress.best_headline if step == progress.best_step else None,
            inexact=loop.inexact,
        ),
    )
