"""BLEU and chrF are sacrebleu's, and so is the BLEU of every draw."""

import numpy as np
import pytest
import sacrebleu

from infer.score.comparison import compare_scores, measure_retention
from infer.score.contest import describe_comparison
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


def _score_of(hypotheses, num=10):
    """Score the four sentences, each heard `num` times, half of them in each of two languages."""
    rows = [
        Prediction(f"{n}-{i}", "de" if i % 2 else "fr", None, r, h, 2.0, task="translate")
        for n in range(num)
        for i, (r, h) in enumerate(zip(REFERENCES, hypotheses, strict=True))
    ]
    return score_predictions(rows, processing_s=0)


def test_translations_are_compared_by_bleu_and_more_is_better():
    before, after = _score_of(HYPOTHESES), _score_of(REFERENCES)
    found = compare_scores(before, after)
    assert found.overall.before == pytest.approx(before.overall["headline"])
    assert found.overall.after == pytest.approx(1.0)
    assert found.languages["fr"].before == pytest.approx(before.languages["fr"]["bleu"])
    assert found.overall.verdict == "better" and found.overall.loss < 0 < found.overall.difference
    assert describe_comparison(found.overall, "a", "b").startswith("b is better than a: BLEU ")
    assert compare_scores(after, before).overall.verdict == "worse"
    assert compare_scores(before, before).overall.verdict == "no difference shown"


def test_a_fall_of_bleu_where_nothing_was_trained_is_forgetting():
    before = _score_of(REFERENCES)
    after = _score_of([REFERENCES[0], HYPOTHESES[3], REFERENCES[2], HYPOTHESES[1]])  # de: other sentences
    found = measure_retention(before, after, targets=["fr"])
    assert found.lost == ("de",)
    assert found.forgetting.loss == pytest.approx(before.languages["de"]["bleu"] - after.languages["de"]["bleu"])


def test_the_paired_interval_of_bleu_is_that_of_sacrebleus_own_paired_bootstrap():
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "went", "to", "see", "his", "old", "friends", "there"]
    references = [" ".join(rng.choice(words, size=12)) for _ in range(60)]

    def worsened(share):
        return [" ".join(w for w in r.split() if rng.random() > share) for r in references]

    old, new = worsened(0.25), worsened(0.2)
    rows = [
        [
            Prediction(str(i), "de", None, r, h, 2.0, task="translate")
            for i, (r, h) in enumerate(zip(references, side, strict=True))
        ]
        for side in (old, new)
    ]
    ours = compare_scores(*(score_predictions(side, processing_s=0) for side in rows)).overall
    test = PairedTest([("old", old), ("new", new)], {"BLEU": BLEU(references=[references])}, None, "bs", n_samples=1000)
    theirs = test()[1]["BLEU"]
    assert ours.after == pytest.approx(theirs[1].score / 100)
    assert (ours.p < 0.05) == (theirs[1].p_value < 0.05)
