"""How sure a rate is: bootstrap intervals, paired comparison of two artefacts, and the correction for many comparisons.

Only numbers here; `infer.score.comparison` builds them from scores. What is drawn again, with replacement, is the
utterance, or the speaker where speakers are known: the errors of one voice go together, and an interval that treats
its utterances as independent is too narrow. Draws are seeded: the same numbers give the same interval on any machine.

Shapes: `N` utterances or speakers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from infer.score.resampling import Floats, draw_mean_ratio, linearise

MIN_FREEDOM = 19.0
"""Degrees of freedom below which the interval of a rate is not drawn: 20 utterances, or 20 speakers."""
MIN_WRONG = 50
"""Utterances or speakers with an error, below which it is not drawn either."""


@dataclass(frozen=True)
class BootstrapSettings:
    """How intervals are drawn; stands beside them in the report."""

    num_draws: int = 1000
    level: float = 0.95
    """Share of intervals that hold the true rate."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_draws < 100:
            raise ValueError(f"num_draws={self.num_draws} is too few for the ends of an interval; give 100 or more")
        if not 0.5 <= self.level < 1:
            raise ValueError(f"level={self.level} must lie in 0.5 to 1, such as 0.95")


@dataclass(frozen=True)
class Interval:
    """The ends of a confidence interval."""

    low: float
    high: float
    method: Literal["bootstrap", "student", "binomial"] = "bootstrap"
    """Drawn; Student's, of the logarithm; or exact, where there is no error."""


@dataclass(frozen=True)
class Sample:
    """Edits and reference units of one language, for each utterance or speaker."""

    edits: Floats
    """(N,), whole numbers."""
    units: Floats
    """(N,), whole numbers: words or characters of the references."""

    def __post_init__(self) -> None:
        if self.edits.shape != self.units.shape or self.edits.ndim != 1:
            raise ValueError(f"edits {self.edits.shape} and units {self.units.shape} must be two lists of one length")

    @property
    def rate(self) -> float | None:
        """All edits over all units; None where there is no unit."""
        units = float(self.units.sum())
        return float(self.edits.sum()) / units if units else None


