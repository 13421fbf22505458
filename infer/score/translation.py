"""Scores of speech translated into English: BLEU and chrF by sacrebleu, on the texts as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from infer.score.resampling import Floats, draw_sums
from infer.score.statistics import BootstrapSettings, Comparison, Interval
from infer.score.utterances import Utterance

MAX_ORDER = 4
"""Words of the longest n-gram of BLEU."""


def score_translations(utterances: Sequence[Utterance], settings: BootstrapSettings) -> dict[str, Any]:
    """Compute BLEU and chrF of a group of utterances, as fractions, with the interval of BLEU.

    Args:
        utterances: in a fixed order; clips without speech are left out, since neither score knows an empty reference.
        settings: of the interval.

    Returns:
        `bleu` and `chrf` (None without an utterance), `bleu_interval`, and the `signatures` by which sacrebleu names
        what it computed.
    """
    spoken = [u.prediction for u in utterances if not u.prediction.no_speech]
    bleu, chrf = _metrics()
    signatures = {"bleu": "", "chrf": ""}
    if not spoken:
        return {"bleu": None, "chrf": None, "bleu_interval": None, "signatures": signatures}
    hypotheses, references = [p.hypothesis for p in spoken], [[p.reference for p in spoken]]
    found = {
        # 100.00000000000004 for a perfect text
        "bleu": min(1.0, bleu.corpus_score(hypotheses, references).score / 100),
        "chrf": min(1.0, chrf.corpus_score(hypotheses, references).score / 100),
    }
    signatures = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    draws = bleu_of(
        draw_sums(
            _counts_of([u for u in utterances if not u.prediction.no_speech]),
            np.random.default_rng(settings.seed),
            settings.num_draws,
        )
    )
    tail = (1 - settings.level) / 2
    interval = np.quantile(draws, [tail, 1 - tail]).tolist() if len(spoken) > 1 else None
    return {**found, "bleu_interval": interval, "signatures": signatures}


def compare_translations(
    groups: Sequence[Sequence[tuple[Utterance, Utterance]]], settings: BootstrapSettings | None = None
) -> Comparison | None:
    """Compare the BLEU of two artefacts on the same utterances: each draw takes the same ones for both.

    Args:
        groups: for each language, utterances before and after; clips without speech are left out.
        settings: draws, level and seed.

    Returns:
        The comparison of the mean over languages; None where nothing was said.

    Source: Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation.
    """
    settings = settings or BootstrapSettings()
    spoken = [[pair for pair in pairs if not pair[0].prediction.no_speech] for pairs in groups]
    sides = [[_counts_of([pair[side] for pair in pairs]) for side in (0, 1)] for pairs in spoken if pairs]
    if not sides:
        return None
    before, after = (
        float(np.mean([bleu_of(pair[side].sum(axis=0, keepdims=True))[0] for pair in sides])) for side in (0, 1)
    )
    num_drawn = sum(len(old) for old, _ in sides)
    if num_drawn < 2 or all(np.array_equal(old, new) for old, new in sides):
        # one utterance alone, or the same counts everywhere: nothing that chance could not do
        spread = Interval(min(after - before, 0.0), max(after - before, 0.0))
        return Comparison(before, after, after - before, spread, 1.0, 0.5, num_drawn, higher_is_better=True)
    rng = np.random.default_rng(settings.seed)
    differences = np.zeros(settings.num_draws)
    for old, new in sides:
        sums = draw_sums(np.concatenate([old, new], axis=1), rng, settings.num_draws)
        width = old.shape[1]
        differences += (bleu_of(sums[:, width:]) - bleu_of(sums[:, :width])) / len(sides)
    num_below, num_above = int((differences < 0).sum()), int((differences > 0).sum())
    tail = (1 - settings.level) / 2
    low, high = np.quantile(differences, [tail, 1 - tail]).tolist()
    # one more draw, and the ties, on the side of the doubt
    smaller = (len(differences) - max(num_below, num_above) + 1) / (len(differences) + 1)
    return Comparison(
        before=before,
        after=after,
        difference=after - before,
        interval=Interval(low, high),
        p=min(1.0, 2 * smaller),
        probability_better=0.5 + (num_above - num_below) / 2 / len(differences),
        num_drawn=num_drawn,
        higher_is_better=True,
    )


def bleu_of(counts: Floats) -> Floats:
    """Compute BLEU, a fraction, from summed counts: matches and n-grams of each order, words heard, words written.

    Args:
        counts: (R, 2 * MAX_ORDER + 2).

    Source: Papineni et al. 2002; a corpus without any match of an order is smoothed as sacrebleu does (`exp`).
    """
    matches, totals = counts[:, :MAX_ORDER], counts[:, MAX_ORDER : 2 * MAX_ORDER]
    heard, written = counts[:, -2], counts[:, -1]
    halvings = np.cumsum((matches == 0) & (totals > 0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothed = np.where(matches > 0, matches, 0.5**halvings) / totals
        penalty = np.where(heard < written, np.exp(1 - written / heard), 1.0)
        values = penalty * np.exp(np.log(smoothed).mean(axis=1))
    return np.where((totals[:, -1] > 0) & (matches[:, 0] > 0), values, 0.0)


def _counts_of(utterances: Sequence[Utterance]) -> Floats:
    """Return the counts of utterances, (N, 2 * MAX_ORDER + 2)."""
    return np.array([_counts(u.prediction.hypothesis, u.prediction.reference) for u in utterances], np.float64)


def _counts(hypothesis: str, reference: str) -> list[int]:
    """Return the counts of one utterance, which add up over a corpus."""
    found = _metrics()[0].corpus_score([hypothesis], [[reference]])
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


@cache
def _metrics() -> tuple[Any, Any]:
    """Import sacrebleu on first use; only translations need it."""
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(), CHRF()
