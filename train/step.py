"""One optimiser update: micro-batches in, moved weights out, or a reason why they stayed.

Whole updates are weighed by one global count of label tokens, taken before the first backward, so that accumulation and
the number of processes never change the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from data.batches import SpeechBatch
from data.features import LogMel
from train.ema import WeightAverage
from train.exchange import Exchange
from train.guard import NonFiniteError, first_non_finite
from train.memory.shortage import Shortage
from train.shards import looking


@dataclass(frozen=True)
class UpdateResult:
    """What one attempted update did."""

    loss: float
    """Mean over label tokens, in nats; before label smoothing is taken out."""
    grad_norm: float | None
    """Before clipping; None where the update was skipped."""
    skipped: bool
    num_label_tokens: int
    """Over all ranks."""
    bad_clips: tuple[int, ...]
    """Clips whose loss was not finite; the update went on without them."""
    scale: Tensor | None = None
    """The loss scale after the update, still on the device; None without a scaler."""

    @property
    def loss_scale(self) -> float | None:
        """The loss scale after the update; asking waits for the device."""
        return None if self.scale is None else float(self.scale)


@dataclass(frozen=True)
class _Outcome:
    """What a forward and backward of all micro-batches came to."""

    loss: float
    norm: Tensor
    """Of the unscaled gradient, on the device."""
    grad_norm: float
    is_overflown: bool
    """The gradient is not finite on some rank."""
    num_tokens: int


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
        shortage: Shortage | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        """Remember the parts.

        Args:
            objective: prepared by Accelerate; returns the summed loss of a micro-batch.
            optimizer: not prepared by Accelerate, whose wrapper cannot see a skip inside a fused kernel.
            accelerator: owns device, ranks, autocast and scaler.
            max_grad_norm: gradients are scaled down to this norm; 0 switches it off.
            average: moving average of the weights, updated when an update is applied.
            log_mel: makes features of batches that come as waveforms.
            shortage: what to do where a forward or backward runs out of memory; None lets the error through.
            exchange: of gradients between ranks; None is that of DDP, shards, or one process.
        """
        self.objective = objective
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.max_grad_norm = max_grad_norm
        self.average = average
        self.log_mel = log_mel
        self.shortage = shortage
        self.exchange = exchange or Exchange(objective, optimizer, accelerator)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler, or None."""
        scaler: torch.amp.GradScaler | None = self.accelerator.scaler
        return scaler

    def update(
        self, micro_batches: Sequence[SpeechBatch], *, lr: float, meanwhile: Callable[[], None] | None = None
    ) -> UpdateResult:
        """Run one update; the host waits for the device once.

        Args:
            micro_batches: of this rank; every rank has the same number.
            lr: learning rate of this update.
            meanwhile: called while the device computes, before the host waits for it.

        Raises:
            NonFiniteError: if no clip of the update has a finite loss.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = [batch.to(self.accelerator.device).with_features(self.log_mel) for batch in micro_batches]
        bad_clips: tuple[int, ...] = ()
        batches, outcome = self._accumulate_within_memory(batches, meanwhile)
        if not math.isfinite(outcome.loss):
            if self.scaler is not None:  # forget what was found in these gradients; the scale stays
                self.scaler.update(self.scaler.get_scale())
            batches, bad_clips = self._drop_non_finite(batches)
            outcome = self._accumulate(batches)
        return self._step(outcome, bad_clips)

    def _accumulate_within_memory(
        self, batches: list[SpeechBatch], meanwhile: Callable[[], None] | None
    ) -> tuple[list[SpeechBatch], _Outcome]:
        """Accumulate; where memory runs out, again with smaller micro-batches if that is allowed."""
        if self.shortage is None:
            return batches, self._accumulate(batches, meanwhile)
        batches = self.shortage.cut(batches)
        while True:
            try:
                return batches, self._accumulate(batches, meanwhile)
            except torch.OutOfMemoryError as e:
                message = str(e)
            self.exchange.clear()
            batches = self.shortage.resolve(batches, message)

    def _accumulate(self, batches: Sequence[SpeechBatch], meanwhile: Callable[[], None] | None = None) -> _Outcome:
        """Add up the gradients of all micro-batches and unscale them; return what the host has to know, of all ranks.

        Whether the loss is finite decides what is computed next, and a skipped update holds the learning rate back: so
        one wait for the device is needed, and it brings all figures at once. Behind it the optimiser's kernels run
        while the host prepares the next forward.
        """
        self.exchange.clear()
        count, weight = self._weigh(batches)
        total = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(batches):
            is_last = i == len(batches) - 1
            # Gradients are exchanged on the last micro-batch only; DDP averages over ranks, so the mean is undone here.
            with self.exchange.micro_batch(is_last=is_last):
                nll = self._nll(batch)
                scaled = nll * weight
                self.exchange.backward(scaled if self.scaler is None else self.scaler.scale(scaled))
            total += nll.detach()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self.exchange.norm()
        figures = torch.stack([total, (~norm.isfinite()).float()])
        if self.accelerator.num_processes > 1:
            figures = self.accelerator.reduce(figures, reduction="sum")
        if meanwhile is not None:
            meanwhile()
        asked = [figures[0], figures[1], norm] + ([count] if isinstance(count, Tensor) else [])
        loss_sum, num_overflown, grad_norm, *counted = self._read(asked)
        num_tokens = int(counted[0] if counted else count)
        return _Outcome(loss_sum / num_tokens, norm, grad_norm, num_overflown > 0, num_tokens)

    def _weigh(self, batches: Sequence[SpeechBatch]) -> tuple[int | Tensor, float | Tensor]:
        """Return the label tokens of the update over all ranks, and what each token weighs; without any wait."""
        num_ranks = self.accelerator.num_processes
        num_tokens = sum(batch.num_label_tokens for batch in batches)
        if num_ranks == 1:
            return max(1, num_tokens), 1 / max(1, num_tokens)
        count = torch.tensor(num_tokens, dtype=torch.float64).to(self.accelerator.device, non_blocking=True)
        count = self.accelerator.reduce(count, reduction="sum").clamp_min(1)
        return count, (num_ranks / count).float()

    def _read(self, figures: Sequence[Tensor]) -> list[float]:
        """Bring figures to the host: the update's one wait for the device."""
        return [float(figure) for figure in torch.stack([figure.double() for figure in figures]).tolist()]

    def _step(self, outcome: _Outcome, bad_clips: tuple[int, ...]) -> UpdateResult:
        scaler, skipped = self.scaler, outcome.is_overflown
        if not skipped:
            if 0 < self.max_grad_norm < outcome.grad_norm:
                torch.nn.utils.clip_grads_with_norm_(self.exchange.parameters, self.max_grad_norm, outcome.norm)
            self.exchange.step()  # not through the scaler, which would ask the device what is known here
        if scaler is not None:
            if skipped:  # also where another rank alone found it, so that scales never part
                for flag in scaler._found_inf_per_device(self.optimizer).values():
                    flag.fill_(1.0)
            scaler.update()
        self.exchange.clear()
        if not skipped and self.average is not None:
            self.average.update()
        return UpdateResult(
            loss=outcome.loss,
            grad_norm=None if skipped else outcome.grad_norm,
            skipped=skipped,
            num_label_tokens=outcome.num_tokens,
            bad_clips=bad_clips,
            scale=None if scaler is None else scaler._get_scale_async().clone(),  # type: ignore[union-attr]
        )

    def _drop_non_finite(self, batches: Sequence[SpeechBatch]) -> tuple[list[SpeechBatch], tuple[int, ...]]:
        """Find the clips without a finite loss, one forward each, and take them out of the update."""
        kept_batches: list[SpeechBatch] = []
        bad_clips: list[int] = []
        num_forwards = sum(len(batch.clips) for batch in batches)
        num_blank = self._most_of_ranks(num_forwards) - num_forwards
        with looking(self.objective):
            for batch in batches:
                losses = [self._loss_of(batch.select([i])) for i in range(len(batch.clips))]
                kept = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
                bad_clips += [batch.clips[i] for i in range(len(batch.clips)) if i not in kept]
                # What is left of a rank's update stays as many forwards, since gradients are exchanged in the last one.
                kept_batches.append(batch.select(kept) if kept else batch.blank())
            for _ in range(num_blank):
                self._loss_of(batches[0].blank())  # on shards a forward gathers weights, so all ranks make as many
        num_kept = torch.tensor(sum(len(batch.clips) for batch in kept_batches), device=self.accelerator.device)
        if int(self.accelerator.reduce(num_kept, reduction="sum")) == 0:
            module = self.find_non_finite(batches[0])
            raise NonFiniteError(f"no clip of this update has a finite loss; first non-finite output in {module}")
        return kept_batches, tuple(bad_clips)

    def _most_of_ranks(self, count: int) -> int:
        counts: Tensor = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.max())

    def _nll(self, batch: SpeechBatch) -> Tensor:
        nll: Tensor = self.objective(
            batch.input_features, batch.decoder_input_ids, batch.labels, num_label_tokens=batch.num_label_tokens
        )
        return nll

    def _loss_of(self, batch: SpeechBatch) -> float:
        return float(self._nll(batch))

    def find_non_finite(self, batch: SpeechBatch) -> str:
        """Return the name of the first module whose output is not finite, or what was looked at in vain."""
        batch = batch.to(self.accelerator.device).with_features(self.log_mel)
        with looking(self.objective), first_non_finite(self.objective) as found:
            self._loss_of(batch)
        return found[0] if found else "no module's forward (the gradient overflows)"
