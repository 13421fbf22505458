"""Intervals cover as often as they say, p-values are right as often as they say, and both are the same every time."""

import math
import random

import numpy as np
import pytest

from infer.score.resampling import MAX_DRAWN, student_cdf, student_quantile
from infer.score.statistics import (
    BootstrapSettings,
    Interval,
    Sample,
    adjust_for_many,
    bootstrap_rate,
    compare_rates,
    pool,
)

TRUE_RATE = 0.1


def _sample(rng, *, num_utterances=120, num_speakers=None, beta=(2, 18)):
    """Draw a set from a population whose rate is `TRUE_RATE`: voices or clips differ, lengths differ."""
    difficulty = rng.beta(*beta, size=num_speakers or num_utterances)
    speakers = np.arange(num_utterances) % len(difficulty)
    units = 1 + rng.poisson(8, num_utterances)
    edits = rng.binomial(units, difficulty[speakers])
    return edits, units, (speakers.tolist() if num_speakers else None), difficulty[speakers]


@pytest.mark.parametrize(
    ("num_utterances", "num_speakers", "beta"),
    [
        (150, None, (2, 18)),
        (240, 80, (2, 18)),
        (60, 6, (2, 18)),  # few voices
        (12, None, (2, 18)),  # few utterances
        (300, None, (0.05, 0.45)),  # few with an error
    ],
)
def test_intervals_cover_the_true_rate_as_often_as_they_say(num_utterances, num_speakers, beta):
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(800):
        edits, units, speakers, _ = _sample(rng, num_utterances=num_utterances, num_speakers=num_speakers, beta=beta)
        interval = bootstrap_rate([pool(edits, units, speakers)], BootstrapSettings(num_draws=400, seed=seed))
        covered += interval.low <= TRUE_RATE <= interval.high
    assert 0.93 <= covered / 800 <= 0.97


def test_an_interval_by_utterance_is_too_narrow_where_voices_differ():
    rng = np.random.default_rng(6)
    covered = 0
    for seed in range(150):
        edits, units, _, _ = _sample(rng, num_utterances=400, num_speakers=20)
        interval = bootstrap_rate([pool(edits, units, None)], BootstrapSettings(num_draws=200, seed=seed))
        covered += interval.low <= TRUE_RATE <= interval.high
    assert covered / 150 < 0.85


def test_equal_artefacts_are_told_apart_as_seldom_as_p_says_and_unlike_ones_often():
    rng = np.random.default_rng(7)
    false_alarms = found = 0
    for seed in range(300):
        settings = BootstrapSettings(num_draws=300, seed=seed)
        edits, units, _, difficulty = _sample(rng)
        before = pool(edits, units, None)
        equal = compare_rates([before], [pool(rng.binomial(units, difficulty), units, None)], settings)
        better = compare_rates([before], [pool(rng.binomial(units, difficulty / 2), units, None)], settings)
        false_alarms += equal.p < 0.05
        found += better.verdict == "better"
        for comparison in (equal, better):
            if abs(comparison.p - 0.05) > 0.02:  # nearer, the two round apart
                assert (comparison.p < 0.05) == (not comparison.interval.low <= 0 <= comparison.interval.high)
    assert 0.025 <= false_alarms / 300 <= 0.075
    assert found / 300 > 0.95


def test_the_difference_is_paired():
    rng = np.random.default_rng(8)
    edits, units, _, _ = _sample(rng, num_utterances=500)
    fixed = np.where(rng.random(500) < 0.2, np.maximum(edits - 1, 0), edits)
    comparison = compare_rates([pool(edits, units, None)], [pool(fixed, units, None)])
    assert comparison.verdict == "better" and comparison.probability_better == 1.0 and comparison.p < 0.01
    assert comparison.difference == pytest.approx((fixed.sum() - edits.sum()) / units.sum())
    alone = bootstrap_rate([pool(edits, units, None)])
    assert comparison.interval.high - comparison.interval.low < (alone.high - alone.low) / 2


def test_the_plain_bootstrap_gives_the_same_ends():
    """The textbook loop with another generator: resample, divide, take percentiles."""
    rng = random.Random(3)
    edits, units, _, _ = _sample(np.random.default_rng(9), num_utterances=300)
    rates = []
    for _ in range(4000):
        picks = rng.choices(range(300), k=300)
        rates.append(sum(int(edits[i]) for i in picks) / sum(int(units[i]) for i in picks))
    rates.sort()
    interval = bootstrap_rate([pool(edits, units, None)], BootstrapSettings(num_draws=4000))
    assert interval.low == pytest.approx(rates[100], rel=0.02)
    assert interval.high == pytest.approx(rates[3900], rel=0.02)


