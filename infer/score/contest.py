"""Several artefacts on several sets: what was scored, who is better, and what was forgotten."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from infer.score.comparison import PairedScore, Retention, compare_scores, measure_retention
from infer.score.evaluation import Prediction, Score
from infer.score.statistics import BootstrapSettings, Comparison

ABSENT = "–"


@dataclass(frozen=True)
class Entry:
    """One artefact, scored."""

    name: str
    """Short name, unique among the entries."""
    artefact: Mapping[str, Any]
    """What stands beside every number."""
    score: Score
    """Over all sets."""
    sets: Mapping[str, Score]
    predictions: tuple[Prediction, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Duel:
    """Two entries on the same clips."""

    before: str
    after: str
    overall: PairedScore
    sets: Mapping[str, PairedScore]

    @property
    def sentence(self) -> str:
        """Who is better, in one line."""
        return describe_comparison(self.overall.overall, self.before, self.after)

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "before": self.before,
            "after": self.after,
            "sentence": self.sentence,
            **self.overall.describe(),
            "sets": {name: paired.describe() for name, paired in self.sets.items()},
        }


def hold_duels(entries: Sequence[Entry], bootstrap: BootstrapSettings | None = None) -> list[Duel]:
    """Compare the first entry with each other one, over all sets and by set.

    Raises:
        ValueError: if one of two lacks a clip of the other.
    """
    first = entries[0]
    return [
        Duel(
            before=first.name,
            after=other.name,
            overall=compare_scores(first.score, other.score, bootstrap),
            sets={name: compare_scores(first.sets[name], other.sets[name], bootstrap) for name in first.sets},
        )
        for other in entries[1:]
    ]


def describe_comparison(found: Comparison | None, before: str, after: str) -> str:
    """Say in one line which of two is better, by how much, and how sure that is."""
    if found is None:
        return f"{after} against {before}: nothing to compare"
    name, unit = ("BLEU ", "") if found.higher_is_better else ("", " %")
    rates = f"{name}{100 * found.before:.2f} to {100 * found.after:.2f}{unit}"
    ends = f"{100 * found.interval.low:+.2f} to {100 * found.interval.high:+.2f}"
    points = f"{100 * found.difference:+.2f} points ({ends})"
    p = format_p(found.p)
    if found.verdict == "no difference shown":
        return f"no difference shown between {before} and {after}: {rates}, {points}, {p}"
    return f"{after} is {found.verdict} than {before}: {rates}, {points}, {p}"


def format_p(p: float) -> str:
    """Return a p-value as people read it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def losers(duel: Duel) -> list[str]:
    """Return the languages, or sets with languages, that became worse more than chance shows, in words."""
    groups: dict[str, Comparison] = {}
    if len(duel.sets) > 1:
        for test_set, paired in duel.sets.items():
            groups.update({f"{test_set}/{code}": found for code, found in paired.languages.items()})
    else:
        groups.update(duel.overall.languages)
    worse = [(name, found) for name, found in groups.items() if found.verdict == "worse"]
    worse.sort(key=lambda item: -item[1].loss)
    return [f"{name} {100 * c.before:.2f} to {100 * c.after:.2f} % ({format_p(c.p)})" for name, c in worse]


