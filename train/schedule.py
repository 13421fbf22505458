"""Learning rate as a function of applied updates: warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class ScheduleSettings:
    """The `schedule` group."""

    name: str = "linear"
    """Shape after the warm-up: `constant`, `linear` or `cosine`."""
    warmup_steps: int = 0
    """Updates in which the rate rises from 0; a value below 0 takes a tenth of the run."""
    final_share: float = 0.0
    """Where linear and cosine end, as a share of the peak."""

    def __post_init__(self) -> None:
        if self.name not in SHAPES:
            raise ValueError(f"schedule={self.name} must be one of {', '.join(SHAPES)}")
        if not 0.0 <= self.final_share <= 1.0:
            raise ValueError(f"schedule.final_share={self.final_share} must lie in 0 to 1")


def rate_share(settings: ScheduleSettings, applied: int, max_steps: int) -> float:
    """Return the learning rate of the next update, as a share of the peak.

    Args:
        settings: shape and warm-up.
        applied: updates that moved the weights so far; a skipped one leaves the rate where it was.
        max_steps: updates of the whole run.
    """
    warmup = settings.warmup_steps if settings.warmup_steps >= 0 else max_steps // 10
    if applied < warmup:
        return (applied + 1) / warmup
    if settings.name == "constant":
        return 1.0
    done = min(1.0, (applied - warmup) / max(1, max_steps - warmup))
    falling = 1.0 - done if settings.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.final_share + (1.0 - settings.final_share) * falling
