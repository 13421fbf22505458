"""Scores of speech translated into English: BLEU and chrF by sacrebleu, on the texts as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from infer.score.resampling import Floats, draw_sums
from infer.score.statistics import BootstrapSettings
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
    counts = np.array([_counts(p.hypothesis, p.reference) for p in spoken], np.float64)
    draws = bleu_of(draw_sums(counts, np.random.default_rng(settings.seed), settings.num_draws))
    tail = (1 - settings.level) / 2
    interval = np.quantile(draws, [tail, 1 - tail]).tolist() if len(spoken) > 1 else None
    return {**found, "bleu_interval": interval, "signatures": signatures}


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


def _counts(hypothesis: str, reference: str) -> list[int]:
    """Return the counts of one utterance, which add up over a corpus."""
    found = _metrics()[0].corpus_score([hypothesis], [[reference]])
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


@cache
def _metrics() -> tuple[Any, Any]:
    """Import sacrebleu on first use; only translations need it."""
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(), CHRF()
