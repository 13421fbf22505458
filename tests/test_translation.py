"""BLEU and chrF are sacrebleu's, and so is the BLEU of every draw."""

import numpy as np
import pytest
import sacrebleu

from infer.score.evaluation import Prediction, score_predictions
from infer.score.report import render_before_after, render_table
from infer.score.statistics import BootstrapSettings
from infer.score.translation import _counts, bleu_of

REFERENCES = [
    "The cat sat on the mat in the morning.",
    "I would like a cup of tea, please.",
    "He did not come to the office yesterday.",
    "It is cold outside.",
]
HYPOTHESES = [
    "The cat sat on a mat in the morning.",
    "I want a cup of tea please.",
    "He did not come to the office yesterday.",
    "Outside, it's cold.",
]


def _predictions(hypotheses=HYPOTHESES, **changes):
    rows = enumerate(zip(REFERENCES, hypotheses, strict=True))
    return [
        Prediction(str(i), "de" if i % 2 else "fr", "de", r, h, 2.0, **{"task": "translate", **changes})
        for i, (r, h) in rows
    ]


def test_scores_are_sacrebleus_on_the_texts_as_written():
    score = score_predictions(_predictions(), processing_s=0)
    assert score.overall["bleu"] == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score / 100)
    assert score.overall["chrf"] == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score / 100)
    german = sacrebleu.corpus_bleu(HYPOTHESES[1::2], [REFERENCES[1::2]]).score / 100
    figures = score.languages["de"]
    assert figures["headline_metric"] == "bleu" and figures["higher_is_better"]
    assert figures["headline"] == figures["bleu"] == pytest.approx(german)
    assert score.overall["headline"] == pytest.approx((german + score.languages["fr"]["bleu"]) / 2)
    assert "version:" in score.overall["signatures"]["bleu"]


def test_error_rates_of_translations_are_by_the_english_rule():
    rows = [Prediction("a", "zh", None, "The colour isn't red.", "the color is not red", 2.0, task="translate")]
    assert score_predictions(rows, processing_s=0).languages["zh"]["wer"] == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_the_bleu_of_sums_is_that_of_the_corpus(seed):
    rng = np.random.default_rng(seed)
    words = ["a", "b", "c", "d", "e", "f"]
    references = [" ".join(rng.choice(words, size=rng.integers(1, 9))) for _ in range(rng.integers(1, 6))]
    hypotheses = [" ".join(w for w in r.split() if rng.random() > 0.3) for r in references]
    counts = np.array([_counts(h, r) for h, r in zip(hypotheses, references, strict=True)], float).sum(0, keepdims=True)
    assert bleu_of(counts)[0] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score / 100, abs=1e-12)


def test_the_interval_is_that_of_sacrebleus_own_bootstrap():
    rng = np.random.default_rng(3)
    references = [REFERENCES[i] for i in rng.integers(0, 4, 200)]
    hypotheses = [" ".join(w for w in r.split() if rng.random() > 0.15) for r in references]
    rows = [
        Prediction(f"{i:03}", "de", None, r, h, 2.0, task="translate")
        for i, (r, h) in enumerate(zip(references, hypotheses, strict=True))
    ]
    low, high = score_predictions(rows, processing_s=0).languages["de"]["intervals"]["headline"]
    theirs = sacrebleu.metrics.BLEU().corpus_score(hypotheses, [references], n_bootstrap=1000)
    assert (high - low) / 2 == pytest.approx(theirs._ci / 100, rel=0.15)
    assert (high + low) / 2 == pytest.approx(theirs._mean / 100, rel=0.03)


def test_silence_and_emptiness_do_not_break_it():
    silent = Prediction("a", "de", None, "", "you", 2.0, task="translate", no_speech=True)
    score = score_predictions([silent], processing_s=0, bootstrap=BootstrapSettings(num_draws=100))
    assert (score.overall["bleu"], score.overall["headline"]) == (None, None)
    empty = score_predictions(_predictions([""] * 4), processing_s=0)
    assert (empty.overall["bleu"], empty.overall["chrf"]) == (0.0, 0.0)


def test_two_tasks_have_no_common_score():
    rows = [*_predictions()[:1], Prediction("x", "de", None, "ja", "ja", 1.0)]
    with pytest.raises(ValueError, match=r"'0' has the task translate and 'x' transcribe.*one task at a time"):
        score_predictions(rows, processing_s=0)
    with pytest.raises(ValueError, match="task='translated' of '0'"):
        score_predictions(_predictions(task="translated"), processing_s=0)


def test_tables_show_bleu_and_that_more_is_better(capsys):
    from rich.console import Console

    before = score_predictions(_predictions(["The cat", "tea", "He", "cold"]), processing_s=0)
    after = score_predictions(_predictions(), processing_s=0)
    console = Console(width=140, color_system=None)
    console.print(render_table(after), render_before_after(before, after))
    shown = capsys.readouterr().out
    assert "BLEU %" in shown and "chrF %" in shown and "more is better" in shown
    table = render_before_after(before, after)
    assert next(iter(table.columns[4].cells)).style == "green"
