"""Draws of ratios and of means of ratios, and what they say about where the true value lies.

Shapes: `N` things drawn (utterances or speakers), `R` draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MAX_DRAWN = 10_000
"""More utterances or speakers than these are first joined at random into as many groups of equal size. The sums of the
groups vary as those of their members do, so the interval is the same one, to 1 % of its width."""

_BLOCK = 1 << 22  # counts held at once: 32 MB
_NORMAL = NormalDist()
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Values of one statistic over samples drawn with replacement, and how they differ from its true distribution.

    Source: BCa as in Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 14, with Student's quantile
        in place of the normal one (Hesterberg 2015, arXiv:1411.5279, section 5.3).
    """

    values: Floats
    """(R,), sorted."""
    bias: float
    """Normal quantile of the share of draws below the value that was measured."""
    acceleration: float
    """A sixth of the skewness: rare large errors make the upper end of an interval longer."""
    freedom: float
    """Degrees of freedom: few voices say little about how voices differ."""
    widening: float
    """How far the spread of the draws falls short of the true one, sqrt(N / (N - 1)) for one sample."""

    def interval(self, level: float) -> tuple[float, float]:
        """Return the two ends of a confidence interval."""
        reach = self.widening * student_quantile(0.5 + level / 2, self.freedom)
        shares = [_NORMAL.cdf(self._quantile(side * reach)) for side in (-1, 1)]
        low, high = np.quantile(self.values, shares)
        return float(low), float(high)

    def two_sided_p(self) -> float:
        """Return the level at which an end of the interval meets 0, as a p-value."""
        num_draws = len(self.values)
        num_below, num_above = int((self.values < 0).sum()), int((self.values > 0).sum())
        # one more draw, and the ties, on the side of the doubt: R draws cannot show less than that
        tail = (num_draws - max(num_below, num_above) + 1) / (num_draws + 1)
        tail = min(tail, 0.5)
        z = _NORMAL.inv_cdf(tail if num_above >= num_below else 1 - tail) - self.bias
        reach = z / (1 + self.acceleration * z) - self.bias
        is_doubtful = (reach > 0) == (num_above >= num_below)  # 0 lies beyond the middle of the corrected draws
        return 1.0 if is_doubtful else 2 * student_cdf(-abs(reach) / self.widening, self.freedom)

    def _quantile(self, z: float) -> float:
        """Correct a normal quantile of the draws for bias and skewness."""
        shifted = self.bias + z
        return self.bias + shifted / max(1e-3, 1 - self.acceleration * shifted)


@dataclass(frozen=True)
class Linear:
    """A mean of ratios in first order: what each thing that is drawn adds to it."""

    value: float
    variance: float
    """Sum of the squares of what each adds."""
    widening: float
    """Square root of the factor from that to the true variance, sqrt(N / (N - 1)) for one sample."""
    freedom: float
    """Degrees of freedom, by Welch and Satterthwaite for several samples."""
    acceleration: float
    """A sixth of the skewness."""
    limit: float
    """The largest ratio of one thing that is drawn, or 1; mean over samples."""

    def log_interval(self, level: float) -> tuple[float, float]:
        """Return Student's interval on the scale of the logarithm, where a rate that is near 0 is less skewed."""
        error = self.widening * math.sqrt(self.variance) / self.value
        reach = min(student_quantile(0.5 + level / 2, self.freedom) * error, 100.0)
        high = min(self.value * math.exp(reach), max(self.limit, self.value))
        return float(self.value * math.exp(-reach)), float(high)


def linearise(samples: Sequence[Floats]) -> Linear:
    """Linearise the mean over samples of numerators over units.

    Args:
        samples: (N, 2) each, numerators and units; each with units.
    """
    value = limit = variance = cubes = 0.0
    parts = []
    for sample in samples:
        numerator, units = sample.sum(axis=0)
        ratio = numerator / units
        influence = (sample[:, 0] - ratio * sample[:, 1]) / units / len(samples)
        value += ratio / len(samples)
        limit += max(1.0, float((sample[:, 0] / np.maximum(sample[:, 1], 1)).max())) / len(samples)
        square, size = float((influence**2).sum()), len(sample)
        variance += square
        cubes += float((influence**3).sum())
        if size > 1:  # a sample of one voice shows no spread at all; it neither adds freedom nor widens
            parts.append((square * size / (size - 1), size))
    widened = sum(square for square, _ in parts)
    if not widened:
        return Linear(value, 0.0, 1.0, math.inf, 0.0, limit)
    return Linear(
        value=value,
        variance=variance,
        widening=math.sqrt(widened / variance),
        freedom=widened**2 / sum(square**2 / (size - 1) for square, size in parts),
        acceleration=cubes / (6 * variance**1.5),
        limit=limit,
    )


def draw_mean_ratio(samples: Sequence[Floats], *, num_draws: int, seed: int) -> Draws:
    """Draw the mean over samples of numerators over units, each sample for itself.

    Args:
        samples: (N, 2) each, whole numerators and units; each with units, and at least one with two rows.
        num_draws: R.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros(num_draws)
    for sample in samples:
        sums = draw_sums(sample, rng, num_draws)
        with np.errstate(invalid="ignore", divide="ignore"):
            means += sums[:, 0] / sums[:, 1] / len(samples)
    values = np.sort(means[np.isfinite(means)])
    linear = linearise(samples)
    share = float((values < linear.value - 1e-12).mean() + (values <= linear.value + 1e-12).mean()) / 2
    limit = 1 / (2 * len(values))
    return Draws(
        values=values,
        bias=_NORMAL.inv_cdf(min(max(share, limit), 1 - limit)),
        acceleration=linear.acceleration,
        freedom=linear.freedom,
        widening=linear.widening,
    )


def draw_sums(sample: Floats, rng: np.random.Generator, num_draws: int) -> Floats:
    """Add up samples drawn with replacement.

    Args:
        sample: (N, K) whole numbers, so that sums are exact in any order.
        rng: of the draws.
        num_draws: R.

    Returns:
        (R, K).
    """
    sample = _join_many(sample, rng)
    size = len(sample)
    sums = np.empty((num_draws, sample.shape[1]))
    block = max(1, _BLOCK // size)
    for start in range(0, num_draws, block):
        num_rows = min(block, num_draws - start)
        picks = rng.integers(0, size, size=(num_rows, size))
        picks += np.arange(num_rows)[:, None] * size
        counts = np.bincount(picks.ravel(), minlength=num_rows * size).reshape(num_rows, size)
        sums[start : start + num_rows] = counts.astype(np.float64) @ sample
    return sums


def _join_many(sample: Floats, rng: np.random.Generator) -> Floats:
    """Join the rows of a very large sample at random into `MAX_DRAWN` groups."""
    if len(sample) <= MAX_DRAWN:
        return sample
    starts = np.arange(MAX_DRAWN) * len(sample) // MAX_DRAWN
    joined: Floats = np.add.reduceat(sample[rng.permutation(len(sample))], starts, axis=0)
    return joined


def student_cdf(t: float, freedom: float) -> float:
    """Return Student's distribution function, by quadrature in the angle whose tangent is t / sqrt(freedom)."""
    if freedom > 1e6:
        return _NORMAL.cdf(t)
    half = math.atan(abs(t) / math.sqrt(freedom)) / 2
    integral = half * float(_WEIGHTS @ np.cos(half * (1 + _NODES)) ** (freedom - 1))
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + math.copysign(scale * integral, t)


@lru_cache(maxsize=1024)  # a report asks for few, many times
def student_quantile(probability: float, freedom: float) -> float:
    """Invert `student_cdf` above one half."""
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return high
