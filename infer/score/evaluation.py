"""Score a list of predictions: per language and over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from infer.score.breakdown import build_sample, count_confusion, count_signs, error_against, worst_utterances
from infer.score.rates import EditCounts, add_up, count_edits
from infer.score.statistics import BootstrapSettings, Interval, Sample, bootstrap_rate
from infer.score.translation import score_translations
from infer.score.utterances import Prediction, Utterance, count_utterance, verify_predictions

__all__ = ["Prediction", "Score", "Utterance", "score_predictions"]


@dataclass(frozen=True)
class Score:
    """Figures of one evaluation, ready for JSON: rates as fractions, None where nothing could be divided."""

    overall: dict[str, Any]
    """`wer cer wer_ortho cer_ortho` pooled over all utterances, `headline`, `language_accuracy`, `rtfx`, `utterances`,
    `audio_s`, and the word edits `substitutions deletions insertions`.

    `words` and `characters` hold `units substitutions deletions insertions` after the normaliser; `intervals` holds
    the two ends for `headline wer cer` (or None), with `by` (utterance or speaker), `drawn` (how many), `methods`,
    `level` and `num_draws`; `signs` counts utterances that look invented.

    Translations have `bleu` and `chrf`, too; BLEU is their headline, and `higher_is_better` is true."""
    languages: dict[str, dict[str, Any]]
    """The same by ISO code, with `headline_metric` and `error_by`; `rtfx` is None, since languages share batches and
    the clock."""
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    """Language spoken, language detected, number of utterances."""
    error_by: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The headline in bins of `duration_s`, `loudness_dbfs` and `snr_db`: `low high utterances headline interval`."""
    worst: list[dict[str, Any]] = field(default_factory=list)
    """Utterances that cost most, worst first: `id language metric edits units rate reference hypothesis signs`."""
    utterances: tuple[Utterance, ...] = field(default=(), compare=False, repr=False)
    """Every utterance with its normalised texts and edits, in the order of the predictions; not in the report."""

    @classmethod
    def from_report(cls, report: Mapping[str, Any]) -> Score:
        """Return the score that a `report.json` read back holds, also one of an older version."""
        extra = {key: report[key] for key in ("confusion", "error_by", "worst") if key in report}
        return cls(report["overall"], report["languages"], **extra)


def score_predictions(
    predictions: Sequence[Prediction], *, processing_s: float, bootstrap: BootstrapSettings | None = None
) -> Score:
    """Score predictions at corpus level, per language and overall.

    `headline` of a language is its headline metric. The overall `headline` is the mean of those over languages: words
    and characters cannot be pooled into one rate, and no language should count more for having longer sentences.

    Args:
        predictions: at least one, ids unique; the order has no influence.
        processing_s: seconds from audio to text for all of them; 0 if it was not measured, then `rtfx` is None.
        bootstrap: how the intervals are drawn.

    Raises:
        ValueError: if there is no prediction, an id comes twice, a reference is empty though something is said, a
            language has no profile, or a time is negative or not finite.
    """
    settings = bootstrap or BootstrapSettings()
    if not (math.isfinite(processing_s) and processing_s >= 0):
        raise ValueError(f"processing_s={processing_s} is no time; give seconds, or 0 if it was not measured")
    verify_predictions(predictions)
    utterances = tuple(map(count_utterance, predictions))
    ordered = sorted(utterances, key=lambda u: u.prediction.id)
    by_language: dict[str, list[Utterance]] = {}
    for utterance in ordered:
        by_language.setdefault(utterance.prediction.language, []).append(utterance)

    parts = {language: _count_language(group, settings) for language, group in sorted(by_language.items())}
    return Score(
        overall=_overall(ordered, list(parts.values()), settings, processing_s=processing_s),
        languages={language: part.figures for language, part in parts.items()},
        confusion=count_confusion(ordered),
        error_by=error_against(ordered, settings),
        worst=worst_utterances(ordered),
        utterances=utterances,
    )


@dataclass(frozen=True)
class _Part:
    """One language: its figures, and the counts that the overall ones are made of."""

    figures: dict[str, Any]
    samples: Mapping[str, Sample]
    """By metric, and `headline`."""
    written: tuple[EditCounts, EditCounts]
    """Words and characters before the normaliser."""


