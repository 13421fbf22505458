"""How far a run is: the counters that a checkpoint keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from data.plan import Position


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

    def state(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "attempted": self.attempted,
            "applied": self.applied,
            "position": asdict(self.position),
            "best_headline": self.best_headline,
            "best_step": self.best_step,
            "num_worse": self.num_worse,
            "validated_step": self.validated_step,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Read it back."""
        return cls(
            attempted=state["attempted"],
            applied=state["applied"],
            position=Position(**state["position"]),
            best_headline=state["best_headline"],
            best_step=state["best_step"],
            num_worse=state["num_worse"],
            validated_step=state.get("validated_step"),
        )
