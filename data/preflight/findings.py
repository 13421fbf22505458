"""A finding: what is odd in a corpus, how often, where, why it matters, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.preflight.columns import SplitScan
from data.reasons import Rejected
from data.rows import Row

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
NUM_EXAMPLES = 5

Places = Sequence[tuple[SplitScan, npt.NDArray[np.int64]]]
"""Rows by their place in a split."""


@dataclass(frozen=True)
class Example:
    """One row that shows a finding."""

    where: str
    """Manifest and line, as `train.jsonl:12`."""
    text: str
    detail: str
    """What was found there."""
    language: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that a person should know before they train."""

    name: str
    """Stable, for programs."""
    code: str
    """Of the catalogue of bad input, as in `quarantine.jsonl`."""
    level: Level
    """`error` is to be mended first, `warning` to be looked at, `note` to be known."""
    title: str
    why: str
    fix: str
    count: int
    total: int
    """Rows that could have shown it; `count / total` is its share."""
    examples: tuple[Example, ...] = ()
    places: tuple[tuple[str, npt.NDArray[np.int64]], ...] = ()
    """Split and rows, all of them."""

    @property
    def share(self) -> float:
        """Share of the rows that could have shown it, 0 to 1."""
        return self.count / max(1, self.total)

    def as_record(self) -> dict[str, Any]:
        """Return the JSON object for `report.json`."""
        names = ("name", "code", "level", "title", "why", "fix", "count", "total", "share")
        record = {name: getattr(self, name) for name in names}
        return {**record, "examples": [{"where": e.where, "text": e.text, "detail": e.detail} for e in self.examples]}


def build_finding(
    name: str,
    *,
    code: str,
    level: Level,
    title: str,
    why: str,
    fix: str,
    places: Places,
    total: int,
    detail: Callable[[SplitScan, int], str] = lambda scan, index: "",
) -> Finding:
    """Build a finding with its first examples.

    Args:
        name: stable, for programs.
        code: of the catalogue of bad input.
        level: how bad it is.
        title: what was found, in a form that goes with any number; the number is put behind it.
        why: what it does to a training.
        fix: what to do or to type.
        places: all rows that show it.
        total: rows that could have.
        detail: says what was found in a row, for the examples.
    """
    count = sum(len(indices) for _, indices in places)
    examples: list[Example] = []
    for scan, indices in places:
        for index in indices[: NUM_EXAMPLES - len(examples)]:
            row = scan.split.rows[int(index)]
            examples.append(Example(where(row), row.text, detail(scan, int(index)), row.language))
    return Finding(
        name,
        code,
        level,
        f"{title}: {count:,}",
        why,
        fix,
        count,
        total,
        tuple(examples),
        tuple((scan.name, indices) for scan, indices in places),
    )


def places_where(
    scans: Iterable[SplitScan], select: Callable[[SplitScan], npt.NDArray[np.bool_]]
) -> list[tuple[SplitScan, npt.NDArray[np.int64]]]:
    """Return the rows that a condition selects, of the splits that have any."""
    found = [(scan, np.flatnonzero(select(scan))) for scan in scans]
    return [(scan, indices) for scan, indices in found if len(indices)]


def where(row: Row | Rejected) -> str:
    """Name a line as people look for it: the last folder, the file, the line."""
    parts = str(row.manifest).replace("\\", "/").rsplit("/", 2)[-2:]
    return f"{'/'.join(parts)}:{row.line}"


def num_usable(scans: Iterable[SplitScan]) -> int:
    """Count the rows that can be used."""
    return sum(int(scan.usable.sum()) for scan in scans)
