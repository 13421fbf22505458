"""A feed-forward part of any size, in programs that know only four times the width: a wider model that says the same.

OpenAI's package and whisper.cpp take the feed-forward part to be `4 * width`. All published Whispers are so. A smaller
part is filled with zeros. Under a larger one the model is made wider, exactly: every value in the stream between the
layers stands there twice (or more), which leaves the mean and the variance of each LayerNorm as they were; a
LayerNorm's own scale and offset are zero for the second ones, so the matrices behind it read the first ones alone; and
the heads that are added carry zeros. The price is size and time, so for a model of your own choose four times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import WhisperConfig

MLP_PER_WIDTH = 4

_REPEAT, _FILL, _FILL_MLP, _KEEP = "repeat", "fill", "fill_mlp", "keep"
_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (".token_embedding.weight", (_KEEP, _REPEAT)),
    (".positional_embedding", (_KEEP, _REPEAT)),
    (".conv1.weight", (_REPEAT, _KEEP, _KEEP)),
    (".conv2.weight", (_REPEAT, _FILL, _KEEP)),
    (".conv1.bias", (_REPEAT,)),
    (".conv2.bias", (_REPEAT,)),
    (".query.weight", (_FILL, _FILL)),
    (".key.weight", (_FILL, _FILL)),
    (".value.weight", (_FILL, _FILL)),
    (".query.bias", (_FILL,)),
    (".value.bias", (_FILL,)),
    (".out.weight", (_REPEAT, _FILL)),
    (".out.bias", (_REPEAT,)),
    (".mlp.0.weight", (_FILL_MLP, _FILL)),
    (".mlp.0.bias", (_FILL_MLP,)),
    (".mlp.2.weight", (_REPEAT, _FILL_MLP)),
    (".mlp.2.bias", (_REPEAT,)),
    ("ln.weight", (_FILL,)),
    ("ln.bias", (_FILL,)),
    (".ln_post.weight", (_FILL,)),
    (".ln_post.bias", (_FILL,)),
)
"""What becomes of each axis of a tensor, by the end of OpenAI's name of it."""


def num_copies(config: WhisperConfig) -> int:
    """Return how often the width must be taken, so that four times of it holds the feed-forward part; 1 for stock."""
    largest = max(config.encoder_ffn_dim, config.decoder_ffn_dim)
    copies: int = math.ceil(largest / (MLP_PER_WIDTH * config.d_model))
    return max(1, copies)


def widened(name: str, tensor: Tensor, *, width: int, copies: int) -> Tensor:
    """Return a tensor of the wider model.

    Args:
        name: OpenAI's.
        tensor: of the model.
        width: of the model.
        copies: from `num_copies`.

    Raises:
        ValueError: for a tensor that Whisper does not have.
    """
    axes = next((axes for end, axes in _AXES if name.endswith(end)), None)
    if axes is None or len(axes) != tensor.ndim:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is no tensor of Whisper")
    for axis, what in enumerate(axes):
        if what == _REPEAT and copies > 1:
            tensor = torch.cat([tensor] * copies, dim=axis)
        elif what in (_FILL, _FILL_MLP):
            size = width * copies * (MLP_PER_WIDTH if what == _FILL_MLP else 1)
            tensor = _filled(tensor, axis, size)
    return tensor


def _filled(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Return the tensor with zeros behind it along an axis."""
    missing = size - tensor.shape[axis]
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
