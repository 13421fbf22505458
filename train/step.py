"""One optimiser update: micro-batches in, moved weights out, or a reason why they stayed.

Whole updates are weighed by one global count of label tokens, taken before the first backward, so that accumulation and
the number of processes never change the gradient.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from data.batches import SpeechBatch
from data.features import LogMel
from train.ema import WeightAverage
from train.guard import NonFiniteError, first_non_finite
from train.ranks import agree_on_norm, agree_on_overflow


@dataclass(frozen=True)
class UpdateResult:
    """What one attempted update did."""

    loss: float
    """Mean over label tokens, in nats; before label smoothing is taken out."""
    grad_norm: float | None
    """Before clipping; None where the update was skipped."""
    skipped: bool
    loss_scale: float | None
    """After the update; None without a scaler."""
    num_label_tokens: int
    """Over all ranks."""
    bad_clips: tuple[int, ...]
    """Clips whose loss was not finite; the update went on without them."""


class Updater:
    """Move the weights by one update at a time."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: Optimizer,
        accelerator: Accelerator,
        *,
        max_grad_norm: float,
        average: WeightAverage | None = None,
        log_mel: LogMel | None = None,
    ) -> None:
        """Remember the parts.

        Args:
            objective: prepared by Accelerate; returns the summed loss of a micro-batch.
            optimizer: not prepared by Accelerate, whose wrapper cannot see a skip inside a fused kernel.
            accelerator: owns device, ranks, autocast and scaler.
            max_grad_norm: gradients are scaled down to this norm; 0 switches it off.
            average: moving average of the weights, updated when an update is applied.
            log_mel: makes features of batches that come as waveforms.
        """
        self.objective = objective
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.max_grad_norm = max_grad_norm
        self.average = average
        self.log_mel = log_mel
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler, or None."""
        scaler: torch.amp.GradScaler | None = self.accelerator.scaler
        return scaler

    def update(self, micro_batches: Sequence[SpeechBatch], *, lr: float) -> UpdateResult:
        """Run one update.

        Args:
            micro_batches: of this rank; every rank has the same number.
            lr: learning rate of this update.

        Raises:
            NonFiniteError: if no clip of the update has a finite loss.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = [batch.to(self.accelerator.device).with_features(self.log_mel) for batch in micro_batches]
        bad_clips: tuple[int, ...] = ()
        loss, num_tokens = self._accumulate(batches)
        if not math.isfinite(loss):
            batches, bad_clips = self._drop_non_finite(batches)
            loss, num_tokens = self._accumulate(batches)
        return self._step(loss, num_tokens, bad_clips)

    def _accumulate(self, batches: Sequence[SpeechBatch]) -> tuple[float, int]:
        """Add up the gradients of all micro-batches; return the mean loss and the token count, over all ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        num_tokens = self._count_tokens(batches)
        total = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(batches):
            is_last = i == len(batches) - 1
            # Gradients are exchanged on the last micro-batch only; DDP averages over ranks, so the mean is undone here.
            exchange = contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.objective)
            with exchange:
                nll: Tensor = self.objective(batch.input_features, batch.decoder_input_ids, batch.labels)
                scaled = nll * (self.accelerator.num_processes / num_tokens)
                (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
            total += nll.detach()
        total = self.accelerator.reduce(total, reduction="sum")
        return float(total) / num_tokens, num_tokens  # the update's one wait for the device

    def _count_tokens(self, batches: Sequence[SpeechBatch]) -> int:
        count = sum(batch.num_label_tokens for batch in batches)
        if self.accelerator.num_processes > 1:
            tensor = torch.tensor(count, device=self.accelerator.device)
            count = int(self.accelerator.reduce(tensor, reduction="sum"))
        return max(1, count)

    def _step(self, loss: float, num_tokens: int, bad_clips: tuple[int, ...]) -> UpdateResult:
        scaler = self.scaler
        scale_before = None
        if scaler is not None:
            scaler.unscale_(self.optimizer)
            agree_on_overflow(scaler, self.optimizer)
            scale_before = scaler.get_scale()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = agree_on_norm(torch.nn.utils.get_total_norm(gradients))
        grad_norm = float(norm)
        if self.max_grad_norm > 0 and math.isfinite(grad_norm):
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.max_grad_norm, norm)
        if scaler is None or scale_before is None:
            skipped = not math.isfinite(grad_norm)
            if not skipped:
                self.optimizer.step()
            loss_scale = None
        else:
            scaler.step(self.optimizer)
            scaler.update()
            loss_scale = scaler.get_scale()
            # The scale falls exactly when the scaler found an overflow; a fused optimiser skips inside its kernel and
            # tells nobody else.
            skipped = loss_scale < scale_before
        self.optimizer.zero_grad(set_to_none=True)
        if not skipped and self.average is not None:
            self.average.update()
        return UpdateResult(
            loss=loss,
            grad_norm=None if skipped else grad_norm,
            skipped=skipped,
            loss_scale=loss_scale,
            num_label_tokens=num_tokens,
            bad_clips=bad_clips,
        )

    def _drop_non_finite(self, batches: Sequence[SpeechBatch]) -> tuple[list[SpeechBatch], tuple[int, ...]]:
        """Find the clips without a finite loss, one forward each, and take them out of the update."""
        kept_batches: list[SpeechBatch] = []
        bad_clips: list[int] = []
        with torch.no_grad():
            for batch in batches:
                losses = [self._loss_of(batch.select([i])) for i in range(len(batch.clips))]
                kept = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
                bad_clips += [batch.clips[i] for i in range(len(batch.clips)) if i not in kept]
                # What is left of a rank's update stays as many forwards, since gradients are exchanged in the last one.
                kept_batches.append(batch.select(kept) if kept else batch.blank())
        num_kept = torch.tensor(sum(len(batch.clips) for batch in kept_batches), device=self.accelerator.device)
        if int(self.accelerator.reduce(num_kept, reduction="sum")) == 0:
            module = self.find_non_finite(batches[0])
            raise NonFiniteError(f"no clip of this update has a finite loss; first non-finite output in {module}")
        return kept_batches, tuple(bad_clips)

    def _loss_of(self, batch: SpeechBatch) -> float:
        return float(self.objective(batch.input_features, batch.decoder_input_ids, batch.labels))

    def find_non_finite(self, batch: SpeechBatch) -> str:
        """Return the name of the first module whose output is not finite, or what was looked at in vain."""
        batch = batch.to(self.accelerator.device).with_features(self.log_mel)
        with torch.no_grad(), first_non_finite(self.objective) as found:
            self._loss_of(batch)
        return found[0] if found else "no module's forward (the gradient overflows)"
