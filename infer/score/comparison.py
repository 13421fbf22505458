"""Two artefacts on the same clips: is the second better, by how much, how sure is it, and what did it forget?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infer.score.breakdown import build_sample
from infer.score.evaluation import Score
from infer.score.statistics import (
    BootstrapSettings,
    Comparison,
    Sample,
    adjust_for_many,
    as_plain,
    compare_rates,
)
from infer.score.translation import compare_translations
from infer.score.utterances import Utterance

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class PairedScore:
    """The comparison of two scores, by headline rate."""

    overall: Comparison | None
    """Of the mean over languages; None where no language has reference units."""
    languages: dict[str, Comparison]
    by: dict[str, str]
    """What was drawn in each language: `utterance` or `speaker`."""

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "overall": None if self.overall is None else as_plain(self.overall),
            "languages": {code: {**as_plain(found), "by": self.by[code]} for code, found in self.languages.items()},
        }


@dataclass(frozen=True)
class Retention:
    """What became of the languages and domains that the training did not target."""

    forgetting: Comparison | None
    """Mean change of the headline rate over the groups that were not targeted, each counted once, gains against
    losses; its `loss` is the forgetting figure, 0.02 is two points worse. Of translations it is of BLEU. None where
    everything was targeted."""
    kept: dict[str, Comparison]
    """Groups that were not targeted: `language`, or `set/language` where the set is known."""
    targeted: dict[str, Comparison]
    p_adjusted: dict[str, float]
    """Of each kept group, corrected for their number."""
    lost: tuple[str, ...]
    """Kept groups that became worse, more than chance shows, the worst first."""

    @property
    def warning(self) -> str | None:
        """One sentence where something was forgotten, else None."""
        parts = [
            f"{name} {100 * self.kept[name].before:.1f} to {100 * self.kept[name].after:.1f} %" for name in self.lost
        ]
        if parts:
            more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
            return f"the training forgot what it did not target: {', '.join(parts[:5])}{more}"
        mean = self.forgetting
        if mean is not None and mean.verdict == "worse":
            return f"the training forgot: {100 * mean.difference:+.1f} points on the mean of what it did not target"
        return None

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "forgetting": None if self.forgetting is None else as_plain(self.forgetting),
            "kept": {n: {**as_plain(c), "p_adjusted": self.p_adjusted[n]} for n, c in self.kept.items()},
            "targeted": {n: as_plain(c) for n, c in self.targeted.items()},
            "lost": list(self.lost),
            "warning": self.warning,
        }


def compare_scores(before: Score, after: Score, bootstrap: BootstrapSettings | None = None) -> PairedScore:
    """Compare two scores of the same clips, per language and overall, by paired bootstrap; translations by BLEU.

    Args:
        before: from `score_predictions`.
        after: of the same clips, in any order.
        bootstrap: how the intervals are drawn.

    Raises:
        ValueError: if one of the two lacks a clip of the other, or their references differ.
    """
    groups = _pair(before, after, by_set=False)
    if _are_translations(before):
        parts = {name: compare_translations([pairs], bootstrap) for name, pairs in groups.items()}
        return PairedScore(
            overall=compare_translations(list(groups.values()), bootstrap),
            languages={name: comparison for name, comparison in parts.items() if comparison is not None},
            by=dict.fromkeys(groups, "utterance"),
        )
    samples = {name: _samples(pair) for name, pair in groups.items()}
    found = {name: compare_rates([old], [new], bootstrap) for name, (old, new, _) in samples.items()}
    return PairedScore(
        overall=compare_rates([s[0] for s in samples.values()], [s[1] for s in samples.values()], bootstrap),
        languages={name: comparison for name, comparison in found.items() if comparison is not None},
        by={name: sample[2] for name, sample in samples.items()},
    )


def measure_retention(
    before: Score, after: Score, *, targets: Collection[str], bootstrap: BootstrapSettings | None = None
) -> Retention:
    """Measure what a training did to the languages and domains that it did not target.

    Args:
        before: score of the model that the training started from.
        after: score of the trained one on the same clips.
        targets: what the training was for: ISO codes (`de`), sets (`clinic`), or both (`clinic/de`).
        bootstrap: how the intervals are drawn.

    Raises:
        ValueError: if a target names nothing in the scores, one of the two lacks a clip of the other, or their
            references differ.
    """
    groups = _pair(before, after, by_set=True)
    unknown = set(targets) - {alias for name in groups for alias in _aliases(name)}
    if unknown:
        raise ValueError(
            f"target {min(unknown)!r} is neither a language nor a set of these scores; known are {', '.join(groups)}"
        )
    is_kept = {name: not _aliases(name) & set(targets) for name in groups}
    if _are_translations(before):
        found = {name: compare_translations([pairs], bootstrap) for name, pairs in groups.items()}
        forgetting = compare_translations([pairs for name, pairs in groups.items() if is_kept[name]], bootstrap)
    else:
        samples = {name: _samples(pair) for name, pair in groups.items()}
        found = {name: compare_rates([old], [new], bootstrap) for name, (old, new, _) in samples.items()}
        rest = [samples[name] for name in groups if is_kept[name]]
        forgetting = compare_rates([sample[0] for sample in rest], [sample[1] for sample in rest], bootstrap)
    comparisons = {name: comparison for name, comparison in found.items() if comparison is not None}
    kept = {name: c for name, c in comparisons.items() if is_kept[name]}
    adjusted = dict(zip(kept, adjust_for_many([c.p for c in kept.values()]), strict=True))
    lost = [name for name, c in kept.items() if c.loss > 0 and adjusted[name] < SIGNIFICANT]
    return Retention(
        forgetting=forgetting,
        kept=kept,
        targeted={name: c for name, c in comparisons.items() if name not in kept},
        p_adjusted=adjusted,
        lost=tuple(sorted(lost, key=lambda name: -kept[name].loss)),
    )


def _aliases(name: str) -> set[str]:
    """Return what names a group: itself, its set and its language."""
    test_set, _, language = name.rpartition("/")
    return {name, language} | ({test_set} if test_set else set())


def _pair(before: Score, after: Score, *, by_set: bool) -> Mapping[str, list[tuple[Utterance, Utterance]]]:
    """Match the utterances of two scores by id and group them."""
    if not before.utterances or not after.utterances:
        raise ValueError("a score read from a report has no utterances; score its predictions.jsonl again")
    old = {u.prediction.id: u for u in before.utterances}
    new = {u.prediction.id: u for u in after.utterances}
    for id_ in sorted(old.keys() ^ new.keys()):
        side = "after" if id_ in old else "before"
        raise ValueError(
            f"{id_!r} is missing {side}: a comparison needs the same clips on both sides "
            f"({len(old)} before, {len(new)} after); score both on the same sets"
        )
    groups: dict[str, list[tuple[Utterance, Utterance]]] = {}
    for id_ in sorted(old):
        left, right = old[id_].prediction, new[id_].prediction
        if (left.reference, left.language, left.task) != (right.reference, right.language, right.task):
            raise ValueError(
                f"the reference of {id_!r} differs: {left.language} {left.reference!r} before, {right.language} "
                f"{right.reference!r} after; score both on the same sets"
            )
        name = f"{left.test_set}/{left.language}" if by_set and left.test_set else left.language
        groups.setdefault(name, []).append((old[id_], new[id_]))
    return dict(sorted(groups.items()))


def _are_translations(score: Score) -> bool:
    return score.utterances[0].prediction.task == "translate"


def _samples(pairs: Sequence[tuple[Utterance, Utterance]]) -> tuple[Sample, Sample, str]:
    """Return the samples of both sides, in one order, and what is drawn."""
    (old, by), (new, _) = (build_sample([pair[side] for pair in pairs]) for side in (0, 1))
    return old, new, by