@dataclass(frozen=True)
class Comparison:
    """Two artefacts on the same utterances; rates as fractions, less is better unless said otherwise."""

    before: float
    after: float
    difference: float
    """`after` less `before`."""
    interval: Interval
    """Of the difference."""
    p: float
    """Two-sided: how often chance alone would show a difference this large. Below 0.05 just where the 95 % interval
    leaves 0 out."""
    probability_better: float
    """Share of the draws in which `after` is the better one; equal ones count by half."""
    num_drawn: int
    """Utterances or speakers."""
    higher_is_better: bool = False
    """True of BLEU."""

    @property
    def loss(self) -> float:
        """What became worse: a rise of errors, or a fall of BLEU."""
        return -self.difference if self.higher_is_better else self.difference

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no difference shown`, at a p of 0.05."""
        if self.p >= 0.05:
            return "no difference shown"
        return "better" if self.loss < 0 else "worse"


def pool(edits: npt.ArrayLike, units: npt.ArrayLike, groups: Sequence[Hashable] | None) -> Sample:
    """Add up the utterances of each group, such as a speaker.

    Args:
        edits: (N,) of each utterance.
        units: (N,) in its reference.
        groups: (N,) who speaks; None, or a None within, leaves an utterance by itself.

    Returns:
        A sample of one entry a group, in the order in which they come.
    """
    values: tuple[Floats, Floats] = (np.asarray(edits, np.float64), np.asarray(units, np.float64))
    if groups is None:
        return Sample(*values)
    places: dict[Hashable, int] = {}
    index = [places.setdefault((i,) if group is None else group, len(places)) for i, group in enumerate(groups)]
    sums = np.zeros((2, len(places)))
    for row, column in zip(sums, values, strict=True):
        np.add.at(row, index, column)
    return Sample(sums[0], sums[1])


def bootstrap_rate(samples: Sequence[Sample], settings: BootstrapSettings | None = None) -> Interval | None:
    """Compute the interval of a rate, or of the mean of the rates of several languages.

    Bias-corrected and accelerated, since errors are skewed. Few utterances or speakers, or few with an error, show too
    little of how others vary for draws of them to tell; there, Student's interval of the logarithm holds the true rate
    as often as it says. Without a single edit nothing varies at all; then the interval ends at the exact binomial bound
    for the share of utterances (or speakers) that have an error.

    Args:
        samples: one for each language; those without reference units are left out, as they are of the mean.
        settings: draws, level and seed.

    Returns:
        None where nothing can be drawn: no reference units, or a single utterance or speaker.

    Source: Bisani and Ney 2004, ICASSP, for the utterance as what is drawn; the ends as in `infer.score.resampling`.
    """
    settings = settings or BootstrapSettings()
    kept = [np.stack([s.edits, s.units], axis=1) for s in samples if s.rate is not None]
    if not kept or sum(map(len, kept)) < 2:
        return None
    if not any(sums[:, 0].any() for sums in kept):
        share = (1 - settings.level) / 2
        return Interval(0.0, float(np.mean([1 - share ** (1 / len(sums)) for sums in kept])), "binomial")
    linear = linearise(kept)
    num_wrong = sum(int(np.count_nonzero(sums[:, 0])) for sums in kept)
    if linear.freedom < MIN_FREEDOM or num_wrong < MIN_WRONG:
        return Interval(*linear.log_interval(settings.level), "student")
    return Interval(*draw_mean_ratio(kept, num_draws=settings.num_draws, seed=settings.seed).interval(settings.level))


def compare_rates(
    before: Sequence[Sample], after: Sequence[Sample], settings: BootstrapSettings | None = None
) -> Comparison | None:
    """Compare two artefacts on the same utterances: each draw takes the same ones for both.

    Args:
        before: one sample for each language.
        after: the same utterances or speakers in the same order; the units are those of `before`.
        settings: draws, level and seed.

    Returns:
        The comparison of the mean over languages; None where no language has reference units.

    Raises:
        ValueError: if the two do not have the same entries.

    Source: Bisani and Ney 2004, ICASSP: the paired bootstrap and the probability of improvement.
    """
    settings = settings or BootstrapSettings()
    if [len(s.units) for s in before] != [len(s.units) for s in after]:
        raise ValueError("a comparison needs the same utterances on both sides")
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if old.rate is not None]
    if not all(np.array_equal(old.units, new.units) for old, new in pairs):
        raise ValueError("the references differ between the two sides; score both with the same texts and rules")
    if not pairs:
        return None
    old_rate, new_rate = (float(np.mean([pair[side].rate for pair in pairs])) for side in (0, 1))
    difference = new_rate - old_rate
    changes = [np.stack([new.edits - old.edits, old.units], axis=1) for old, new in pairs]
    num_drawn = sum(map(len, changes))
    if num_drawn < 2 or not any(change[:, 0].any() for change in changes):
        # one utterance alone, or the same errors everywhere: nothing that chance could not do
        spread = Interval(min(difference, 0.0), max(difference, 0.0))
        return Comparison(old_rate, new_rate, difference, spread, 1.0, 0.5, num_drawn)
    draws = draw_mean_ratio(changes, num_draws=settings.num_draws, seed=settings.seed)
    num_below, num_above = float((draws.values < 0).sum()), float((draws.values > 0).sum())
    return Comparison(
        before=old_rate,
        after=new_rate,
        difference=difference,
        interval=Interval(*draws.interval(settings.level)),
        p=draws.two_sided_p(),
        probability_better=0.5 + (num_below - num_above) / 2 / len(draws.values),
        num_drawn=num_drawn,
    )


def adjust_for_many(p_values: Sequence[float]) -> list[float]:
    """Raise p-values so that, of all comparisons together, chance alone shows one below 0.05 in 5 % of the cases.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def as_plain(value: Interval | Comparison) -> dict[str, Any]:
    """Return the fields for JSON."""
    if isinstance(value, Interval):
        return {"low": value.low, "high": value.high, "method": value.method}
    return {
        "before": value.before,
        "after": value.after,
        "difference": value.difference,
        "interval": [value.interval.low, value.interval.high],
        "p": value.p,
        "probability_better": value.probability_better,
        "num_drawn": value.num_drawn,
        "higher_is_better": value.higher_is_better,
        "verdict": value.verdict,
    }
