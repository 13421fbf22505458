"""Put a run together: model, data, optimiser, exchange of gradients, in the order in which each can be refused."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
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
from train.checkpoint import Checkpoint
from train.compiling import compile_layers
from train.corpus import all_texts, open_training, open_validation
from train.ema import WeightAverage
from train.exchange import Exchange
from train.half import HalfCopy
from train.heartbeat import Heartbeat
from train.identity import Change, admit_changes, describe_identity, find_changes
from train.loop import Loop
from train.loss import TrainingObjective
from train.memory.admission import admit
from train.memory.device import PlanCheck
from train.memory.plan import Plan
from train.memory.shortage import Shortage
from train.model import LoadedModel, load_model, read_config
from train.optim import build_optimizer, embedding_parameters
from train.parts import Parts
from train.precision import Precision, verify_trainable_dtype
from train.quarantine import append_quarantine
from train.ranks import Ranks
from train.saver import CheckpointSaver
from train.settings import TrainSettings
from train.shard_files import save_gathered, save_sharded
from train.sharding import Shard, cuts_weights, prepare_objective
from train.step import Updater
from train.throughput import measure_matmul_rate
from train.tracking import MetricsFile, Tracker, WandbTracker
from train.zero import STAGES, ZeroExchange

logger = logging.getLogger(__name__)


def build_loop(
    settings: TrainSettings,
    precision: Precision,
    accelerator: Accelerator,
    ranks: Ranks,
    heartbeat: Heartbeat,
    run_dir: Path,
    checkpoint: Checkpoint | None,
    changes: Sequence[Change],
    *,
    shard: Shard = "none",
) -> tuple[Loop, list[str]]:
    """Build all parts; also return what is not as the checkpoint knew it."""
    is_auto = settings.trainer.micro_batch_size == "auto"
    texts = all_texts(settings) if settings.model.path is None else []
    recordings = open_recordings(settings.augment)  # a missing file is said before gigabytes are loaded
    if settings.model.path is not None:  # planned before gigabytes are loaded
        settings, plan = _admit(settings, read_config(settings.model), precision, accelerator, shard)
    loaded = load_model(settings.model, texts=texts)
    whisper = loaded.whisper
    if settings.model.path is None:
        settings, plan = _admit(settings, whisper.config, precision, accelerator, shard)
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
        shard=shard,
    )
    changed = [change.what for change in changes]
    if checkpoint is not None:
        changed += admit_changes(find_changes(checkpoint.state["identity"], identity), inexact=settings.run.inexact)
    ranks.wait()  # ranks load at unlike speed, and building the exchange has its own, shorter time limit
    objective = prepare_objective(
        TrainingObjective(whisper, label_smoothing=trainer.label_smoothing, chunk_tokens=trainer.loss_chunk_tokens),
        accelerator,
        shard,
    )
    optimizer = build_optimizer(
        settings.optimizer, whisper.named_parameters(), embeddings=embedding_parameters(whisper)
    )
    exchange = (
        ZeroExchange(objective, optimizer, accelerator, ranks, stage=STAGES[shard])
        if shard in STAGES
        else Exchange(objective, optimizer, accelerator)
    )
    objective = exchange.objective
    average = _build_average(settings, loaded)
    updater = Updater(
        objective,
        optimizer,
        accelerator,
        max_grad_norm=settings.optimizer.max_grad_norm,
        average=average,
        log_mel=recipe.log_mel,
        shortage=Shortage(plan.work, accelerator.device, may_split=is_auto and shard not in STAGES),
        exchange=exchange,
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
        saver=_build_saver(settings, run_dir, ranks, shard),
        ranks=ranks,
        heartbeat=heartbeat,
        shard=shard,
        matmul_flops_per_s=_matmul_rate(accelerator.device, precision),
        memory=PlanCheck(plan, accelerator.device),
    )
    return Loop(parts, settings), changed


def _build_saver(settings: TrainSettings, run_dir: Path, ranks: Ranks, shard: Shard) -> CheckpointSaver | None:
    """Let the main process save beside the training; shards are saved by all processes together."""
    trainer, folder = settings.trainer, run_dir / "checkpoints"
    is_main = ranks.rank == 0
    if shard != "none":
        return CheckpointSaver(
            folder,
            keep_last=trainer.keep_checkpoints,
            in_background=False,
            write=functools.partial(save_sharded if cuts_weights(shard) else save_gathered, ranks=ranks),
            prunes=is_main,
        )
    if not is_main:
        return None
    return CheckpointSaver(folder, keep_last=trainer.keep_checkpoints, in_background=trainer.save_in_background)


def _matmul_rate(device: torch.device, precision: Precision) -> float | None:
    """Measure what the card does in the precision of the run; on a CPU it would tell little and take long."""
    if device.type != "cuda":
        return None
    rate = measure_matmul_rate(device, precision.compute_dtype)
    logger.info("matrix products: %.0f TFLOP/s measured; MFU is a share of that", rate / 1e12)
    return rate


def _admit(
    settings: TrainSettings, config: WhisperConfig, precision: Precision, accelerator: Accelerator, shard: Shard
) -> tuple[TrainSettings, Plan]:
    return admit(
        settings, config, precision, device=accelerator.device, num_processes=accelerator.num_processes, shard=shard
    )


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
