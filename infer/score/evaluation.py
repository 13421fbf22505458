"""Score a list of predictions: per language and over all of them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from infer.score.normalise import headline_metric
from infer.score.rates import Tally, tally


@dataclass(frozen=True)
class Prediction:
    """One utterance as it was written and as the model heard it."""

    id: str
    language: str
    """ISO code from the manifest; it picks the normaliser."""
    detected_language: str | None
    """ISO code the model chose by itself; None where the language was given to it."""
    reference: str
    hypothesis: str
    duration_s: float
    """Seconds of audio."""


@dataclass(frozen=True)
class Score:
    """Figures of one evaluation, ready for JSON: rates as fractions, None where nothing could be divided."""

    overall: dict[str, Any]
    """`wer cer wer_ortho cer_ortho` pooled over all utterances, `headline`, `language_accuracy`, `rtfx`, `utterances`,
    `audio_s`, and the word edits `substitutions deletions insertions`."""
    languages: dict[str, dict[str, Any]]
    """The same by ISO code, with `headline_metric`; `rtfx` is None, since languages share batches and the clock."""


def score_predictions(predictions: Sequence[Prediction], *, processing_s: float) -> Score:
    """Score predictions at corpus level, per language and overall.

    `headline` of a language is its headline metric. The overall `headline` is the mean of those over languages: words
    and characters cannot be pooled into one rate, and no language should count more for having longer sentences.

    Args:
        predictions: at least one, ids unique; the order has no influence.
        processing_s: seconds from audio to text for all of them; 0 if it was not measured, then `rtfx` is None.

    Raises:
        ValueError: if there is no prediction, an id comes twice, a language is not a code, or a time is negative or
            not finite.
    """
    _verify(predictions, processing_s)
    by_language: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_language.setdefault(prediction.language, []).append(prediction)

    languages: dict[str, dict[str, Any]] = {}
    total = Tally()
    for language, group in sorted(by_language.items()):
        counts = tally([p.reference for p in group], [p.hypothesis for p in group], [language] * len(group))
        total += counts
        metric = headline_metric(language)
        headline = getattr(counts.rates, metric)
        languages[language] = {"headline_metric": metric, **_figures(group, counts, headline=headline, rtfx=None)}

    headlines = [figures["headline"] for figures in languages.values() if figures["headline"] is not None]
    audio_s = math.fsum(p.duration_s for p in predictions)
    overall = _figures(
        predictions,
        total,
        headline=fmean(headlines) if headlines else None,
        rtfx=audio_s / processing_s if processing_s else None,
    )
    return Score(overall=overall, languages=languages)


def _figures(
    predictions: Sequence[Prediction], counts: Tally, *, headline: float | None, rtfx: float | None
) -> dict[str, Any]:
    """Lay out the figures of one group of predictions under the keys of the report."""
    rates = counts.rates
    return {
        "wer": rates.wer,
        "cer": rates.cer,
        "wer_ortho": rates.wer_ortho,
        "cer_ortho": rates.cer_ortho,
        "headline": headline,
        "language_accuracy": _language_accuracy(predictions),
        "rtfx": rtfx,
        "utterances": rates.num_utterances,
        "audio_s": math.fsum(p.duration_s for p in predictions),
        "substitutions": rates.substitutions,
        "deletions": rates.deletions,
        "insertions": rates.insertions,
    }


def _language_accuracy(predictions: Iterable[Prediction]) -> float | None:
    """Share of the utterances with a detected language where it is the right one; None if none was detected."""
    is_right = [p.detected_language == p.language for p in predictions if p.detected_language is not None]
    return sum(is_right) / len(is_right) if is_right else None


def _verify(predictions: Sequence[Prediction], processing_s: float) -> None:
    """Refuse what would make a figure meaningless."""
    if not predictions:
        raise ValueError("there are no predictions to score; see that dataset.test names a set with at least one clip")
    if not (math.isfinite(processing_s) and processing_s >= 0):
        raise ValueError(f"processing_s={processing_s} is no time; give seconds, or 0 if it was not measured")
    id_, count = Counter(p.id for p in predictions).most_common(1)[0]
    if count > 1:
        raise ValueError(f"id {id_!r} comes {count} times in the predictions; every utterance needs an id of its own")
    for prediction in predictions:
        if not (math.isfinite(prediction.duration_s) and prediction.duration_s >= 0):
            raise ValueError(f"duration_s={prediction.duration_s} of {prediction.id!r} is no time; give seconds")
