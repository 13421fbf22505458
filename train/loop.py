"""The training loop: updates, log, validation, checkpoints, and how it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from data.dataset import Clips
from data.labels import LabelBuilder
from data.loaders import UpdateBatches, UpdateDataset
from data.reasons import Rejected
from data.streams import StreamDataset
from infer.encoder import WindowedWhisper
from train.adapters import merged_state, trainable_state
from train.checkpoint import Checkpoint
from train.counters import Progress
from train.ema import WeightAverage
from train.feed import Feed
from train.flops import FlopCount
from train.guard import SkipGuard
from train.half import HalfCopy
from train.heartbeat import Heartbeat
from train.loss import TrainingObjective
from train.memory.device import PlanCheck
from train.progress import ProgressBar
from train.quarantine import Quarantine, append_quarantine, non_finite_rows
from train.random_state import random_states, restore_random_states
from train.ranks import Ranks
from train.saver import CheckpointSaver
from train.schedule import rate_share
from train.settings import TrainSettings
from train.signals import EXIT_STORAGE, EXIT_TIME, EvaluationStopped, StopSignals, StorageError, TimeLimit
from train.step import Updater, UpdateResult
from train.throughput import Throughput
from train.tracking import Tracker
from train.validation import Validation, validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the loop drives; built in `train.run`."""

    accelerator: Accelerator
    whisper: WindowedWhisper
    objective: TrainingObjective
    optimizer: Optimizer
    updater: Updater
    average: WeightAverage | None
    refused: Sequence[Rejected]
    """Lines of the training sources that were left out when they were opened."""
    label_builder: LabelBuilder
    dataset: UpdateDataset | StreamDataset
    validation_clips: Clips | None
    half: HalfCopy
    trackers: Sequence[Tracker]
    run_dir: Path
    source: Mapping[str, str | None]
    """Where the weights came from."""
    identity: Mapping[str, Any]
    """By which a checkpoint knows its run again; see `train.identity`."""
    saver: CheckpointSaver | None
    """On the main process only."""
    ranks: Ranks
    heartbeat: Heartbeat
    matmul_flops_per_s: float | None = None
    """What the device was measured to do; None where it was not."""
    memory: PlanCheck | None = None
    """Holds the plan of its memory against what is measured."""


