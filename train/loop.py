"""The training loop: updates, log, validation, checkpoints, and how it ends."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import Accelerator
from torch.optim import Optimizer

from data.batches import Position, SpeechBatch
from data.dataset import Clips
from data.loaders import UpdateBatches, UpdateDataset, append_quarantine, open_updates
from data.reasons import Reason, Rejected, reject, summarise
from infer.encoder import WindowedWhisper
from train.adapters import merged_state, trainable_state
from train.checkpoint import Checkpoint, prune_checkpoints, random_states, restore_random_states, save_checkpoint
from train.ema import WeightAverage
from train.guard import SkipGuard
from train.half import HalfCopy
from train.loss import TrainingObjective
from train.progress import ProgressBar
from train.schedule import rate_share
from train.settings import TrainSettings
from train.step import Updater, UpdateResult
from train.throughput import Throughput
from train.tracking import Tracker
from train.validation import Validation, validate

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Counters of a run; all of it goes into a checkpoint."""

    attempted: int = 0
    """Updates that were tried: the `step` of every log."""
    applied: int = 0
    """Updates that moved the weights: what the schedule and the average follow."""
    position: Position = field(default_factory=Position)
    """The next update to read."""
    best_headline: float | None = None
    best_step: int | None = None
    num_worse: int = 0
    """Validations since the best."""
    validated_step: int | None = None
    """Of the latest validation."""
    quarantined: dict[int, str] = field(default_factory=dict)
    """Row to reason code, of clips found bad on the way."""

    def state(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "attempted": self.attempted,
            "applied": self.applied,
            "epoch": self.position.epoch,
            "update": self.position.update,
            "best_headline": self.best_headline,
            "best_step": self.best_step,
            "num_worse": self.num_worse,
            "validated_step": self.validated_step,
            "quarantined": [[row, code] for row, code in self.quarantined.items()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Read it back."""
        return cls(
            attempted=state["attempted"],
            applied=state["applied"],
            position=Position(state["epoch"], state["update"]),
            best_headline=state["best_headline"],
            best_step=state["best_step"],
            num_worse=state["num_worse"],
            validated_step=state.get("validated_step"),
            quarantined={int(row): str(code) for row, code in state["quarantined"]},
        )


@dataclass(frozen=True)
class Parts:
    """What the loop drives; built in `train.run`."""

    accelerator: Accelerator
    whisper: WindowedWhisper
    objective: TrainingObjective
    optimizer: Optimizer
    updater: Updater
    average: WeightAverage | None
    train_clips: Clips
    dataset: UpdateDataset
    validation_clips: Clips | None
    half: HalfCopy
    trackers: Sequence[Tracker]
    run_dir: Path
    source: Mapping[str, str | None]
    """Where the weights came from."""


class Loop:
    """Drive updates until the run is done, stopped, or no longer getting better."""

    def __init__(self, parts: Parts, settings: TrainSettings) -> None:
        self.parts = parts
        self.settings = settings
        self.progress = Progress()
        self.guard = SkipGuard()
        self.throughput = Throughput(parts.accelerator.device)
        self.stop_signal: int | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints lie."""
        return self.parts.run_dir / "checkpoints"

    def run(self) -> bool:
        """Train; return True if the run is complete, False if a signal stopped it."""
        trainer = self.settings.trainer
        updates = open_updates(
            self.parts.dataset,
            start=self.progress.position,
            num_workers=trainer.num_workers,
            pin_memory=self.parts.accelerator.device.type == "cuda",
        )
        self.parts.objective.train()
        with (
            self._signals(),
            ProgressBar(
                trainer.max_steps, start=self.progress.attempted, shown=self.parts.accelerator.is_main_process
            ) as bar,
        ):
            while self.progress.attempted < trainer.max_steps and self.stop_signal is None and not self._is_worn_out():
                result, batches = self._update(updates)
                bar.advance(result, lr=self._lr_taken(), audio_s=sum(b.audio_s for b in batches.micro_batches))
                if self._is_due(trainer.log_every_steps) or self.progress.attempted == trainer.max_steps:
                    self._log(result)
                if self._is_due(trainer.eval_every_steps):
                    self._validate()
                if self._is_due(trainer.save_every_steps):
                    self.save()
        if self._is_worn_out():
            logger.info("no better score in %d validations; stopping early", trainer.patience)
        if self.stop_signal is None and trainer.eval_every_steps and not self._was_validated():
            self._validate()
        self.save()
        return self.stop_signal is None

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

    def _update(self, updates: Iterator[UpdateBatches]) -> tuple[UpdateResult, UpdateBatches]:
        with self.throughput.waiting():
            batches = next(updates)
        self._quarantine(batches.rejected)
        micro_batches = self._without_quarantined(batches.micro_batches)
        result = self.parts.updater.update(micro_batches, lr=self._lr())
        progress = self.progress
        progress.attempted += 1
        progress.applied += not result.skipped
        progress.position = batches.next_position
        if result.bad_rows:
            self._quarantine(tuple(self._bad_row(row, Reason.LOSS_NOT_FINITE.code) for row in result.bad_rows))
        module = self.parts.updater.find_non_finite(micro_batches[0]) if result.skipped else None
        self.guard.record(skipped=result.skipped, loss_scale=result.loss_scale, module=module)
        self.throughput.record(
            audio_s=sum(batch.audio_s for batch in batches.micro_batches) * self.parts.accelerator.num_processes,
            num_label_tokens=result.num_label_tokens,
        )
        return result, batches

    def _without_quarantined(self, micro_batches: Sequence[SpeechBatch]) -> list[SpeechBatch]:
        bad = {row for row, code in self.progress.quarantined.items() if code == Reason.LOSS_NOT_FINITE.code}
        if not bad:
            return list(micro_batches)
        kept = [[i for i, row in enumerate(batch.rows) if row not in bad] for batch in micro_batches]
        return [batch.select(keep) if keep else batch.blank() for batch, keep in zip(micro_batches, kept, strict=True)]

    def _bad_row(self, row: int, code: str) -> Rejected:
        clip = self.parts.train_clips.rows[row]
        reason = next(reason for reason in Reason if reason.code == code)
        return reject(reason, manifest=clip.manifest, line=clip.line, id=clip.id, audio=clip.audio)

    def _quarantine(self, rejected: Sequence[Rejected]) -> None:
        clips = self.parts.train_clips
        known = self.progress.quarantined
        rows = {(row.manifest.as_posix(), row.line): i for i, row in enumerate(clips.rows)} if rejected else {}
        fresh = [record for record in rejected if rows[(record.manifest, record.line)] not in known]
        if not fresh:
            return
        known.update({rows[(record.manifest, record.line)]: record.code for record in fresh})
        append_quarantine(self.parts.run_dir / "quarantine.jsonl", tuple(fresh))
        logger.warning("quarantined: %s", summarise(fresh))
        dataset = self.settings.dataset
        num_bad, num_lines = len(known) + len(clips.rejected), len(clips.rows) + len(clips.rejected)
        if dataset.on_bad == "strict" or num_bad / num_lines > dataset.max_bad_share:
            raise ValueError(
                f"{num_bad} of {num_lines} clips cannot be used, more than dataset.max_bad_share="
                f"{dataset.max_bad_share:g} or dataset.on_bad=strict allow; they are listed in "
                f"{self.parts.run_dir / 'quarantine.jsonl'}"
            )

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
        for tracker in self.parts.trackers:
            tracker.log(figures, step=self.progress.attempted)

    def weights_to_ship(self) -> dict[str, Any]:
        """Return the FP32 weights that would be exported now: merged, and averaged where an average is kept."""
        average = self.parts.average
        return merged_state(self.parts.whisper, replaced=None if average is None else average.average)

    def _validate(self) -> None:
        """Score the half copy, and keep a checkpoint where it is the best so far."""
        clips = self.parts.validation_clips
        if clips is None:
            return
        with self.throughput.paused():
            states = random_states()  # before the copy, whose first making draws from them
            artefact = self.parts.half.refresh(self.weights_to_ship())
            found = validate(artefact, clips, self.settings.decoding, batch_size=self.settings.trainer.eval_batch_size)
            restore_random_states(states)
            self.parts.objective.train()
            self._judge(found)

    def _judge(self, found: Validation) -> None:
        step = self.progress.attempted
        for tracker in self.parts.trackers:
            tracker.log(found.figures("validation"), step=step)
            tracker.log_predictions("validation", found.predictions, step=step)
        progress = self.progress
        progress.validated_step = step
        is_better = progress.best_headline is None or found.headline < progress.best_headline
        languages = ", ".join(
            f"{code} {rates[rates['headline_metric']]:.1%}" for code, rates in found.score.languages.items()
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

    def save(self) -> None:
        """Write a checkpoint, unless nothing has happened since the last one."""
        progress = self.progress.state()
        if not self.parts.accelerator.is_main_process or progress == self._saved:
            return
        path = self.checkpoints_dir / f"step-{self.progress.attempted:06d}"
        with self.throughput.paused():
            try:
                save_checkpoint(self.checkpoints_dir, self.progress.attempted, self._checkpoint())
            except OSError as e:
                logger.error("checkpoint %s was not written (%s); training goes on", path, e.strerror or e)
                return
            self._saved = progress
            prune_checkpoints(
                self.checkpoints_dir,
                keep_last=self.settings.trainer.keep_checkpoints,
                keep={"best": self.progress.best_step, "latest": self.progress.attempted},
            )

    def _checkpoint(self) -> Checkpoint:
        scaler = self.parts.updater.scaler
        average = self.parts.average
        return Checkpoint(
            model=trainable_state(self.parts.whisper),
            optimizer=self.parts.optimizer.state_dict(),
            average={} if average is None else average.average,
            state={
                "progress": self.progress.state(),
                "guard": self.guard.state(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random": random_states(),
                "tracker_run_id": next((t.run_id for t in self.parts.trackers if t.run_id), None),
                "config": self.settings.config,
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up everything from a checkpoint.

        Raises:
            ValueError: if it belongs to another model.
        """
        self.load_weights(checkpoint)
        self.parts.optimizer.load_state_dict(checkpoint.optimizer)
        state = checkpoint.state
        scaler = self.parts.updater.scaler
        if (scaler is None) != (state["scaler"] is None):
            raise ValueError(
                "the checkpoint was made with another precision; take the same precision=, or a new run.dir="
            )
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        self.progress = Progress.from_state(state["progress"])
        self.guard.load_state(state["guard"])
        restore_random_states(state["random"])
        if self.parts.accelerator.is_main_process:  # the file begins anew with each start
            known = tuple(self._bad_row(row, code) for row, code in self.progress.quarantined.items())
            append_quarantine(self.parts.run_dir / "quarantine.jsonl", known)

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

    def _signals(self) -> _StopSignals:
        return _StopSignals(self)


class _StopSignals:
    """Let the first SIGINT or SIGTERM end the run after the present update; a second one acts as usual."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in self.NUMBERS:
            self._previous[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._loop.stop_signal = number
        signal.signal(number, self._previous[number])
        logger.warning("stopping after this update, with a checkpoint; once more stops at once")

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
