"""One encoder for training and inference: equal to transformers' at 30 s, and to plain arithmetic in short windows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from infer.encoder import WindowedEncoder, WindowedWhisper, encode


@pytest.fixture(scope="module")
def config() -> WhisperConfig:
    return WhisperConfig(
        vocab_size=50,
        num_mel_bins=80,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


@pytest.fixture
def stock(config: WhisperConfig) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name or "layer_norm" in name:  # zeros and ones would hide a term that is left out
            torch.nn.init.normal_(parameter, 0.5, 0.2)
        elif "embed_positions" not in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model


@pytest.fixture
def windowed(config: WhisperConfig, stock: WhisperForConditionalGeneration) -> WindowedWhisper:
    model = WindowedWhisper(config).eval()
    model.load_state_dict(stock.state_dict())
    return model


def _features(num_frames: int, *, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 80, num_frames, generator=torch.Generator().manual_seed(seed))


def _plain_encode(encoder: WhisperEncoder, features: Tensor) -> Tensor:
    """Whisper's encoder written out, in float64: two convolutions, sines, pre-norm layers, one norm at the end."""
    weights = {name: tensor.detach().double() for name, tensor in encoder.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    x = gelu(functional.conv1d(features.double(), weights["conv1.weight"], weights["conv1.bias"], padding=1))
    x = gelu(functional.conv1d(x, weights["conv2.weight"], weights["conv2.bias"], stride=2, padding=1)).mT
    num_positions, width = x.shape[1:]
    rates = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2, dtype=torch.float64))
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * rates
    x = x + torch.cat([angles.sin(), angles.cos()], dim=1)
    heads = encoder.config.encoder_attention_heads
    for i in range(encoder.config.encoder_layers):
        y = norm(x, f"layers.{i}.self_attn_layer_norm")
        query, key, value = (
            linear(y, f"layers.{i}.self_attn.{name}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qkv"
        )
        attention = (query @ key.mT / math.sqrt(width // heads)).softmax(-1) @ value
        x = x + linear(attention.transpose(1, 2).flatten(2), f"layers.{i}.self_attn.out_proj")
        y = norm(x, f"layers.{i}.final_layer_norm")
        x = x + linear(gelu(linear(y, f"layers.{i}.fc1")), f"layers.{i}.fc2")
    return norm(x, "layer_norm")


def test_equals_transformers_at_3000_frames(stock: WhisperForConditionalGeneration, windowed: WindowedWhisper) -> None:
    features = _features(3000)
    with torch.no_grad():
        expected = stock.model.encoder(features).last_hidden_state
        assert torch.equal(encode(windowed.model.encoder, features), expected)
        assert torch.equal(windowed.model.encoder(features).last_hidden_state, expected)
        assert torch.equal(encode(stock.model.encoder, features), expected)


def test_equals_transformers_under_bf16_autocast(
    stock: WhisperForConditionalGeneration, windowed: WindowedWhisper
) -> None:
    features = _features(3000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = stock.model.encoder(features).last_hidden_state
        found = encode(windowed.model.encoder, features)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert not torch.equal(found, encode(windowed.model.encoder, features))  # autocast did something


def test_equals_transformers_in_real_half_precision(
    stock: WhisperForConditionalGeneration, windowed: WindowedWhisper
) -> None:
    """FP32 features into FP16 weights, as an artefact on a GPU gets them."""
    features = _features(3000, batch=1)
    with torch.no_grad():
        expected = stock.half().model.encoder(features.half()).last_hidden_state
        found = encode(windowed.half().model.encoder, features)
    assert found.dtype == torch.float16
    assert torch.equal(found, expected)


def test_gradients_equal_those_of_transformers(
    stock: WhisperForConditionalGeneration, windowed: WindowedWhisper
) -> None:
    features, ids = _features(3000, batch=1), torch.tensor([[1, 5, 6, 7]])
    for model in (stock, windowed):
        model.train()
        model(input_features=features, decoder_input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    expected = dict(stock.named_parameters())
    num_compared = 0
    for name, parameter in windowed.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None, name
            continue
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-6, rtol=1e-5, msg=name)
        num_compared += 1
    assert expected["model.encoder.conv1.weight"].grad.abs().sum() > 0
    assert num_compared > 40


@pytest.mark.parametrize("num_frames", [2, 50, 500, 3000])
def test_every_window_equals_the_arithmetic_written_out(num_frames: int, windowed: WindowedWhisper) -> None:
    features = _features(num_frames)
    with torch.no_grad():
        found = encode(windowed.model.encoder, features)
    assert found.shape == (2, num_frames // 2, 16)
    torch.testing.assert_close(found.double(), _plain_encode(windowed.model.encoder, features), atol=1e-5, rtol=0)


def test_a_clip_does_not_hear_its_neighbours_in_the_batch(windowed: WindowedWhisper) -> None:
    features = _features(200, batch=3)
    with torch.no_grad():
        whole = encode(windowed.model.encoder, features)
        for i in range(3):
            torch.testing.assert_close(whole[i], encode(windowed.model.encoder, features[i : i + 1])[0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 128, 100), r"\(B, 80, F\)"),
        ((80, 100), r"\(B, 80, F\)"),
        ((1, 80, 3002), "at most 3000"),
        ((1, 80, 101), "even"),
        ((1, 80, 0), "even"),
    ],
)
def test_what_is_no_window_is_refused(shape: tuple[int, ...], message: str, windowed: WindowedWhisper) -> None:
    with pytest.raises(ValueError, match=message):
        encode(windowed.model.encoder, torch.zeros(shape))


def test_names_and_weights_are_those_of_transformers(
    stock: WhisperForConditionalGeneration, config: WhisperConfig, tmp_path
) -> None:
    model = WindowedWhisper(config)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert isinstance(model.model.encoder, WindowedEncoder)
    stock.save_pretrained(tmp_path)
    loaded = WindowedWhisper.from_pretrained(tmp_path).eval()
    assert isinstance(loaded.model.encoder, WindowedEncoder)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        ids = torch.tensor([[1, 5]])
        full = _features(3000, batch=1)
        expected = stock(input_features=full, decoder_input_ids=ids).logits
        assert torch.equal(loaded(input_features=full, decoder_input_ids=ids).logits, expected)
        assert loaded(input_features=_features(100, batch=1), decoder_input_ids=ids).logits.shape == expected.shape


def test_gradient_checkpointing_gives_the_same_gradients(windowed: WindowedWhisper) -> None:
    features, ids = _features(200), torch.tensor([[1, 5, 6], [1, 8, 9]])
    gradients = []
    for checkpointing in (False, True):
        windowed.train()
        windowed.zero_grad()
        if checkpointing:
            windowed.gradient_checkpointing_enable({"use_reentrant": False})
            assert all(layer.gradient_checkpointing for layer in windowed.model.encoder.layers)
        num_calls = _count_forwards(windowed.model.encoder.layers[0].fc1)
        windowed(input_features=features, decoder_input_ids=ids, use_cache=False).logits.square().sum().backward()
        assert num_calls() == 1 + checkpointing  # the second time is the recomputation
        gradients.append({n: p.grad.clone() for n, p in windowed.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def _count_forwards(module: torch.nn.Module):
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


def test_layer_drop_and_dropout_apply_in_training_only(windowed: WindowedWhisper) -> None:
    encoder, features = windowed.model.encoder, _features(20)
    with torch.no_grad():
        expected = encode(encoder, features)
        encoder.layerdrop = 1.0
        encoder.dropout = 0.5
        assert torch.equal(encode(encoder, features), expected)
        encoder.train()
        encoder.dropout = 0.0
        without_layers = encode(encoder, features)
        encoder.eval()
        encoder.layers = torch.nn.ModuleList()
        assert torch.equal(without_layers, encode(encoder, features))
        encoder.train()
        encoder.dropout = 0.5
        assert not torch.equal(without_layers, encode(encoder, features))
