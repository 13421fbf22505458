"""Score the half copy in the midst of a training, and know whether it is the best so far."""

from __future__ import annotations

import logging

from train.parts import Parts
from train.random_state import random_states, restore_random_states
from train.settings import TrainSettings
from train.signals import EvaluationStopped, StopSignals
from train.standing import Standing
from train.throughput import Throughput
from train.validation import Validation, validate

logger = logging.getLogger(__name__)


class Rehearsal:
    """Validations of a run: what would ship now is built, scored and compared with the best."""

    def __init__(
        self,
        parts: Parts,
        settings: TrainSettings,
        *,
        standing: Standing,
        throughput: Throughput,
        signals: StopSignals,
    ) -> None:
        self.parts = parts
        self.settings = settings
        self.standing = standing
        self.throughput = throughput
        self.signals = signals

    def score(self) -> Validation | None:
        """Score the half copy of the present weights; None without clips, or where a signal broke it off."""
        clips = self.parts.validation_clips
        if clips is None:
            return None
        states = random_states()  # before the copy, whose first making draws from them
        found: Validation | None = None
        try:
            with self.throughput.validating(), self.signals.interrupting():
                found = validate(
                    self.parts.half.refresh(self.standing.weights_to_ship()),
                    clips,
                    self.parts.label_builder,
                    self.settings.decoding,
                    batch_size=self.settings.trainer.eval_batch_size,
                )
        except EvaluationStopped:
            logger.info(
                "the evaluation at step %d is given up; it comes again after a resume",
                self.standing.progress.attempted,
            )
        self.parts.half.park()
        restore_random_states(states)
        self.parts.objective.train()
        return found

    def judge(self, found: Validation) -> bool:
        """Log a validation; return whether it is the best so far."""
        progress = self.standing.progress
        step = progress.attempted
        for tracker in self.parts.trackers:
            share = {"train/validation_share": self.throughput.validation_share}
            tracker.log(found.figures("validation") | share, step=step)
            tracker.log_predictions("validation", found.predictions, step=step)
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
        else:
            progress.num_worse += 1
        return is_better