def _count_language(utterances: Sequence[Utterance], settings: BootstrapSettings) -> _Part:
    """Score the utterances of one language."""
    metric = utterances[0].metric
    samples = {name: build_sample(utterances, metric=name)[0] for name in ("wer", "cer")}
    samples["headline"], by = build_sample(utterances)
    written = _count_as_written(utterances)
    figures = {"headline_metric": metric, **_figures(utterances, written, rtfx=None)}
    figures["headline"] = figures[metric]
    figures["intervals"] = {
        **_ends({name: bootstrap_rate([sample], settings) for name, sample in samples.items()}),
        **_drawing(settings, by=by, num_drawn=len(samples["headline"].units)),
    }
    figures["error_by"] = error_against(utterances, settings)
    if utterances[0].prediction.task == "translate":
        scores = score_translations(utterances, settings)
        figures |= {"headline_metric": "bleu", "headline": scores["bleu"], "higher_is_better": True, **scores}
        figures["intervals"]["headline"] = scores["bleu_interval"]
    return _Part(figures, samples, written)


def _overall(
    utterances: Sequence[Utterance], parts: Sequence[_Part], settings: BootstrapSettings, *, processing_s: float
) -> dict[str, Any]:
    """Pool the languages; the headline and its interval are of the mean over them."""
    written = (
        sum((part.written[0] for part in parts), EditCounts()),
        sum((part.written[1] for part in parts), EditCounts()),
    )
    audio_s = math.fsum(u.prediction.duration_s for u in utterances)
    figures = _figures(utterances, written, rtfx=audio_s / processing_s if processing_s else None)
    headlines = [part.figures["headline"] for part in parts if part.figures["headline"] is not None]
    figures["headline"] = fmean(headlines) if headlines else None
    by = {part.figures["intervals"]["by"] for part in parts}
    samples = [part.samples["headline"] for part in parts]
    figures["intervals"] = {
        **_ends(
            {
                "wer": bootstrap_rate([_join([part.samples["wer"] for part in parts])], settings),
                "cer": bootstrap_rate([_join([part.samples["cer"] for part in parts])], settings),
                "headline": bootstrap_rate(samples, settings),
            }
        ),
        **_drawing(
            settings,
            by=by.pop() if len(by) == 1 else "speaker or utterance",
            num_drawn=sum(len(s.units) for s in samples),
        ),
    }
    if utterances[0].prediction.task == "translate":
        figures |= {"headline_metric": "bleu", "higher_is_better": True, **score_translations(utterances, settings)}
        figures["intervals"]["headline"] = None  # the mean BLEU of languages, each drawn for itself, is no ratio
    return figures


def _drawing(settings: BootstrapSettings, *, by: str, num_drawn: int) -> dict[str, Any]:
    return {"by": by, "drawn": num_drawn, "level": settings.level, "num_draws": settings.num_draws}


def _count_as_written(utterances: Sequence[Utterance]) -> tuple[EditCounts, EditCounts]:
    """Count words and characters before the normaliser."""
    references = [u.prediction.reference for u in utterances]
    hypotheses = [u.prediction.hypothesis for u in utterances]
    return (
        count_edits(references, hypotheses, unit="word"),
        count_edits(references, hypotheses, unit="character"),
    )


def _figures(
    utterances: Sequence[Utterance], written: tuple[EditCounts, EditCounts], *, rtfx: float | None
) -> dict[str, Any]:
    """Lay out the figures of one group of utterances under the keys of the report."""
    words = add_up(np.array([u.words for u in utterances], np.int32))
    characters = add_up(np.array([u.characters for u in utterances], np.int32))
    return {
        "wer": words.rate,
        "cer": characters.rate,
        "wer_ortho": written[0].rate,
        "cer_ortho": written[1].rate,
        "headline": None,
        "language_accuracy": _language_accuracy(u.prediction for u in utterances),
        "rtfx": rtfx,
        "utterances": len(utterances),
        "audio_s": math.fsum(u.prediction.duration_s for u in utterances),
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "words": _counts(words),
        "characters": _counts(characters),
        "speakers": len({u.prediction.speaker for u in utterances} - {None}),
        "signs": count_signs(utterances),
    }


def _counts(counts: EditCounts) -> dict[str, int]:
    return {
        "units": counts.num_units,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
    }


def _language_accuracy(predictions: Iterable[Prediction]) -> float | None:
    """Share of the utterances with a detected language where it is the right one; None if none was detected."""
    is_right = [
        p.detected_language == p.language for p in predictions if p.detected_language is not None and not p.no_speech
    ]
    return sum(is_right) / len(is_right) if is_right else None


def _join(samples: Sequence[Sample]) -> Sample:
    return Sample(np.concatenate([s.edits for s in samples]), np.concatenate([s.units for s in samples]))


def _ends(intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Lay out the two ends of intervals, and below `methods` how each was found."""
    ends = {name: None if found is None else [found.low, found.high] for name, found in intervals.items()}
    return {**ends, "methods": {name: found.method for name, found in intervals.items() if found is not None}}
