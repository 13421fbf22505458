"""Two scores are compared clip by clip; what the training did not target is watched, and losses are named."""

import dataclasses
import json
import random

import pytest

from infer.score.comparison import compare_scores, measure_retention
from infer.score.evaluation import Prediction, Score, score_predictions

WORDS = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn"]


def _predictions(rng, language, rate, *, num=40, test_set=None, seed=0):
    """Clips of ten words, each word misheard with a chance of `rate`; the references depend on `seed` alone."""
    texts = random.Random(f"{language}{test_set}{seed}")
    predictions = []
    for i in range(num):
        words = texts.choices(WORDS, k=10)
        heard = [word if rng.random() > rate else "falsch" for word in words]
        predictions.append(
            Prediction(f"{test_set}-{language}-{i}", language, None, " ".join(words), " ".join(heard), 3.0,
                       test_set=test_set)
        )  # fmt: skip
    return predictions


def _score(rates, *, seed):
    rng = random.Random(seed)
    predictions = []
    for name, rate in rates.items():
        test_set, _, language = name.rpartition("/")
        predictions += _predictions(rng, language, rate, test_set=test_set or None)
    rng.shuffle(predictions)
    return score_predictions(predictions, processing_s=0)


def test_better_is_better_and_the_same_is_no_difference():
    before = _score({"de": 0.3, "fr": 0.1}, seed=1)
    found = compare_scores(before, _score({"de": 0.1, "fr": 0.1}, seed=2))
    assert found.languages["de"].verdict == "better" and found.languages["de"].p < 0.01
    assert found.languages["fr"].verdict == "no difference shown"
    assert found.overall.verdict == "better"
    assert found.overall.difference == pytest.approx(
        (found.languages["de"].difference + found.languages["fr"].difference) / 2
    )
    assert found.languages["de"].before == before.languages["de"]["headline"]
    assert json.loads(json.dumps(found.describe(), allow_nan=False))["languages"]["de"]["by"] == "utterance"


def test_a_clip_that_is_missing_never_improves_a_score():
    before = _score({"de": 0.3}, seed=1)
    kept = [u.prediction for u in before.utterances if u.prediction.id != "None-de-7"]
    with pytest.raises(ValueError, match=r"'None-de-7' is missing after.*40 before, 39 after"):
        compare_scores(before, score_predictions(kept, processing_s=0))


def test_other_references_are_refused():
    before = _score({"de": 0.3}, seed=1)
    changed = [dataclasses.replace(u.prediction, reference="eins") for u in before.utterances]
    with pytest.raises(ValueError, match=r"the reference of 'None-de-0' differs"):
        compare_scores(before, score_predictions(changed, processing_s=0))


def test_a_report_read_back_has_no_clips_to_compare():
    before = _score({"de": 0.3}, seed=1)
    with pytest.raises(ValueError, match=r"predictions\.jsonl"):
        compare_scores(before, Score(before.overall, before.languages))


def test_forgetting_is_the_mean_rise_of_what_was_not_targeted():
    rates = {"clinic/de": 0.4, "home/de": 0.1, "home/fr": 0.1, "home/nl": 0.1}
    before = _score(rates, seed=3)
    after = _score({**rates, "clinic/de": 0.05, "home/fr": 0.3}, seed=4)
    found = measure_retention(before, after, targets=["clinic"])
    assert list(found.targeted) == ["clinic/de"] and found.targeted["clinic/de"].verdict == "better"
    assert list(found.kept) == ["home/de", "home/fr", "home/nl"]
    assert found.lost == ("home/fr",)
    assert found.forgetting.difference == pytest.approx(sum(c.difference for c in found.kept.values()) / 3)
    assert found.forgetting.verdict == "worse"
    assert "home/fr" in found.warning and "home/nl" not in found.warning
    assert found.p_adjusted["home/nl"] >= found.kept["home/nl"].p
    assert json.loads(json.dumps(found.describe(), allow_nan=False))["lost"] == ["home/fr"]


def test_nothing_lost_is_no_warning_though_one_in_twenty_languages_looks_worse():
    languages = ["de", "fr", "nl", "it", "es", "pt", "pl", "cs", "sv", "da", "no", "fi", "hu", "ro", "bg", "uk"]
    scores = [_score(dict.fromkeys(languages, 0.2), seed=seed) for seed in range(10, 14)]
    pairs = [(a, b) for a in scores for b in scores if a is not b]
    found = [measure_retention(a, b, targets=[]) for a, b in pairs]
    assert any(c.p < 0.05 and c.difference > 0 for retention in found for c in retention.kept.values())
    assert [retention.lost for retention in found if retention.lost] == []


@pytest.mark.parametrize("targets", [["de"], ["home", "clinic"], ["home/de", "clinic/de"]])
def test_targets_are_languages_or_sets_or_both(targets):
    score = _score({"home/de": 0.1, "clinic/de": 0.2}, seed=5)
    found = measure_retention(score, score, targets=targets)
    assert (found.kept, found.forgetting, found.warning) == ({}, None, None)


def test_an_unknown_target_is_named():
    score = _score({"home/de": 0.1}, seed=5)
    with pytest.raises(ValueError, match=r"'klinik' is neither.*home/de"):
        measure_retention(score, score, targets=["klinik"])
