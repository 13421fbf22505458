"""Score a list of predictions: per language and over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from infer.score.breakdown import build_sample, count_confusion, count_signs, error_against, worst_utterances
from infer.score.normalise import headline_metric
from infer.score.rates import EditCounts, count_edits
from infer.score.statistics import BootstrapSettings, Interval, Sample, bootstrap_rate
from infer.score.utterances import Prediction, Utterance, count_utterance, verify_predictions

__all__ = ["Prediction", "Score", "Utterance", "score_predictions"]


@dataclass(frozen=True)
class Score:
    """Figures of one evaluation, ready for JSON: rates as fractions, None where nothing could be divided."""

    overall: dict[str, Any]
    """`wer cer wer_ortho cer_ortho` pooled over all utterances, `headline`, `language_accuracy`, `rtfx`, `utterances`,
    `audio_s`, and the word edits `substitutions deletions insertions`.

    `words` and `characters` hold `units substitutions deletions insertions` after the normaliser; `intervals` holds
    the two ends for `headline wer cer` (or None), with `by` (utterance or speaker), `drawn` (how many), `level` and
    `num_draws`; `signs` counts utterances that look invented."""
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

    languages: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[Sample]] = {"headline": [], "wer": [], "cer": []}
    for language, group in sorted(by_language.items()):
        metric = headline_metric(language)
        own = {name: build_sample(group, metric=name)[0] for name in ("wer", "cer")}
        intervals: dict[str, Any] = {name: _ends(bootstrap_rate([own[name]], settings)) for name in own}
        intervals["headline"] = intervals[metric]
        figures = _figures(group, rtfx=None)
        for name, sample in (*own.items(), ("headline", own[metric])):
            samples[name].append(sample)
        languages[language] = {
            "headline_metric": metric,
            **figures,
            "headline": figures[metric],
            "intervals": {
                **intervals,
                "by": build_sample(group)[1],
                "drawn": len(own[metric].units),
                "level": settings.level,
                "num_draws": settings.num_draws,
            },
            "error_by": error_against(group, settings),
        }

    headlines = [figures["headline"] for figures in languages.values() if figures["headline"] is not None]
    audio_s = math.fsum(p.duration_s for p in predictions)
    by = {figures["intervals"]["by"] for figures in languages.values()}
    overall = {
        **_figures(ordered, rtfx=audio_s / processing_s if processing_s else None),
        "headline": fmean(headlines) if headlines else None,
        "intervals": {
            "wer": _ends(bootstrap_rate([_join(samples["wer"])], settings)),
            "cer": _ends(bootstrap_rate([_join(samples["cer"])], settings)),
            "headline": _ends(bootstrap_rate(samples["headline"], settings)),
            "by": by.pop() if len(by) == 1 else "speaker or utterance",
            "drawn": sum(len(sample.units) for sample in samples["headline"]),
            "level": settings.level,
            "num_draws": settings.num_draws,
        },
    }
    return Score(
        overall=overall,
        languages=languages,
        confusion=count_confusion(ordered),
        error_by=error_against(ordered, settings),
        worst=worst_utterances(ordered),
        utterances=utterances,
    )


def _figures(utterances: Sequence[Utterance], *, rtfx: float | None) -> dict[str, Any]:
    """Lay out the figures of one group of utterances under the keys of the report."""
    references = [u.prediction.reference for u in utterances]
    hypotheses = [u.prediction.hypothesis for u in utterances]
    words = sum((EditCounts(*u.words[:4]) for u in utterances), EditCounts())
    characters = sum((EditCounts(*u.characters[:4]) for u in utterances), EditCounts())
    return {
        "wer": words.rate,
        "cer": characters.rate,
        "wer_ortho": count_edits(references, hypotheses, unit="word").rate,
        "cer_ortho": count_edits(references, hypotheses, unit="character").rate,
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


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