@dataclass(frozen=True)
class Forgetting:
    """What one training did to what it did not target, and whether that is too much."""

    before: str
    after: str
    retention: Retention
    max_forgetting: float
    """Rise of the mean headline rate, or fall of BLEU, that is still borne, as a fraction."""

    @property
    def figure(self) -> float | None:
        """Rise of the mean headline rate, or fall of BLEU, over what was not targeted; None where everything was."""
        mean = self.retention.forgetting
        return None if mean is None else mean.loss

    @property
    def is_too_much(self) -> bool:
        """True if the figure is above the threshold, or a group got worse more than chance shows."""
        return (self.figure is not None and self.figure > self.max_forgetting) or bool(self.retention.lost)

    @property
    def figure_sentence(self) -> str:
        """The figure with its interval."""
        mean = self.retention.forgetting
        if mean is None:
            return "everything was targeted, nothing is left to be forgotten"
        ends = f"{100 * mean.interval.low:+.2f} to {100 * mean.interval.high:+.2f}"
        return f"{100 * mean.difference:+.2f} points ({ends}) on what was not targeted"

    @property
    def sentence(self) -> str:
        """The figure and what it means, in one line."""
        figure = self.figure_sentence
        if self.retention.forgetting is None:
            return figure
        if self.retention.warning is not None:
            return f"{self.retention.warning}; {figure}"
        if self.is_too_much:
            return f"forgetting is above the threshold of {100 * self.max_forgetting:g} points: {figure}"
        return f"nothing was forgotten that these clips can show: {figure}"

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "before": self.before,
            "after": self.after,
            "figure": self.figure,
            "max_forgetting": self.max_forgetting,
            "is_too_much": self.is_too_much,
            "sentence": self.sentence,
            **self.retention.describe(),
        }


def find_forgetting(
    entries: Sequence[Entry],
    *,
    targets: Collection[str],
    max_forgetting: float,
    bootstrap: BootstrapSettings | None = None,
) -> list[Forgetting]:
    """Measure for each entry after the first what it lost of what was not targeted.

    Raises:
        ValueError: if a target names nothing in the scores.
    """
    first = entries[0]
    return [
        Forgetting(
            before=first.name,
            after=other.name,
            retention=measure_retention(first.score, other.score, targets=targets, bootstrap=bootstrap),
            max_forgetting=max_forgetting,
        )
        for other in entries[1:]
    ]


def render_contest(entries: Sequence[Entry], duels: Sequence[Duel]) -> Table:
    """Lay out one row per set and artefact: headline, interval, change against the first, p."""
    is_bleu = bool(entries[0].score.overall.get("higher_is_better"))
    table = Table(
        title=Text("Artefacts on the same clips"),
        caption=Text(f"change in points against the first; {'more' if is_bleu else 'less'} is better"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("set")
    table.add_column("artefact")
    for heading in ("BLEU" if is_bleu else "error %", "95 %", "change", "95 %", "p", "language %", "RTFx"):
        table.add_column(heading, justify="right")
    names = list(entries[0].sets)
    parts = [*names, None] if len(names) > 1 else [None]
    for part in parts:
        for i, entry in enumerate(entries):
            score = entry.score if part is None else entry.sets[part]
            paired = None
            if i:
                paired = duels[i - 1].overall if part is None else duels[i - 1].sets[part]
            shown = Text("all" if part is None and len(names) > 1 else part or names[0])
            table.add_row(
                shown if i == 0 else Text(""), Text(entry.name), *_score_cells(score), *_change(paired), *_rest(score)
            )
        table.add_section()
    return table


def _score_cells(score: Score) -> list[Text]:
    interval = score.overall["intervals"]["headline"]
    return [Text(_percent(score.overall["headline"])), Text(_ends(interval))]


def _change(paired: PairedScore | None) -> list[Text]:
    if paired is None or paired.overall is None:
        return [Text(ABSENT)] * 3
    found = paired.overall
    style = {"better": "green", "worse": "red"}.get(found.verdict, "")
    return [
        Text(f"{100 * found.difference:+.2f}", style=style),
        Text(f"{100 * found.interval.low:+.2f} to {100 * found.interval.high:+.2f}"),
        Text(format_p(found.p).removeprefix("p ").removeprefix("= ")),
    ]


def _rest(score: Score) -> list[Text]:
    accuracy, rtfx = score.overall["language_accuracy"], score.overall["rtfx"]
    return [Text(_percent(accuracy, 1)), Text(ABSENT if rtfx is None else f"{rtfx:.1f}")]


def _percent(fraction: float | None, num_decimals: int = 2) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.{num_decimals}f}"


def _ends(interval: Sequence[float] | None) -> str:
    return ABSENT if interval is None else f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f}"
