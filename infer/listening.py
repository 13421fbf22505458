"""What each token listens to: the weights of the cross-attention, read off a text that is given as a whole.

Shapes: `B` rows, `H` heads, `T` positions of the text, `S` encoder positions, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.whisper.modeling_whisper import WhisperAttention

from infer.decoder_steps import DecoderSteps, heads_of, layers_of
from infer.encoder import WindowedWhisper
from infer.warping import median_of_seven


def later_half(num_layers: int, num_heads: int) -> list[list[int]]:
    """Return layer and head of all heads of the later half of a decoder, for a model that names none.

    Source: openai/whisper `model.py`, the default in `Whisper.__init__`.
    """
    return [[layer, head] for layer in range(num_layers // 2, num_layers) for head in range(num_heads)]


def alignment_heads(model: WindowedWhisper) -> dict[int, list[int]]:
    """Return the heads that follow the speech, by layer.

    Args:
        model: its generation config may name them, as those of OpenAI's models do; else see `later_half`.

    Raises:
        ValueError: for a head that the model does not have.

    Source: openai/whisper `model.py`, `Whisper.set_alignment_heads`.
    """
    num_layers, num_heads = model.config.decoder_layers, model.config.decoder_attention_heads
    named = getattr(model.generation_config, "alignment_heads", None)
    heads: dict[int, list[int]] = {}
    for layer, head in named or later_half(num_layers, num_heads):
        if not (0 <= layer < num_layers and 0 <= head < num_heads):
            raise ValueError(
                f"generation_config.json: alignment_heads has [{layer}, {head}], but the decoder has {num_layers} "
                f"layers of {num_heads} heads; take the list of the model that was fine-tuned, or leave it out"
            )
        heads.setdefault(layer, []).append(head)
    return heads


class ListeningSteps(DecoderSteps):
    """Decoder steps that remember what was listened to; for one step, which gives the whole text.

    The text itself comes from the same kernels as ever. Beside them the weights of a few heads are computed once more,
    layer by layer, and only their sum is kept: of all heads of large-v3 the weights would take gigabytes.
    """

    def __init__(
        self,
        model: WindowedWhisper,
        hidden: Tensor,
        *,
        heads: dict[int, list[int]],
        num_tokens: Sequence[int],
        num_positions: Sequence[int],
    ) -> None:
        """Compute what the step attends to.

        Args:
            model: in evaluation mode.
            hidden: (B, S, D) from the encoder.
            heads: by layer.
            num_tokens: of each row; what is given behind them is padding.
            num_positions: of each row, that hold sound; what is behind them is silence of the window.
        """
        super().__init__(model, hidden, room=max(num_tokens))
        layers = layers_of(model.model.decoder)
        self._wanted: dict[WhisperAttention, list[int]] = {
            layers[i].encoder_attn: chosen for i, chosen in heads.items()
        }
        self._sizes_of_rows = list(zip(num_tokens, num_positions, strict=True))
        self._num_heads = sum(map(len, heads.values()))
        self._sums: list[Tensor | None] = [None] * len(num_tokens)

    @property
    def weights(self) -> list[Tensor]:
        """Of each row (T, S) float32: how much a token listens to a position, in deviations from the other tokens."""
        return [total / self._num_heads for total in self._sums if total is not None]

    def _listen(self, attention: WhisperAttention, hidden: Tensor, heard: list[tuple[Tensor, Tensor]]) -> Tensor:
        chosen = self._wanted.get(attention)
        if chosen is not None:
            queries = heads_of(attention, attention.q_proj(hidden) * attention.scaling)[:, chosen]
            keys = heard[0][0][:, chosen]
            for row, (num_tokens, num_positions) in enumerate(self._sizes_of_rows):
                product = queries[row, :, :num_tokens] @ keys[row, :, :num_positions].transpose(1, 2)
                total = followed(product.float()).sum(dim=0)
                before = self._sums[row]
                self._sums[row] = total if before is None else before + total
        return super()._listen(attention, hidden, heard)


def followed(product: Tensor) -> Tensor:
    """Return (H, T, S) how far each weight stands out among those of the other tokens, smoothed along the sound.

    Args:
        product: (H, T, S) float32, queries with keys.

    Source: openai/whisper `timing.py`, `find_alignment`.
    """
    weights = product.softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    # Where all tokens listen alike there is no deviation, and nothing stands out.
    return median_of_seven((weights - mean) / deviation.clamp_min(torch.finfo(torch.float32).tiny))


def costs_of(weights: Sequence[Tensor], first: int, num_text: Sequence[int]) -> tuple[Any, list[tuple[int, int]]]:
    """Return (B, N, M) costs for `first_frames`, padded, and the size of each row.

    Args:
        weights: (T, S) of each row.
        first: index of the position that says the first token of text.
        num_text: tokens of text of each row; the end of the text is one more.
    """
    sizes = [(num + 1, weight.shape[1]) for num, weight in zip(num_text, weights, strict=True)]
    padded = torch.zeros(len(weights), max(n for n, _ in sizes), max(m for _, m in sizes))
    for row, (num_tokens, num_frames) in enumerate(sizes):
        padded[row, :num_tokens, :num_frames] = -weights[row][first : first + num_tokens].cpu()
    return padded.numpy(), sizes
