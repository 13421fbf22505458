"""Where a run stands: all of it that changes, how that goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from train.adapters import merged_state, trainable_parameters, trainable_state
from train.checkpoint import Checkpoint
from train.counters import Progress
from train.guard import SkipGuard
from train.parts import Parts
from train.quarantine import Quarantine, append_quarantine
from train.random_state import restore_random_states
from train.settings import TrainSettings
from train.shard_files import read_own
from train.shards import cut_like

logger = logging.getLogger(__name__)


class Standing:
    """Weights, optimiser, counters, quarantine and random states of a run."""

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
        self.inexact: list[str] = []
        """What changed in resumes that were not exact."""

    def weights_to_ship(self) -> Mapping[str, Tensor]:
        """Return the FP32 weights that would be exported now: merged, and averaged where an average is kept."""
        average = self.parts.average
        return merged_state(self.parts.whisper, replaced=None if average is None else average.average)

    def checkpoint(self, states: Sequence[Mapping[str, Any]]) -> Checkpoint:
        """Return everything as a checkpoint; its tensors are those that training changes.

        Args:
            states: of the random generators, of every rank.
        """
        scaler = self.parts.updater.scaler
        average = self.parts.average
        return Checkpoint(
            model=trainable_state(self.parts.whisper),
            optimizer=self.parts.updater.exchange.state(),
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
        checkpoint = self._with_own_shards(checkpoint)
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
            self.parts.updater.exchange.load_state(checkpoint.optimizer)
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

    def _with_own_shards(self, checkpoint: Checkpoint) -> Checkpoint:
        """Read this rank's shards, where the checkpoint has any that are not read yet."""
        if checkpoint.shards is None:
            return checkpoint
        own = read_own(
            checkpoint.shards,
            trainable_parameters(self.parts.whisper),
            self.parts.updater.exchange.parameters,
            checkpoint.optimizer,
        )
        return Checkpoint(own.model, own.optimizer, own.average, checkpoint.state)

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take up weights and average only, as for the export of the best step."""
        parameters = trainable_parameters(self.parts.whisper)
        checkpoint = self._with_own_shards(checkpoint)
        if parameters.keys() != checkpoint.model.keys():
            raise ValueError("the checkpoint belongs to another model or finetune=; take a new run.dir=")
        for name, parameter in parameters.items():
            if parameter.shape != checkpoint.model[name].shape:
                raise ValueError(f"the checkpoint has another shape of {name}; take a new run.dir=")
            with torch.no_grad():
                parameter.copy_(cut_like(checkpoint.model[name], parameter))
        self.parts.updater.exchange.refresh()
        if self.parts.average is not None and checkpoint.average:
            kept = self.parts.average.average
            self.parts.average.load({name: cut_like(t, kept[name]) for name, t in checkpoint.average.items()})
