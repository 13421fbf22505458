"""The rate at each applied update, against values made by hand, and against transformers' own schedules."""

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from train.schedule import ScheduleSettings, rate_share


def _shares(settings, applied, max_steps):
    return [rate_share(settings, i, max_steps) for i in applied]


@pytest.mark.parametrize(
    ("name", "final", "expected"),
    [
        ("constant", 0.0, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.0, [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", 0.2, [0.25, 0.5, 0.75, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", 0.0, [0.25, 0.5, 0.75, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0]),
        ("cosine", 0.5, [0.25, 0.5, 0.75, 1.0, 1.0, 0.926777, 0.75, 0.573223, 0.5]),
    ],
)
def test_values_made_by_hand(name, final, expected):
    settings = ScheduleSettings(name, warmup_steps=4, final_share=final)
    assert _shares(settings, range(9), 8) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("constant", lambda o: get_constant_schedule_with_warmup(o, 5)),
        ("linear", lambda o: get_linear_schedule_with_warmup(o, 5, 40)),
        ("cosine", lambda o: get_cosine_schedule_with_warmup(o, 5, 40)),
    ],
)
def test_equals_transformers_after_the_warm_up(name, theirs):
    """In the warm-up transformers begins at 0, and so wastes one update; ours begins at 1 / warm-up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = theirs(optimizer)
    settings = ScheduleSettings(name, warmup_steps=5)
    for applied in range(40):
        rate = optimizer.param_groups[0]["lr"]
        if applied >= 5:
            assert rate_share(settings, applied, 40) == pytest.approx(rate)
        elif applied:
            assert rate_share(settings, applied - 1, 40) == pytest.approx(rate)
        optimizer.step()
        schedule.step()


def test_no_warm_up_begins_at_the_peak():
    assert rate_share(ScheduleSettings("linear", warmup_steps=0), 0, 10) == 1.0


def test_a_negative_warm_up_is_a_tenth_of_the_run():
    settings = ScheduleSettings("constant", warmup_steps=-1)
    assert _shares(settings, [0, 9, 10, 50], 100) == [0.1, 1.0, 1.0, 1.0]
    assert _shares(settings, [4, 9], 200) == [0.25, 0.5]


def test_a_skip_keeps_the_rate_where_it_was():
    """The rate is a function of applied updates: an attempt that applied nothing asks for the same one again."""
    settings = ScheduleSettings("linear", warmup_steps=2)
    applied, rates = 0, []
    for skipped in [True, False, True, False, False]:
        rates.append(rate_share(settings, applied, 4))
        applied += not skipped
    assert rates == [0.5, 0.5, 1.0, 1.0, 1.0]


def test_beyond_the_end_it_stays_at_the_end():
    assert _shares(ScheduleSettings("linear", final_share=0.1), [10, 11, 1000], 10) == [0.1, 0.1, 0.1]


def test_a_warm_up_longer_than_the_run_never_divides_by_zero():
    assert _shares(ScheduleSettings("linear", warmup_steps=20), [0, 9], 10) == [0.05, 0.5]


@pytest.mark.parametrize("wrong", [{"name": "step"}, {"final_share": -0.1}, {"final_share": 1.1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="schedule"):
        ScheduleSettings(**wrong)
