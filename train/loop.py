"""The training loop: updates, log, validation, checkpoints, and how it ends."""

from __future__ import annotations

import logging
from pathlib import Path

from data.loaders import UpdateBatches
from train.counters import Progress
from train.feed import Feed
from train.flops import FlopCount
from train.guard import SkipGuard
from train.parts import Parts
from train.progress import ProgressBar
from train.quarantine import non_finite_rows
from train.random_state import random_states
from train.rehearsal import Rehearsal
from train.schedule import rate_share
from train.settings import TrainSettings
from train.signals import EXIT_STORAGE, EXIT_TIME, StopSignals, StorageError, TimeLimit
from train.standing import Standing
from train.step import UpdateResult
from train.throughput import Throughput

logger = logging.getLogger(__name__)


class Loop:
    """Drive updates until the run is done, stopped, or no longer getting better."""

    def __init__(self, parts: Parts, settings: TrainSettings) -> None:
        self.parts = parts
        self.settings = settings
        self.standing = Standing(parts, settings)
        self.throughput = Throughput(
            parts.accelerator.device,
            flops=FlopCount(parts.whisper, loss_chunk_tokens=settings.trainer.loss_chunk_tokens),
            matmul_flops_per_s=parts.matmul_flops_per_s,
            num_ranks=parts.accelerator.num_processes,
        )
        self.signals = StopSignals()
        self.rehearsal = Rehearsal(
            parts, settings, standing=self.standing, throughput=self.throughput, signals=self.signals
        )
        self.exit_code = 0
        """Of the process, if it ends here; 0 for a complete run."""

    @property
    def progress(self) -> Progress:
        """Counters."""
        return self.standing.progress

    @property
    def guard(self) -> SkipGuard:
        """Of skipped updates."""
        return self.standing.guard

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
        ranks, dataset, quarantine = self.parts.ranks, self.parts.dataset, self.standing.quarantine
        self.parts.heartbeat.at("data", step=self.progress.attempted)
        batches = feed.next()
        self.parts.heartbeat.at("update")
        num_rows, audio_s = dataset.num_rows, dataset.audio_s
        quarantine.add(ranks.join(batches.rejected), num_rows=num_rows, audio_s=audio_s)
        micro_batches = quarantine.without(batches.micro_batches)
        result = self.parts.updater.update(micro_batches, lr=self._lr(), meanwhile=feed.read_ahead)
        progress = self.progress
        progress.attempted += 1
        progress.applied += not result.skipped
        progress.position = batches.next_position
        bad = ranks.join(non_finite_rows(micro_batches, result.bad_clips))
        quarantine.add(bad, num_rows=num_rows, audio_s=audio_s)
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

    def _validate(self) -> None:
        """Score the half copy, and keep a checkpoint where it is the best so far."""
        if self.parts.validation_clips is None:
            return
        self.parts.heartbeat.at("validation")
        with self.throughput.paused():
            found = self.rehearsal.score()
            self.exit_code = self.parts.ranks.largest(self.signals.exit_code if found is None else 0)
            if found is not None and self.exit_code == 0 and self.rehearsal.judge(found):
                self.save()

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
                lambda: self.standing.checkpoint(states),
                progress=self.progress.state(),
                best=self.progress.best_step,
                must=must,
            )

    def _verify_ranks(self) -> None:
        self.parts.ranks.verify_same_weights(self.parts.whisper.named_parameters(), step=self.progress.attempted)
