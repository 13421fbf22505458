"""Whisper with an encoder that takes windows shorter than 30 s: one function for training and inference.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `S` encoder positions (`F` / 2), `D` width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoder

from infer.attention import StridedAttention
from infer.decoder import WholeDecoder

CPU_FRAMES_AT_ONCE = 3000  # measured with Whisper tiny: 30 s; more is slower from 2000 frames on


def encode(encoder: WhisperEncoder, input_features: Tensor) -> Tensor:
    """Run the encoder over a window of any length up to its positions.

    Stock Whisper refuses all but 30 s. Nothing in its arithmetic needs that: the positions of a short window are the
    first ones of the table. At 3000 frames this equals `WhisperEncoder.forward`.

    Args:
        encoder: the encoder of a Whisper model; dropout and LayerDrop apply where it is in training mode.
        input_features: (B, M, F), F even; cast to the dtype of the first convolution, which under autocast is FP32.

    Returns:
        (B, S, D) hidden states, S = F / 2.

    Raises:
        ValueError: if the window is longer than the table of positions, or has the wrong number of mel bins.
    """
    _verify_features(encoder, input_features)
    hidden = nn.functional.gelu(encoder.conv1(input_features.to(encoder.conv1.weight.dtype)))
    hidden = nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    for layer in encoder.layers:
        if encoder.training and encoder.layerdrop > 0.0 and float(torch.rand([])) < encoder.layerdrop:
            continue
        hidden = layer(hidden, None)
    normed: Tensor = encoder.layer_norm(hidden)
    return normed


def encode_windows(encoder: WhisperEncoder, input_features: Tensor) -> Tensor:
    """Run the encoder over a batch for inference, on a CPU a few windows at a time.

    On a CPU a batch of 30 s windows leaves the caches between one layer and the next: one at a time takes an eighth
    less time, and the text is the same.

    Args:
        encoder: in evaluation mode.
        input_features: (B, M, F).

    Returns:
        (B, S, D) hidden states.
    """
    if input_features.device.type != "cpu":
        return encode(encoder, input_features)
    at_once = max(1, CPU_FRAMES_AT_ONCE // input_features.shape[-1])
    return torch.cat([encode(encoder, part) for part in input_features.split(at_once)])


def _verify_features(encoder: WhisperEncoder, input_features: Tensor) -> None:
    max_frames = encoder.max_source_positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]
    if input_features.ndim != 3 or input_features.shape[1] != encoder.num_mel_bins:
        shape = tuple(input_features.shape)
        raise ValueError(f"the encoder takes (B, {encoder.num_mel_bins}, F) features, found {shape}")
    num_frames = input_features.shape[2]
    if num_frames > max_frames or num_frames % 2 or num_frames == 0:
        raise ValueError(f"a window has an even number of frames, at most {max_frames}; found {num_frames}")


class WindowedEncoder(WhisperEncoder):
    """Whisper's encoder with `encode` as its forward; same weights, same names."""

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """Return (B, S, D) hidden states; the mask is ignored, as in stock Whisper."""
        return BaseModelOutput(last_hidden_state=encode(self, input_features))


class WindowedWhisper(WhisperForConditionalGeneration):
    """`WhisperForConditionalGeneration` that takes short windows and copies less; weights and names are the same."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.model.encoder.__class__ = WindowedEncoder
        self.model.decoder.__class__ = WholeDecoder
        for module in self.modules():
            if type(module) is WhisperAttention:
                module.__class__ = StridedAttention