def test_the_mean_over_languages_is_drawn_within_each():
    rng = np.random.default_rng(10)
    samples = [pool(*_sample(rng, num_utterances=n)[:2], None) for n in (50, 200, 800)]
    interval = bootstrap_rate(samples, BootstrapSettings(num_draws=2000))
    errors = [bootstrap_rate([sample], BootstrapSettings(num_draws=2000)) for sample in samples]
    expected = math.sqrt(sum((e.high - e.low) ** 2 for e in errors)) / 3
    assert interval.high - interval.low == pytest.approx(expected, rel=0.08)
    assert interval.low < np.mean([sample.rate for sample in samples]) < interval.high


def test_very_many_utterances_are_joined_without_changing_the_interval():
    edits, units, _, _ = _sample(np.random.default_rng(11), num_utterances=MAX_DRAWN + 2000)
    joined = bootstrap_rate([pool(edits, units, None)], BootstrapSettings(num_draws=2000))
    residuals = edits - units * (edits.sum() / units.sum())
    width = 2 * 1.96 * math.sqrt((residuals**2).sum()) / units.sum()  # by linearisation
    assert joined.high - joined.low == pytest.approx(width, rel=0.05)


def test_the_same_numbers_give_the_same_interval():
    sample = pool([0, 3, 1, 0, 2] * 20, [5, 9, 4, 6, 7] * 20, None)
    assert bootstrap_rate([sample]) == bootstrap_rate([sample])
    assert bootstrap_rate([sample]) != bootstrap_rate([sample], BootstrapSettings(seed=1))


def test_speakers_are_added_up_and_unknown_ones_stand_alone():
    sample = pool([1, 2, 3, 4], [10, 20, 30, 40], ["a", None, "a", None])
    assert sample.edits.tolist() == [4, 2, 4] and sample.units.tolist() == [40, 20, 40]


def test_no_error_at_all_does_not_claim_certainty():
    interval = bootstrap_rate([pool(np.zeros(100), np.full(100, 10), None)])
    assert interval == Interval(0.0, pytest.approx(1 - 0.025 ** (1 / 100)), "binomial")
    assert (1 - interval.high) ** 100 == pytest.approx(0.025)  # so rare, and still none seen


def test_few_utterances_have_students_interval_and_an_end_that_can_be():
    sample = pool([1, 3], [10, 12], None)
    interval = bootstrap_rate([sample])
    assert interval.method == "student" and 0 < interval.low < sample.rate < interval.high <= 1.0
    # by hand: the influences are -0.818 and 0.818 edits of 22 words
    wide = pool([1, 3] * 4, [10, 12] * 4, None)
    error = math.sqrt(8 * (9 / 11) ** 2 * 8 / 7) / 88 / (2 / 11)
    found = bootstrap_rate([wide])
    assert found.high == pytest.approx(2 / 11 * math.exp(2.36462 * error), rel=1e-5)
    assert found.low == pytest.approx(2 / 11 * math.exp(-2.36462 * error), rel=1e-5)
    assert bootstrap_rate([pool([1, 3] * 40, [10, 12] * 40, None)]).method == "bootstrap"


@pytest.mark.parametrize("sample", [pool([], [], None), pool([1], [10], None), pool([1, 2], [0, 0], None)])
def test_what_cannot_be_drawn_has_no_interval(sample):
    assert bootstrap_rate([sample]) is None


def test_nothing_changed_is_no_difference():
    sample = pool([0, 3, 1], [5, 9, 4], None)
    comparison = compare_rates([sample], [sample])
    assert (comparison.difference, comparison.p, comparison.verdict) == (0.0, 1.0, "no difference shown")


def test_sides_that_are_not_the_same_clips_are_refused():
    with pytest.raises(ValueError, match="same utterances"):
        compare_rates([pool([1, 2], [5, 5], None)], [pool([1], [5], None)])
    with pytest.raises(ValueError, match="references differ"):
        compare_rates([pool([1, 2], [5, 5], None)], [pool([1, 2], [5, 6], None)])


def test_holm_by_hand():
    assert adjust_for_many([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_for_many([]) == []


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (1000, 1.9623), (1e8, 1.95996)]
)
def test_students_t_is_that_of_the_tables(freedom, expected):
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=1e-4)
    assert student_cdf(-expected, freedom) == pytest.approx(0.025, abs=5e-6)


@pytest.mark.parametrize("bad", [{"num_draws": 10}, {"level": 95.0}])
def test_settings_that_mean_nothing_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        BootstrapSettings(**bad)


def test_lists_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match="one length"):
        Sample(np.zeros(2), np.zeros(3))
