"""When skipped updates stop a run: five in a row, a loss scale under 1, more than 1 % of 1000; never earlier."""

import json
import re

import pytest
import torch
from torch import nn

from train.guard import NonFiniteError, SkipGuard, first_non_finite


def _record(guard, pattern, **options):
    for letter in pattern:
        guard.record(skipped=letter == "s", loss_scale=options.get("loss_scale", 1024.0), module=options.get("module"))


def test_four_in_a_row_are_borne_again_and_again():
    guard = SkipGuard()
    _record(guard, "ssss." * 2)
    assert (guard.num_skipped, guard.num_in_a_row) == (8, 0)


def test_the_fifth_in_a_row_stops_and_says_what_to_type():
    guard = SkipGuard()
    _record(guard, ".ssss")
    with pytest.raises(NonFiniteError) as caught:
        _record(guard, "s", module="whisper.model.encoder.conv1")
    assert str(caught.value) == (
        "5 updates in a row had a non-finite gradient; first non-finite output in whisper.model.encoder.conv1; "
        "use precision=bf16, or a lower precision.init_scale"
    )


def test_without_a_scaler_no_scale_is_advised():
    with pytest.raises(NonFiniteError, match="5 updates in a row") as caught:
        _record(SkipGuard(), "sssss", loss_scale=None)
    assert "precision" not in str(caught.value)


@pytest.mark.parametrize(("scale", "stops"), [(1.0, False), (0.5, True)])
def test_a_scale_under_one_stops_at_once(scale, stops):
    guard = SkipGuard()
    if not stops:
        _record(guard, "s", loss_scale=scale)
        return
    with pytest.raises(NonFiniteError, match=re.escape("fell to 0.5, below 1; use precision=bf16")):
        _record(guard, "s", loss_scale=scale)


def test_a_low_scale_alone_does_not_stop():
    _record(SkipGuard(), "....", loss_scale=0.5)


@pytest.mark.parametrize(("skips", "stops"), [(10, False), (11, True)])
def test_above_one_per_cent_of_the_last_thousand(skips, stops):
    pattern = "." * (1000 - 2 * skips) + ".s" * skips
    assert len(pattern) == 1000
    guard = SkipGuard()
    if not stops:
        _record(guard, pattern)
        return
    with pytest.raises(NonFiniteError, match=r"11 of the last 1000 updates were skipped; lower optimizer\.lr"):
        _record(guard, pattern)


def test_the_share_is_not_judged_before_a_thousand_updates():
    _record(SkipGuard(), ".s" * 499)


def test_old_skips_are_forgotten():
    guard = SkipGuard()
    _record(guard, ".s" * 10 + "." * 990 + ".s" * 10)
    assert guard.num_skipped == 20


def test_state_survives_json():
    guard = SkipGuard()
    _record(guard, "." * 990 + ".s" * 4 + "ss")
    again = SkipGuard()
    again.load_state(json.loads(json.dumps(guard.state())))
    assert again == guard
    assert again.recent.maxlen == 1000
    with pytest.raises(NonFiniteError, match="5 updates in a row"):
        _record(again, "ss")


class _Divides(nn.Module):
    def forward(self, x):
        return x / 0.0


def test_the_first_module_with_a_non_finite_output_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Identity(), _Divides()), nn.Linear(2, 2))
    with first_non_finite(model) as found:
        model(torch.ones(1, 2))
    assert found == ["1.1"]
    model(torch.ones(1, 2))
    assert found == ["1.1"]
    assert not any(module._forward_hooks for module in model.modules())  # nothing stays behind


def test_a_sound_forward_names_nothing():
    model = nn.Linear(2, 2)
    with first_non_finite(model) as found:
        model(torch.ones(1, 2))
    assert found == []
