"""Beyond the rate: confusion, bins, worst utterances and intervals are those of a count by hand."""

import dataclasses
import json
import random

import pytest

from infer.score.breakdown import EDGES, MIN_SPEAKERS, build_sample
from infer.score.evaluation import Prediction, score_predictions
from infer.score.rates import compute_rates
from infer.score.statistics import BootstrapSettings, bootstrap_rate, pool
from infer.score.utterances import count_utterance

PREDICTIONS = [
    Prediction("a", "en", "en", "the cat sat here", "the cat sat here", 1.5, snr_db=30.0),
    Prediction("b", "en", "de", "yes indeed", "ja doch", 4.0, snr_db=3.0),
    Prediction("c", "de", "de", "eins zwei drei", "eins zwei", 4.5, snr_db=4.0, loudness_dbfs=-27.0),
    Prediction("d", "de", None, "vier", "vier", 12.0),
    Prediction("e", "de", "en", "", "you", 1.0, no_speech=True),
]


def test_languages_taken_for_one_another_are_counted():
    score = score_predictions(PREDICTIONS, processing_s=0)
    assert score.confusion == {"de": {"de": 1}, "en": {"de": 1, "en": 1}}  # nothing is said in e, nothing detected in d
    assert score.languages["de"]["language_accuracy"] == 1.0
    assert score.overall["language_accuracy"] == 2 / 3


def test_bins_hold_the_rates_of_their_utterances():
    score = score_predictions(PREDICTIONS, processing_s=0)
    assert set(score.error_by) == set(EDGES)
    bins = {(row["low"], row["high"]): row for row in score.error_by["duration_s"]}
    assert {key: row["utterances"] for key, row in bins.items()} == {(1, 2): 2, (2, 5): 2, (10, 15): 1}
    assert bins[2, 5]["headline"] == pytest.approx((1.0 + 1 / 3) / 2)  # en 2 of 2, de 1 of 3
    assert bins[1, 2]["headline"] == 0.0  # the silent clip has no reference word: no rate of its own
    assert [(row["low"], row["utterances"]) for row in score.error_by["snr_db"]] == [(0, 2), (30, 1)]
    assert [row["utterances"] for row in score.error_by["loudness_dbfs"]] == [1]
    german = score.languages["de"]["error_by"]["duration_s"]
    assert [row["headline"] for row in german] == [None, 1 / 3, 0.0]
    json.dumps(score.error_by, allow_nan=False)


def test_no_utterance_falls_between_two_bins():
    for field, edges in EDGES.items():
        for value in edges[1:-1]:
            row = dataclasses.replace(PREDICTIONS[0], **{field: float(value)})
            if field == "duration_s":
                assert row.duration_s == value
            (found,) = score_predictions([row], processing_s=0).error_by[field]
            assert found["low"] == value


def test_the_worst_are_those_with_most_edits_beyond_what_is_usual():
    many = " ".join("abcdefghij")
    rows = [
        Prediction("long", "en", None, many, many.replace("a", "x").replace("b", "y"), 9.0),  # 2 of 10
        Prediction("short", "en", None, "k l", "m n", 1.0),  # 2 of 2: as many, where fewer are usual
        Prediction("one", "en", None, "o p", "o q", 1.0),
        *(Prediction(f"right {i}", "en", None, many, many, 9.0) for i in range(9)),
    ]
    worst = score_predictions(rows, processing_s=0).worst
    assert [row["id"] for row in worst] == ["short", "long", "one"]
    assert worst[1] == {
        "id": "long",
        "language": "en",
        "metric": "wer",
        "edits": 2,
        "units": 10,
        "rate": 0.2,
        "reference": rows[0].reference,
        "hypothesis": rows[0].hypothesis,
        "signs": [],
    }


def _voices(num_speakers, *, num=60):
    rng = random.Random(1)
    return [
        Prediction(f"{i:03}", "en", None, "a b c d e", " ".join(w if rng.random() > 0.2 else "x" for w in "abcde"), 2.0,
                   speaker=f"s{i % num_speakers}" if num_speakers else None)
        for i in range(num)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("num_speakers", "by", "drawn"), [(None, "utterance", 60), (5, "utterance", 60), (6, "speaker", 6)]
)
def test_speakers_are_drawn_where_there_are_enough(num_speakers, by, drawn):
    assert MIN_SPEAKERS == 6
    figures = score_predictions(_voices(num_speakers), processing_s=0).languages["en"]
    assert (figures["intervals"]["by"], figures["intervals"]["drawn"]) == (by, drawn)
    assert figures["speakers"] == (num_speakers or 0)


def test_the_interval_of_the_report_is_that_of_the_edits():
    predictions = _voices(None)
    settings = BootstrapSettings(num_draws=500, seed=4)
    figures = score_predictions(predictions, processing_s=0, bootstrap=settings).languages["en"]
    counted = [compute_rates([p.reference], [p.hypothesis], ["en"]) for p in predictions]
    edits = [r.substitutions + r.deletions + r.insertions for r in counted]
    expected = bootstrap_rate([pool(edits, [r.num_words for r in counted], None)], settings)
    assert figures["intervals"]["headline"] == figures["intervals"]["wer"] == [expected.low, expected.high]
    assert figures["intervals"]["num_draws"] == 500
    assert expected.low < figures["wer"] < expected.high
    sample, by = build_sample([count_utterance(p) for p in predictions])
    assert (sample.rate, by) == (figures["headline"], "utterance")


def test_word_and_character_edits_stand_side_by_side():
    score = score_predictions([Prediction("a", "zh", None, "我们今天去", "我门今天", 2.0)], processing_s=0)
    assert score.overall["characters"] == {"units": 5, "substitutions": 1, "deletions": 1, "insertions": 0}
    assert score.overall["words"] == {"units": 1, "substitutions": 1, "deletions": 0, "insertions": 0}
