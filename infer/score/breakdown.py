"""Where the errors are: languages taken for one another, error against length, loudness and noise, worst utterances."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from infer.score.signs import SIGNS
from infer.score.statistics import BootstrapSettings, Sample, bootstrap_rate, pool
from infer.score.utterances import Utterance

EDGES: dict[str, tuple[float, ...]] = {
    "duration_s": (0, 1, 2, 5, 10, 15, 20, 25, 30, 60, math.inf),
    "loudness_dbfs": (-math.inf, -50, -40, -35, -30, -25, -20, -15, math.inf),
    "snr_db": (-math.inf, 0, 5, 10, 15, 20, 25, 30, 40, math.inf),
}
"""Bins by field of `Prediction`; fixed, so that two reports can be laid side by side."""

MIN_SPEAKERS = 6
"""Fewer voices show too little of how voices differ; then utterances are drawn."""


def build_sample(utterances: Sequence[Utterance], *, metric: str | None = None) -> tuple[Sample, str]:
    """Return the edits of utterances of one language as what the bootstrap draws, and `speaker` or `utterance`.

    Args:
        utterances: of one language, in a fixed order.
        metric: `wer` or `cer`; that of the language where none is given.
    """
    by_speaker = len({u.prediction.speaker for u in utterances} - {None}) >= MIN_SPEAKERS
    counts = [u.counts if metric is None else u.words if metric == "wer" else u.characters for u in utterances]
    sample = pool(
        [c.substitutions + c.deletions + c.insertions for c in counts],
        [c.num_units for c in counts],
        [u.prediction.speaker for u in utterances] if by_speaker else None,
    )
    return sample, "speaker" if by_speaker else "utterance"


def count_confusion(utterances: Sequence[Utterance]) -> dict[str, dict[str, int]]:
    """Count, for each language that was spoken, the languages that were detected; clips without speech are left out."""
    confusion: dict[str, Counter[str]] = {}
    for utterance in utterances:
        prediction = utterance.prediction
        if prediction.detected_language is not None and not prediction.no_speech:
            confusion.setdefault(prediction.language, Counter())[prediction.detected_language] += 1
    return {spoken: dict(sorted(found.items())) for spoken, found in sorted(confusion.items())}


def count_signs(utterances: Sequence[Utterance]) -> dict[str, int]:
    """Count the utterances with each sign of a hallucination, with `any`, those left `empty`, and the silent clips."""
    found = Counter(sign for utterance in utterances for sign in utterance.signs)
    return {
        **{sign: found[sign] for sign in SIGNS},
        "any": sum(bool(utterance.signs) for utterance in utterances),
        "empty": sum(not u.hypothesis_norm and not u.prediction.no_speech for u in utterances),
        "no_speech_clips": sum(utterance.prediction.no_speech for utterance in utterances),
    }


def error_against(utterances: Sequence[Utterance], settings: BootstrapSettings) -> dict[str, list[dict[str, Any]]]:
    """Score utterances in bins of duration, loudness and noise.

    Args:
        utterances: in a fixed order; those without a measured level are left out of its bins.
        settings: of the intervals.

    Returns:
        By field of `EDGES`, the bins that hold something, lowest first: `low` and `high` (None where open),
        `utterances`, `headline` (mean over the languages in the bin) and its `interval`.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for field, edges in EDGES.items():
        rows = []
        for low, high in pairwise(edges):
            inside = [
                u for u in utterances if (value := getattr(u.prediction, field)) is not None and low <= value < high
            ]
            if inside:
                rows.append(
                    {
                        "low": low if math.isfinite(low) else None,
                        "high": high if math.isfinite(high) else None,
                        "utterances": len(inside),
                        **_headline(inside, settings),
                    }
                )
        tables[field] = rows
    return tables


def worst_utterances(utterances: Sequence[Utterance], *, limit: int = 50) -> list[dict[str, Any]]:
    """Return the utterances that cost most: those with most edits beyond what their language's rate lets expect.

    By rate alone, one-word clips would fill the list; by edits alone, long ones.

    Args:
        utterances: in any order.
        limit: most to return; those without an edit are never returned.
    """
    edits: Counter[str] = Counter()
    units: Counter[str] = Counter()
    for utterance in utterances:
        edits[utterance.prediction.language] += utterance.num_edits
        units[utterance.prediction.language] += utterance.counts.num_units
    rates = {language: edits[language] / max(1, units[language]) for language in edits}

    def excess(utterance: Utterance) -> float:
        return utterance.num_edits - rates[utterance.prediction.language] * utterance.counts.num_units

    wrong = [utterance for utterance in utterances if utterance.num_edits]
    wrong.sort(key=lambda u: (-excess(u), u.prediction.id))
    return [
        {
            "id": u.prediction.id,
            "language": u.prediction.language,
            "metric": u.metric,
            "edits": u.num_edits,
            "units": u.counts.num_units,
            "rate": u.num_edits / u.counts.num_units if u.counts.num_units else None,
            "reference": u.prediction.reference,
            "hypothesis": u.prediction.hypothesis,
            "signs": list(u.signs),
        }
        for u in wrong[:limit]
    ]


def _headline(utterances: Sequence[Utterance], settings: BootstrapSettings) -> dict[str, Any]:
    """Mean of the headline rates of the languages, with its interval."""
    by_language: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_language.setdefault(utterance.prediction.language, []).append(utterance)
    samples = [build_sample(group)[0] for _, group in sorted(by_language.items())]
    rates = [rate for sample in samples if (rate := sample.rate) is not None]
    interval = bootstrap_rate(samples, settings)
    return {
        "headline": fmean(rates) if rates else None,
        "interval": None if interval is None else [interval.low, interval.high],
    }
