"""An exponential moving average of the trainable weights, kept in FP32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of the weights over applied updates; on the CPU it costs no GPU memory, but a copy an update."""

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, decay: float, device: torch.device | None = None
    ) -> None:
        """Start at the present weights.

        Args:
            named_parameters: the trainable ones are averaged.
            decay: share of the old average that is kept at each update, in (0, 1).
            device: where the average lies; None leaves each beside its parameter.
        """
        if not 0.0 < decay < 1.0:
            raise ValueError(f"trainer.ema_decay={decay} must lie between 0 and 1; 0.999 is usual")
        self.decay = decay
        self._parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.average: dict[str, Tensor] = {
            name: p.detach().to(device or p.device, torch.float32, copy=True) for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights; call after an applied update only."""
        for name, p in self._parameters.items():
            average = self.average[name]
            average.lerp_(p.detach().to(average.device, torch.float32), 1.0 - self.decay)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Replace the average by a saved one.

        Raises:
            ValueError: if the names differ.
        """
        if average.keys() != self.average.keys():
            raise ValueError("the saved average belongs to other parameters")
        for name, tensor in average.items():
            self.average[name].copy_(tensor)