class Loop:
    """Drive updates until the run is done, stopped, or no longer getting better."""

    def __init__(self, parts: Parts, settings: TrainSettings) -> None:
        self.parts = parts
        self.settings = settings
        self.progress = Progress()
        self.guard = SkipGuard()
        self.quarantine = Quarantine(
            parts.run_dir / "quarantine.jsonl",
            on_bad=settings.dataset.on_bad,
            max_bad_share=settings.dataset.max_bad_share,
            refused=parts.refused,
            writes=parts.accelerator.is_main_process,
        )
        self.throughput = Throughput(
            parts.accelerator.device,
            flops=FlopCount(parts.whisper, loss_chunk_tokens=settings.trainer.loss_chunk_tokens),
            matmul_flops_per_s=parts.matmul_flops_per_s,
            num_ranks=parts.accelerator.num_processes,
        )
        self.signals = StopSignals()
        self.inexact: list[str] = []
        """What changed in resumes that were not exact."""
        self.exit_code = 0
        """Of the process, if it ends here; 0 for a complete run."""

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints lie."""
        return self.parts.run_dir / "checkpoints"

    def run(self) -> bool:
        """Train; return True if the run is complete, False if a signal or the time limit stopped it.

        Raises:
            StorageError: if checkpoints cannot be written.
            PeerError: if the ranks no longer hold the same weights.
        """
        trainer = self.settings.trainer
        device = self.parts.accelerator.device
        limit = TimeLimit(trainer.max_hours)
        updates = self.parts.dataset.open(
            self.progress.position, num_workers=trainer.num_workers, pin_memory=device.type == "cuda"
        )
        feed = Feed(updates, device)
        self.parts.objective.train()
        with (
            self.signals,
            ProgressBar(
                trainer.max_steps, start=self.progress.attempted, shown=self.parts.accelerator.is_main_process
            ) as bar,
        ):
            if self.progress.attempted > 0 and self._is_due(trainer.eval_every_steps) and not self._was_validated():
                self._validate()  # given up when the run was stopped
            while (
                self.progress.attempted < trainer.max_steps and not self._is_worn_out() and not self._must_stop(limit)
            ):
                result, batches = self._update(feed)
                bar.advance(result, lr=self._lr_taken(), audio_s=sum(b.audio_s for b in batches.micro_batches))
                if self._is_due(trainer.log_every_steps) or self.progress.attempted == trainer.max_steps:
                    self._log(result)
                if self._is_due(trainer.eval_every_steps):
                    self._validate()
                if self._is_due(trainer.save_every_steps):
                    self.save()
                elif self._is_due(trainer.verify_ranks_every_steps):
                    self._verify_ranks()
            if self._is_worn_out():
                logger.info("no better score in %d validations; stopping early", trainer.patience)
            if self.exit_code == 0 and trainer.eval_every_steps and not self._was_validated():
                self._validate()
            if self.exit_code == EXIT_STORAGE:
                saver = self.parts.saver
                raise StorageError(saver.describe_failure() if saver else "the main process cannot write checkpoints")
            self.save(must=True)
        logger.info("validation took %.1f %% of the time", 100 * self.throughput.validation_share)
        return self.exit_code == 0

    def _must_stop(self, limit: TimeLimit) -> bool:
        """Let all ranks stop after the same update."""
        saver = self.parts.saver
        code = self.signals.exit_code
        if limit.is_over(save_s=saver.longest_s if saver else 0.0) and code == 0:
            code = EXIT_TIME
        if saver is not None:
            saver.poll()
            code = EXIT_STORAGE if saver.is_exhausted else code
        self.exit_code = self.parts.ranks.largest(code)
        return self.exit_code != 0

    def _is_due(self, every_steps: int) -> bool:
        return every_steps > 0 and self.progress.attempted % every_steps == 0

    def _was_validated(self) -> bool:
        return self.progress.validated_step == self.progress.attempted

    def _is_worn_out(self) -> bool:
        """Say whether enough validations brought no better score; also when an ended run is started again."""
        return 0 < self.settings.trainer.patience <= self.progress.num_worse

    def _lr(self) -> float:
        share = rate_share(self.settings.schedule, self.progress.applied, self.settings.trainer.max_steps)
        return self.settings.optimizer.lr * share

    def _lr_taken(self) -> float:
        """Return the rate of the last update; the schedule already stands at the next one."""
        return float(self.parts.optimizer.param_groups[0]["lr"])

    def _update(self, feed: Feed) -> tuple[UpdateResult, UpdateBatches]:
        ranks, dataset = self.parts.ranks, self.parts.dataset
        self.parts.heartbeat.at("data", step=self.progress.attempted)
        batches = feed.next()
        self.parts.heartbeat.at("update")
        num_rows, audio_s = dataset.num_rows, dataset.audio_s
        self.quarantine.add(ranks.join(batches.rejected), num_rows=num_rows, audio_s=audio_s)
        micro_batches = self.quarantine.without(batches.micro_batches)
        result = self.parts.updater.update(micro_batches, lr=self._lr(), meanwhile=feed.read_ahead)
        progress = self.progress
        progress.attempted += 1
        progress.applied += not result.skipped
        progress.position = batches.next_position
        bad = ranks.join(non_finite_rows(micro_batches, result.bad_clips))
        self.quarantine.add(bad, num_rows=num_rows, audio_s=audio_s)
        module = self.parts.updater.find_non_finite(micro_batches[0]) if result.skipped else None
        # Asked for only where it matters: the answer waits for the device.
        loss_scale = result.loss_scale if result.skipped else None
        self.guard.record(skipped=result.skipped, loss_scale=loss_scale, module=module)
        memory = self.parts.memory
        if memory is not None and (figures := memory.record(micro_batches)):
            for tracker in self.parts.trackers:
                tracker.log(figures, step=progress.attempted)
        self.throughput.record(
            batches.micro_batches, num_label_tokens=result.num_label_tokens, waited_s=feed.take_waited_s()
        )
        return result, batches

    def _log(self, result: UpdateResult) -> None:
        figures = {
            "train/loss": result.loss,
            "train/grad_norm": result.grad_norm,
            "train/lr": self._lr_taken(),
            "train/loss_scale": result.loss_scale,
            "train/skipped_steps": float(self.guard.num_skipped),
            "train/epoch": float(self.progress.position.epoch),
            **self.throughput.report(),
        }
        if self.parts.saver is not None:
            cost = self.parts.saver.take_cost()
            figures["train/checkpoint_blocked_s"] = cost.blocked_s
            figures["train/checkpoint_written_s"] = cost.written_s
            figures["train/checkpoint_gib"] = cost.num_bytes / 2**30
        for tracker in self.parts.trackers:
            tracker.log(figures, step=self.progress.attempted)

    def weights_to_ship(self) -> Mapping[str, Tensor]:
        """Return the FP32 weights that would be exported now: merged, and averaged where an average is kept."""
        average = self.parts.average
        return merged_state(self.parts.whisper, replaced=None if average is None else average.average)

    def _validate(self) -> None:
        """Score the half copy, and keep a checkpoint where it is the best so far."""
        clips = self.parts.validation_clips
        if clips is None:
            return
        self.parts.heartbeat.at("validation")
        with self.throughput.paused():
            states = random_states()  # before the copy, whose first making draws from them
            found: Validation | None = None
            try:
                with self.throughput.validating(), self.signals.interrupting():
                    found = validate(
                        self.parts.half.refresh(self.weights_to_ship()),
                        clips,
                        self.parts.label_builder,
                        self.settings.decoding,
                        batch_size=self.settings.trainer.eval_batch_size,
                    )
            except EvaluationStopped:
                logger.info(
                    "the evaluation at step %d is given up; it comes again after a resume", self.progress.attempted
                )
            self.parts.half.park()
            restore_random_states(states)
            self.parts.objective.train()
            self.exit_code = self.parts.ranks.largest(self.signals.exit_code if found is None else 0)
            if found is not None and self.exit_code == 0:
                self._judge(found)

    def _judge(self, found: Validation) -> None:
        step = self.progress.attempted
        for tracker in self.parts.trackers:
            share = {"train/validation_share": self.throughput.validation_share}
            tracker.log(found.figures("validation") | share, step=step)
            tracker.log_predictions("validation", found.predictions, step=step)
        progress = self.progress
        progress.validated_step = step
        is_better = progress.best_headline is None or found.headline < progress.best_headline
        languages = ", ".join(
            f"{code} {rates['headline']:.1%}"
            for code, rates in found.score.languages.items()
            if rates["headline"] is not None
        )
        logger.info(
            "step %d: error rate of the half copy %.1f %%%s (%s), loss %.3f",
            step,
            100 * found.headline,
            ", best so far" if is_better else "",
            languages,
            found.loss,
        )
        if is_better:
            progress.best_headline, progress.best_step, progress.num_worse = found.headline, step, 0
            self.save()
        else:
            progress.num_worse += 1

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint, unless nothing has happened since the last one; all ranks call it together.

        Args:
            must: wait until it stands; the last one of a run.

        Raises:
            StorageError: if it must stand and cannot be written.
            PeerError: if the ranks hold other weights, which are then not saved.
        """
        self._verify_ranks()
        states = self.parts.ranks.gather(random_states())
        if self.parts.saver is None:
            return
        self.parts.heartbeat.at("checkpoint")
        with self.throughput.paused():
            self.parts.saver.save(
                self.progress.attempted,
                lambda: self._checkpoint(states),
                progress=self.progress.state(),
                best=self.progress.best_step,
                must=must,
            )

    def _verify_ranks(self) -> None:
        self.parts.ranks.verify_same_weights(self.parts.whisper.named_parameters(), step=self.progress.attempted)

    def _checkpoint(self, states: Sequence[Mapping[str, Any]]) -> Checkpoint:
        scaler = self.parts.updater.scaler
        average = self.parts.average
        return Checkpoint(
            model=trainable_state(self.parts.whisper),
            optimizer=self.parts.optimizer.state_dict(),
            average={} if average is None else average.average,
            state={
                "progress": self.progress.state(),
                "guard": self.guard.state(),
                "quarantine": self.quarantine.state(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random": list(states),
                "tracker_run_id": next((t.run_id for t in self.parts.trackers if t.run_id), None),
                "inexact": self.inexact,
                "identity": dict(self.parts.identity),
                "config": self.settings.config,
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up everything from a checkpoint.

        Raises:
            ValueError: if it belongs to another model.
        """
        self.load_weights(checkpoint)
        state = checkpoint.state
        self._restore_arithmetic(checkpoint)
        self.progress = Progress.from_state(state["progress"])
        self.guard.load_state(state["guard"])
        rank = self.parts.ranks.rank
        if rank < len(state["random"]):  # a rank more than before begins with its seed
            restore_random_states(state["random"][rank])
        self.inexact = list(state["inexact"])
        self.quarantine.load_state(state["quarantine"])
        self.parts.dataset.leave_out(self.quarantine.known)
        if self.parts.saver is not None:
            self.parts.saver.verified = self.progress.attempted
        if self.parts.accelerator.is_main_process:  # the file begins anew with each start
            append_quarantine(self.quarantine.path, list(self.quarantine.known.values()))

    def _restore_arithmetic(self, checkpoint: Checkpoint) -> None:
        """Take up the states of optimiser and scaler."""
        before, now = (config["optimizer"]["name"] for config in (checkpoint.state["config"], self.settings.config))
        if before == now:
            self.parts.optimizer.load_state_dict(checkpoint.optimizer)
        else:  # only where changes were allowed
            logger.warning("optimizer=%s begins anew: the checkpoint has the moments of %s", now, before)
        scaler, saved = self.parts.updater.scaler, checkpoint.state["scaler"]
        if (scaler is None) != (saved is None) and not self.settings.run.inexact:
            raise ValueError(
                "the checkpoint was made with another precision; take the same precision=, a new run.dir=, or go on "
                "all the same with run.inexact=true"
            )
        if scaler is not None and saved is not None:
            scaler.load_state_dict(saved)

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take up weights and average only, as for the export of the best step."""
        parameters = {name: p for name, p in self.parts.whisper.named_parameters() if p.requires_grad}
        if parameters.keys() != checkpoint.model.keys():
            raise ValueError("the checkpoint belongs to another model or finetune=; take a new run.dir=")
        for name, parameter in parameters.items():
            if parameter.shape != checkpoint.model[name].shape:
                raise ValueError(f"the checkpoint has another shape of {name}; take a new run.dir=")
            parameter.data.copy_(checkpoint.model[name])
        if self.parts.average is not None and checkpoint.average:
            self.parts.average.load(checkpoint.average)
