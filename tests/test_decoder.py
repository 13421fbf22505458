"""The decoder over a whole text equals stock Whisper's, in its output and its gradients, and never asks the device."""

import copy

import pytest
import torch
from conftest import fake_batch, tiny_whisper
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from infer.decoder import WholeDecoder


def _stock():
    ours = tiny_whisper()
    stock = WhisperForConditionalGeneration(copy.deepcopy(ours.config))
    stock.load_state_dict(ours.state_dict())
    return stock, ours


def _logits(whisper, batch, hidden, **options):
    return whisper(
        decoder_input_ids=batch.decoder_input_ids,
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        use_cache=False,
        **options,
    ).logits


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_it_equals_stock_whisper(dtype):
    stock, ours = _stock()
    assert type(ours.model.decoder) is WholeDecoder
    batch, hidden = fake_batch(3), torch.randn(3, 50, 16)
    found = []
    for whisper in (stock, ours):
        states = hidden.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            logits = _logits(whisper.train(), batch, states)
        logits.float().logsumexp(-1).sum().backward()
        gradients = {name: p.grad for name, p in whisper.model.decoder.named_parameters()}
        found.append((logits, states.grad, gradients))
    (expected, expected_grad, expected_gradients), (logits, grad, gradients) = found
    bound = 1e-5 if dtype is None else 1e-2
    assert torch.equal(logits, expected)
    assert float((grad - expected_grad).norm() / expected_grad.norm()) <= bound
    for name, gradient in gradients.items():
        difference = (gradient - expected_gradients[name]).norm()
        assert float(difference) <= bound * float(expected_gradients[name].norm()) + 1e-6, name


def test_dropout_draws_as_stock_whisper_does():
    stock, ours = _stock()
    batch, hidden = fake_batch(3), torch.randn(3, 50, 16)
    found = []
    for whisper in (stock, ours):
        whisper.train()
        for module in whisper.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.3
        torch.manual_seed(5)
        found.append(_logits(whisper, batch, hidden))
    assert torch.equal(*found)


def test_what_is_out_of_the_ordinary_goes_stock_whispers_way():
    stock, ours = _stock()
    batch, hidden = fake_batch(2), torch.randn(2, 50, 16)
    mask = torch.ones_like(batch.decoder_input_ids)
    mask[0, 5:] = 0
    found = [_logits(w.eval(), batch, hidden, decoder_attention_mask=mask) for w in (stock, ours)]
    assert torch.equal(*found)
