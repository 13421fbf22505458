"""What misses its tolerance: what was measured, what is allowed, and which formats it keeps from being published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Miss:
    """One tolerance that was missed."""

    part: str
    """`P1` to `P5`, `runtime`, `windows` or `timestamps`."""
    sentence: str
    """Measured, allowed, and the key that allows more."""
    formats: tuple[str, ...] = ()
    """Names of the formats that it concerns; none stands for all."""

    def concerns(self, name: str) -> bool:
        """Whether a format is kept back by it."""
        return not self.formats or name in self.formats

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"part": self.part, "sentence": self.sentence, "formats": list(self.formats)}


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as per cent, or a dash."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def reasons_for(name: str, misses: Sequence[Miss]) -> list[str]:
    """Return the sentences that keep a format back."""
    return [f"{miss.part}: {miss.sentence}" for miss in misses if miss.concerns(name)]
