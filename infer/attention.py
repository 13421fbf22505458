"""Whisper's attention without copies: strided heads straight into SDPA, and one half-precision copy of each input.

Same weights, same names and, bit for bit, the same numbers as `WhisperAttention`, which makes its heads contiguous and
lets autocast cast one input three times, once for each projection: under AMP those three copies are also kept for the
backward, and the decoder keeps two of the encoder's output for each of its layers.

Shapes: `B` clips, `S` positions asked, `K` positions answered, `H` heads, `D` width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention


class StridedAttention(WhisperAttention):
    """Attention over a whole sequence; with a cache, as in generation, it is `WhisperAttention`."""

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (B, S, D) attended states, and no weights.

        Args:
            hidden_states: (B, S, D).
            key_value_states: (B, K, D) of the encoder for cross-attention; None attends to `hidden_states`.
            past_key_values: of generation.
            attention_mask: as in `WhisperAttention`; None is causal where the module is.
            output_attentions: the weights are wanted too.
            options: of `WhisperAttention`.
        """
        asked = key_value_states if key_value_states is not None else hidden_states
        is_plain = past_key_values is None and not output_attentions and self.config._attn_implementation == "sdpa"
        if not is_plain or asked.shape[0] != hidden_states.shape[0]:
            stock: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, key_value_states, past_key_values, attention_mask, output_attentions, **options
            )
            return stock
        # A power of two, as 1 / 8 is for the 64-wide heads of every Whisper, scales without rounding: before or after
        # the product is the same. Any other is multiplied in where Whisper does it, on the query.
        is_exact = math.frexp(self.scaling)[0] == 0.5
        query = self.q_proj(lowered(hidden_states))
        attended = nn.functional.scaled_dot_product_attention(
            self._split(query if is_exact else query * self.scaling),
            self._split(self.k_proj(lowered(asked))),
            self._split(self.v_proj(lowered(asked))),
            attn_mask=attention_mask,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scaling if is_exact else 1.0,
            is_causal=self.is_causal and attention_mask is None and hidden_states.shape[1] > 1,
        )
        projected: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return projected, None

    def _split(self, states: Tensor) -> Tensor:
        """Return (B, H, S, D / H), strided."""
        split: Tensor = states.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        return split


class _Lowered(torch.autograd.Function):
    """The cast of autocast, with the copy already made: each use has a gradient of its own, added up in FP32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = states.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


def lowered(states: Tensor) -> Tensor:
    """Return the states in the dtype of the autocast around, if there is one; all calls share one copy.

    The copy hangs on the tensor itself, so it lives exactly as long, also where a checkpoint asks in the backward.
    Nothing may change the states in place after that.
    """
    device = states.device.type
    if states.dtype != torch.float32 or not torch.is_autocast_enabled(device) or torch.compiler.is_compiling():
        return states
    dtype = torch.get_autocast_dtype(device)
    copy: Tensor | None = getattr(states, "lowered_copy", None)
    if copy is None or copy.dtype != dtype:
        copy = states.detach().to(dtype)
        states.lowered_copy = copy  # type: ignore[attr-defined]
    if not (torch.is_grad_enabled() and states.requires_grad):
        return copy
    return _Lowered.apply(states, copy)  # type: ignore[no-any-return]
