"""When an update must not move the weights, and when the run must stop.

A non-finite gradient under a finite loss means that the loss scale is too high: the scaler's business. A non-finite
loss is a fault of the data or of the forward: halving the scale cannot mend it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

MAX_SKIPS_IN_A_ROW = 5
MIN_LOSS_SCALE = 1.0
SKIP_WINDOW = 1000
MAX_SKIP_SHARE = 0.01


class NonFiniteError(RuntimeError):
    """The run cannot go on: updates are skipped again and again, or no clip has a finite loss."""


@dataclass
class SkipGuard:
    """Count skipped updates and stop where they tell of a fault."""

    num_skipped: int = 0
    num_in_a_row: int = 0
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=SKIP_WINDOW))

    def record(self, *, skipped: bool, loss_scale: float | None, module: str | None = None) -> None:
        """Take in one attempted update.

        Args:
            skipped: whether the weights stayed.
            loss_scale: after the update; None without a scaler.
            module: first module with a non-finite output, where it is known.

        Raises:
            NonFiniteError: after 5 skips in a row, under a scale of 1, or above 1 % skips in 1000 updates.
        """
        self.recent.append(skipped)
        self.num_skipped += skipped
        self.num_in_a_row = self.num_in_a_row + 1 if skipped else 0
        if not skipped:
            return
        where = f"; first non-finite output in {module}" if module else ""
        if loss_scale is not None and loss_scale < MIN_LOSS_SCALE:
            raise NonFiniteError(
                f"the loss scale fell to {loss_scale:g}, below {MIN_LOSS_SCALE:g}{where}; use precision=bf16"
            )
        if self.num_in_a_row >= MAX_SKIPS_IN_A_ROW:
            remedy = "; use precision=bf16, or a lower precision.init_scale" if loss_scale is not None else ""
            raise NonFiniteError(f"{self.num_in_a_row} updates in a row had a non-finite gradient{where}{remedy}")
        is_full = len(self.recent) == SKIP_WINDOW
        if is_full and sum(self.recent) > MAX_SKIP_SHARE * SKIP_WINDOW:
            raise NonFiniteError(
                f"{sum(self.recent)} of the last {SKIP_WINDOW} updates were skipped{where}; "
                "lower optimizer.lr, or use precision=bf16"
            )

    def state(self) -> dict[str, object]:
        """Return what a checkpoint keeps."""
        return {
            "num_skipped": self.num_skipped,
            "num_in_a_row": self.num_in_a_row,
            "recent": [int(skipped) for skipped in self.recent],
        }

    def load_state(self, state: dict[str, object]) -> None:
        """Take up the state of a checkpoint."""
        recent = state["recent"]
        assert isinstance(recent, list)
        self.num_skipped = int(str(state["num_skipped"]))
        self.num_in_a_row = int(str(state["num_in_a_row"]))
        self.recent = deque((bool(skipped) for skipped in recent), maxlen=SKIP_WINDOW)


@contextmanager
def first_non_finite(model: nn.Module) -> Iterator[list[str]]:
    """Watch one forward; the list then holds the name of the first module whose output is not finite, if any."""
    found: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_hook(_watch(name, found)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, found: list[str]):  # type: ignore[no-untyped-def]
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            found.append(name)

    return hook
