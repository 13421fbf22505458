"""Attention without copies equals Whisper's own bit for bit, forward and backward, in FP32 and under autocast.

Widths of 64 a head scale by a power of two and take the shorter way; widths of 12 do not.
"""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperAttention

from infer.attention import StridedAttention, lowered


class _Copies(TorchDispatchMode):
    """Count copies, casts among them."""

    def __init__(self):
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.clone)
        return func(*args, **(kwargs or {}))


def _pair(width, num_heads, *, is_causal):
    torch.manual_seed(0)
    config = WhisperConfig(d_model=width, attn_implementation="sdpa")
    stock = WhisperAttention(width, num_heads, is_decoder=True, is_causal=is_causal, layer_idx=0, config=config).train()
    ours = copy.deepcopy(stock)
    ours.__class__ = StridedAttention
    return stock, ours


def _answer(module, states, encoded, *, dtype, uses=1):
    """Return the output and all gradients, with the inputs used by so many modules in a row."""
    states, encoded = states.clone().requires_grad_(), encoded.clone().requires_grad_()
    inner, outer = states * 1.0, encoded * 1.0  # as in a model, no leaves
    total = 0.0
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        for _ in range(uses):
            total = total + module(inner)[0]
            if not module.is_causal:
                total = total + module(inner, key_value_states=outer)[0]
    (total.float().square().sum() + outer.sum()).backward()
    return [total.detach(), states.grad, encoded.grad, *(p.grad for p in module.parameters())]


DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "num_heads"), [(128, 2), (24, 2)], ids=["exact", "rounded"])
def test_it_equals_whispers_attention_bit_for_bit(width, num_heads, dtype):
    stock, ours = _pair(width, num_heads, is_causal=False)
    states, encoded = torch.randn(3, 7, width), torch.randn(3, 50, width)
    expected = _answer(stock, states, encoded, dtype=DTYPES[dtype], uses=2)
    found = _answer(ours, states, encoded, dtype=DTYPES[dtype], uses=2)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.abs().max() > 0


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-6), ("bf16", 2e-3), ("fp16", 2e-4)])
def test_causal_attention_differs_by_rounding_alone(dtype, bound):
    """The backward kernel of the CPU adds up strided heads in another order where the mask is causal."""
    stock, ours = _pair(128, 2, is_causal=True)
    states = torch.randn(3, 7, 128)
    expected = _answer(stock, states, states, dtype=DTYPES[dtype], uses=2)
    found = _answer(ours, states, states, dtype=DTYPES[dtype], uses=2)
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) <= bound


def test_an_input_is_cast_once_however_often_it_is_used():
    stock, ours = _pair(128, 2, is_causal=False)
    states, encoded = torch.randn(3, 7, 128), torch.randn(3, 50, 128)
    counts = {}
    for name, module in (("stock", stock), ("ours", ours)):
        inner, outer = states.requires_grad_() * 1.0, encoded.requires_grad_() * 1.0
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            module(inner.clone(), key_value_states=outer.clone())  # casts the weights, which autocast keeps
        with torch.autocast("cpu", torch.bfloat16):
            module(inner.clone(), key_value_states=outer.clone())
            with _Copies() as copies:
                for _ in range(4):
                    module(inner, key_value_states=outer)
        counts[name] = copies.num
    assert counts["ours"] <= 2  # one of the states and one of the encoder's output
    assert counts["stock"] >= 4 * 3


def test_the_copy_lives_as_long_as_its_states():
    states = torch.randn(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        first = lowered(states)
        assert first is lowered(states)
    with torch.autocast("cpu", torch.float16):
        assert lowered(states).dtype == torch.float16
    assert lowered(states) is states  # no autocast, no cast
    half = states.half()
    with torch.autocast("cpu", torch.bfloat16):
        assert lowered(half) is half  # autocast casts it where it is multiplied


def test_weights_and_masks_take_whispers_own_way():
    stock, ours = _pair(24, 2, is_causal=False)
    stock.config._attn_implementation = ours.config._attn_implementation = "eager"
    states = torch.randn(2, 5, 24)
    for one, other in zip(ours(states, output_attentions=True), stock(states, output_attentions=True), strict=True):
        assert torch.equal(one, other)
