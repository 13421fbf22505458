"""How gradients get from the losses of all ranks to one optimiser: what differs between DDP, shards and DeepSpeed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from train.shards import cut_moments, whole


class Exchange:
    """DDP and FSDP2, which exchange gradients within the backward by themselves; or one process."""

    def __init__(self, objective: nn.Module, optimizer: Optimizer, accelerator: Accelerator) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.accelerator = accelerator

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimiser moves on this rank, in its order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Hold gradients back until the last micro-batch of an update; around its forward and backward."""
        with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.objective):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss; it is the mean over ranks that is taken."""
        loss.backward()

    def norm(self) -> Tensor:
        """Return the norm of the gradient of all ranks, on the device."""
        return whole(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def clear(self) -> None:
        """Forget all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move the weights."""
        self.optimizer.step()

    def refresh(self) -> None:
        """Take note that the weights have been replaced, as by those of a checkpoint."""

    def state(self) -> dict[str, Any]:
        """Return the optimiser's state; all ranks call it together."""
        return self.optimizer.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the optimiser's state, which is whole or of this rank's shards."""
        self.optimizer.load_state_dict(cut_moments(state, self.parameters))
