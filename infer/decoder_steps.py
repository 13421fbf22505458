"""Whisper's decoder one step at a time, with its caches in plain tensors.

The arithmetic is that of `WhisperDecoder` in transformers, over the same weights. What it leaves out is the work around
it: masks built anew for each token, caches that are joined and copied, logits of positions that nobody reads. On a CPU
that work takes longer than a small model's matmuls.

Shapes: `B` rows, `S` encoder positions, `T` positions given in one step, `L` positions given so far, `H` heads,
`D` width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoder, WhisperDecoderLayer

from infer.encoder import WindowedWhisper

FEW_ROWS = 12  # measured with a vocabulary of 51,865 and widths of 384 and 512


class DecoderSteps:
    """A batch of rows on its way through the decoder; rows may leave, none may come."""

    def __init__(
        self, model: WindowedWhisper, hidden: Tensor | Sequence[Tensor], *, room: int, padding: Tensor | None = None
    ) -> None:
        """Compute what every step attends to.

        Args:
            model: in evaluation mode.
            hidden: (B, S, D) from the encoder; or several, for windows of several lengths, one after the other. Only
                the product with what was heard is then taken length by length, as it would be alone.
            room: positions that will be given, at most `max_target_positions`.
            padding: (B,) positions at the beginning of each row that are no tokens; None if there are none.
        """
        decoder: WhisperDecoder = model.model.decoder
        self._decoder = decoder
        self._output = model.proj_out
        self._padding = padding if padding is not None and bool(padding.any()) else None
        self._cross: list[list[tuple[Tensor, Tensor]]] = []
        """Keys and values of each layer, for each window length."""
        self._past: list[tuple[Tensor, Tensor]] = []
        groups = [hidden] if isinstance(hidden, Tensor) else list(hidden)
        self._sizes = [len(group) for group in groups]
        for layer in layers_of(decoder):
            attention = layer.encoder_attn
            self._cross.append([_keys_and_values(attention, group) for group in groups])
            past = (sum(self._sizes), attention.num_heads, room, attention.head_dim)
            self._past.append((groups[0].new_empty(past), groups[0].new_empty(past)))
        self.length = 0

    def advance(self, tokens: Tensor) -> Tensor:
        """Give each row its next tokens and return what the decoder makes of them.

        Args:
            tokens: (B, T) ids.

        Returns:
            (B, T, D) hidden states; `logits` reads them.
        """
        decoder = self._decoder
        num_tokens = tokens.shape[1]
        hidden = decoder.embed_tokens(tokens) + self._position_embeddings(num_tokens)
        mask = self._mask(num_tokens, tokens.device)
        end = self.length + num_tokens
        for i, layer in enumerate(layers_of(decoder)):
            hidden = self._layer(i, layer, hidden, end, mask)
        self.length = end
        normed: Tensor = decoder.layer_norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (B, V) logits of (B, D) hidden states."""
        weight: Tensor = self._output.weight
        if hidden.device.type == "cpu" and weight.dtype == torch.float32 and 1 < hidden.shape[0] <= FEW_ROWS:
            # The same product turned around: for few rows and a large vocabulary a third to four fifths less time.
            return (weight @ hidden.t()).t().contiguous()
        logits: Tensor = self._output(hidden)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Leave only some rows, in the order given.

        Args:
            rows: (B',) their indices; rising, where there are windows of several lengths.
        """
        parts = [rows] if len(self._sizes) == 1 else self._by_length(rows)
        self._sizes = [len(part) for part in parts]
        self._cross = [
            [
                (keys.index_select(0, part), values.index_select(0, part))
                for (keys, values), part in zip(layer, parts, strict=True)
            ]
            for layer in self._cross
        ]
        self._past = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self._past]
        self._padding = None if self._padding is None else self._padding.index_select(0, rows)

    def _by_length(self, rows: Tensor) -> list[Tensor]:
        """Return which rows of each window length are among some, counted within it."""
        parts, first = [], 0
        for size in self._sizes:
            parts.append(rows[(rows >= first) & (rows < first + size)] - first)
            first += size
        return parts

    def _position_embeddings(self, num_tokens: int) -> Tensor:
        table: Tensor = self._decoder.embed_positions.weight
        end = self.length + num_tokens
        if self._padding is None:
            return table[self.length : end]
        positions = torch.arange(self.length, end, device=table.device) - self._padding[:, None]
        return table[positions.clamp_min(0)]

    def _mask(self, num_tokens: int, device: torch.device) -> Tensor | None:
        """Return (B or 1, 1, T, L) booleans, True where a position may look; None where it may look everywhere."""
        if num_tokens == 1 and self._padding is None:
            return None
        end = self.length + num_tokens
        looks = torch.arange(end, device=device)
        stands = torch.arange(self.length, end, device=device)[:, None]
        mask = (looks <= stands)[None, None]
        if self._padding is not None:
            # A padding position looks at itself: with nothing to look at it would become NaN, and spread.
            mask = (mask & (looks >= self._padding[:, None, None, None])) | (looks == stands)
        return mask

    def _layer(self, index: int, layer: WhisperDecoderLayer, hidden: Tensor, end: int, mask: Tensor | None) -> Tensor:
        attention = layer.self_attn
        normed = layer.self_attn_layer_norm(hidden)
        keys, values = self._past[index]
        keys[:, :, self.length : end] = heads_of(attention, attention.k_proj(normed))
        values[:, :, self.length : end] = heads_of(attention, attention.v_proj(normed))
        hidden = hidden + _attend(attention, normed, keys[:, :, :end], values[:, :, :end], mask)
        normed = layer.encoder_attn_layer_norm(hidden)
        hidden = hidden + self._listen(layer.encoder_attn, normed, self._cross[index])
        normed = layer.final_layer_norm(hidden)
        fed: Tensor = layer.fc2(layer.activation_fn(layer.fc1(normed)))
        return hidden + fed

    def _listen(self, attention: WhisperAttention, hidden: Tensor, heard: list[tuple[Tensor, Tensor]]) -> Tensor:
        if len(heard) == 1:
            return _attend(attention, hidden, *heard[0], None)
        queries = heads_of(attention, attention.q_proj(hidden) * attention.scaling)
        mixed = torch.cat(
            [
                nn.functional.scaled_dot_product_attention(part, keys, values, scale=1.0)
                for part, (keys, values) in zip(queries.split(self._sizes), heard, strict=True)
                if len(part)
            ]
        )
        projected: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(hidden.shape))
        return projected


def _keys_and_values(attention: WhisperAttention, hidden: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*hidden.shape[:2], attention.num_heads, attention.head_dim)
    keys = attention.k_proj(hidden).view(shape).transpose(1, 2).contiguous()
    values = attention.v_proj(hidden).view(shape).transpose(1, 2).contiguous()
    return keys, values


def layers_of(decoder: WhisperDecoder) -> list[WhisperDecoderLayer]:
    """Return the layers of a decoder, by their type."""
    return list(decoder.layers)


def heads_of(attention: WhisperAttention, projected: Tensor) -> Tensor:
    """Split (B, T, D) into (B, H, T, D / H)."""
    return projected.view(*projected.shape[:2], attention.num_heads, attention.head_dim).transpose(1, 2)


def _attend(attention: WhisperAttention, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    # Whisper scales the queries, before the product: in half precision the order decides which digits are lost.
    queries = heads_of(attention, attention.q_proj(hidden) * attention.scaling)
    mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0)
    projected: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(hidden.shape))
    return projected
