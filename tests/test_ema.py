"""The average of the weights equals the sum written out, in FP32 whatever the weights are stored in."""

import pytest
import torch
from torch import nn

from train.ema import WeightAverage


def test_equals_the_sum_written_out():
    """After n updates: d^n w0 + (1 - d) sum_i d^(n-i) w_i."""
    decay, history = 0.75, [2.0, -1.0, 5.0, 0.5]
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(8.0)
    average = WeightAverage(model.named_parameters(), decay=decay)
    for value in history:
        model.weight.data.fill_(value)
        average.update()
    n = len(history)
    expected = decay**n * 8.0 + (1 - decay) * sum(decay ** (n - i) * w for i, w in enumerate(history, start=1))
    assert float(average.average["weight"]) == pytest.approx(expected, rel=1e-6)


def test_it_is_a_copy_and_only_of_what_learns():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model.named_parameters(), decay=0.9)
    assert average.average.keys() == {"weight"}
    before = average.average["weight"].clone()
    model.weight.data.add_(1.0)
    assert torch.equal(average.average["weight"], before)


def test_small_moves_of_bf16_weights_are_not_lost():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model.named_parameters(), decay=0.999, device=torch.device("cpu"))
    model.weight.data.fill_(1.0078125)  # the next BF16 number
    average.update()
    assert average.average["weight"].dtype is torch.float32
    assert 1.0 < float(average.average["weight"]) < 1.0001


def test_a_saved_average_is_taken_up_without_sharing_it():
    model = nn.Linear(2, 2)
    average = WeightAverage(model.named_parameters(), decay=0.9)
    saved = {name: torch.full_like(tensor, 3.0) for name, tensor in average.average.items()}
    average.load(saved)
    average.update()
    assert all(torch.equal(tensor, torch.full_like(tensor, 3.0)) for tensor in saved.values())
    assert not torch.equal(average.average["weight"], saved["weight"])


def test_an_average_of_other_parameters_is_refused():
    average = WeightAverage(nn.Linear(2, 2).named_parameters(), decay=0.9)
    with pytest.raises(ValueError, match="belongs to other parameters"):
        average.load({"weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"trainer\.ema_decay=.* must lie between 0 and 1"):
        WeightAverage(nn.Linear(2, 2).named_parameters(), decay=decay)
