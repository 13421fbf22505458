"""Whisper in three parts with plain tensors in and out, as they are traced for ONNX.

The arithmetic is that of `infer.encoder.encode` and of `infer.decoder_steps`, over the same weights, with caches that
are handed in and out instead of written in place.

Shapes: `B` rows, `M` mel bins, `F` mel frames, `S` encoder positions, `T` positions given, `P` positions before them,
`H` heads, `D` width, `V` vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoder, WhisperDecoderLayer

from infer.encoder import WindowedWhisper, encode


class EncoderGraph(nn.Module):
    """Features to hidden states."""

    def __init__(self, model: WindowedWhisper) -> None:
        """Take the encoder of a model in evaluation mode."""
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        """Return (B, S, D) states of (B, M, F) float32 features."""
        return encode(self.encoder, input_features)


class DecoderGraph(nn.Module):
    """The first tokens of a row: what attends to the encoder is computed here, once."""

    def __init__(self, model: WindowedWhisper) -> None:
        """Take the decoder of a model in evaluation mode."""
        super().__init__()
        self.decoder: WhisperDecoder = model.model.decoder

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Return (B, T, V) float32 logits, then keys and values of each layer: of the tokens, of the encoder."""
        decoder = self.decoder
        hidden = decoder.embed_tokens(input_ids) + decoder.embed_positions.weight[: input_ids.shape[1]]
        mask = _mask(input_ids.shape[1], 0, input_ids.device)
        caches: list[Tensor] = []
        for layer in _layers(decoder):
            normed = layer.self_attn_layer_norm(hidden)
            own = (_heads(layer.self_attn, "k_proj", normed), _heads(layer.self_attn, "v_proj", normed))
            across = layer.encoder_attn
            cross = (_heads(across, "k_proj", encoder_hidden_states), _heads(across, "v_proj", encoder_hidden_states))
            hidden = _finish_layer(layer, hidden, normed, own, cross, mask)
            caches += [*own, *cross]
        return _logits(decoder, hidden), *caches


class DecoderWithPastGraph(nn.Module):
    """The tokens after those."""

    def __init__(self, model: WindowedWhisper) -> None:
        """Take the decoder of a model in evaluation mode."""
        super().__init__()
        self.decoder: WhisperDecoder = model.model.decoder

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """Return (B, T, V) float32 logits, then keys and values of the tokens of each layer, lengthened.

        Args:
            input_ids: (B, T).
            past: four of each layer, as `DecoderGraph` returns them, those of the tokens (B, H, P, D / H).
        """
        decoder = self.decoder
        num_past, num_tokens = past[0].shape[2], input_ids.shape[1]
        positions = torch.arange(num_past, num_past + num_tokens, device=input_ids.device)
        hidden = decoder.embed_tokens(input_ids) + decoder.embed_positions.weight[positions]
        mask = _mask(num_tokens, num_past, input_ids.device)
        caches: list[Tensor] = []
        for i, layer in enumerate(_layers(decoder)):
            keys, values, *cross = past[4 * i : 4 * i + 4]
            normed = layer.self_attn_layer_norm(hidden)
            keys = torch.cat([keys, _heads(layer.self_attn, "k_proj", normed)], dim=2)
            values = torch.cat([values, _heads(layer.self_attn, "v_proj", normed)], dim=2)
            hidden = _finish_layer(layer, hidden, normed, (keys, values), (cross[0], cross[1]), mask)
            caches += [keys, values]
        return _logits(decoder, hidden), *caches


def cache_names(num_layers: int, prefix: str, *, with_encoder: bool) -> list[str]:
    """Return the names of the caches in their order, such as `past.0.decoder.key`."""
    sides = ("decoder", "encoder") if with_encoder else ("decoder",)
    return [f"{prefix}.{i}.{side}.{kind}" for i in range(num_layers) for side in sides for kind in ("key", "value")]


def _layers(decoder: WhisperDecoder) -> list[WhisperDecoderLayer]:
    return list(decoder.layers)


def _heads(attention: WhisperAttention, projection: str, states: Tensor) -> Tensor:
    """Project (B, T, D) and split into (B, H, T, D / H)."""
    projected: Tensor = getattr(attention, projection)(states)
    split: Tensor = projected.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)
    return split


def _mask(num_tokens: int, num_past: int, device: torch.device) -> Tensor:
    """Return (T, P + T) booleans, True where a position may look."""
    looks = torch.arange(num_past + num_tokens, device=device)
    return looks <= torch.arange(num_past, num_past + num_tokens, device=device)[:, None]


def _finish_layer(
    layer: WhisperDecoderLayer,
    hidden: Tensor,
    normed: Tensor,
    own: tuple[Tensor, Tensor],
    cross: tuple[Tensor, Tensor],
    mask: Tensor,
) -> Tensor:
    hidden = hidden + _attend(layer.self_attn, normed, *own, mask)
    hidden = hidden + _attend(layer.encoder_attn, layer.encoder_attn_layer_norm(hidden), *cross, None)
    fed: Tensor = layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
    return hidden + fed


def _attend(attention: WhisperAttention, states: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    queries = _heads(attention, "q_proj", states) * attention.scaling
    mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0)
    projected: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return projected


def _logits(decoder: WhisperDecoder, hidden: Tensor) -> Tensor:
    return nn.functional.linear(decoder.layer_norm(hidden), decoder.embed_tokens.weight).float()
