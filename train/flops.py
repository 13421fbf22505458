"""Floating-point operations of an update, counted from the shapes of the model and of its batches.

Two for each multiply-add of a matrix product, convolution or attention; all else is left out, as in
`torch.utils.flop_counter`. Attention counts whole, also where it is causal. A backward costs twice the forward where
weights and inputs both learn, once where only one of them does; what a checkpoint or the attention kernel computes a
second time is counted apart, since it brings nothing new.

Shapes: `B` clips, `M` mel bins, `S` encoder positions, `T` label positions, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from infer.encoder import WindowedWhisper

PARTS = (
    "encoder conv",
    "encoder attention",
    "encoder mlp",
    "decoder attention",
    "cross attention",
    "decoder mlp",
    "logits",
)


@dataclass(frozen=True)
class Flops:
    """Operations of some work."""

    forward: float
    backward: float
    recomputed: float
    """A second time: by checkpoints, and by the backward of attention."""

    @property
    def needed(self) -> float:
        """What the model needs, however it is computed; the share of the card's rate is taken of this."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward, self.recomputed + other.recomputed)


class FlopCount:
    """Count for one model; its modules are looked at once, then any shape is a few multiplications."""

    def __init__(self, whisper: WindowedWhisper, *, loss_chunk_tokens: int = 0) -> None:
        """Look at what learns and what is checkpointed.

        Args:
            whisper: as it trains.
            loss_chunk_tokens: label tokens whose logits exist at one time; the backward makes chunks again.
        """
        self._loss_chunk_tokens = loss_chunk_tokens
        # (part, kind) to how often each of these occurs in a clip: S, T, label tokens, S * S, T * T, T * S
        self._terms: dict[tuple[str, str], Counter[str]] = {}
        encoder, decoder = whisper.model.encoder, whisper.model.decoder
        learns = self._convolutions(encoder.conv1, encoder.conv2)
        encoder_learns = any(p.requires_grad for p in encoder.parameters())
        for layer in encoder.layers:
            again = _is_checkpointed(layer) and (learns or _learns(layer))
            learns = self._attention("encoder attention", layer, "self_attn", "S", "S", learns, learns, again)
            learns = self._mlp("encoder mlp", layer, "S", learns, again)
        learns = learns or encoder_learns
        hears = learns
        learns = _learns(decoder.embed_tokens, decoder.embed_positions)
        for layer in decoder.layers:
            again = _is_checkpointed(layer) and (learns or hears or _learns(layer))
            learns = self._attention("decoder attention", layer, "self_attn", "T", "T", learns, learns, again)
            learns = self._attention("cross attention", layer, "encoder_attn", "T", "S", learns, hears, again)
            learns = self._mlp("decoder mlp", layer, "T", learns, again)
        self._linear("logits", whisper.proj_out, "L", learns or _learns(decoder.layer_norm), again=False)

    def of(self, num_clips: int, num_frames: int, num_labels: int, *, num_label_tokens: int | None = None) -> Flops:
        """Return the operations of a micro-batch.

        Args:
            num_clips: B.
            num_frames: mel frames of the window, 2 * S.
            num_labels: T, padding included.
            num_label_tokens: positions that carry loss, for which alone there are logits; None is all.
        """
        parts = self.by_part(num_clips, num_frames, num_labels, num_label_tokens=num_label_tokens).values()
        return sum(parts, Flops(0.0, 0.0, 0.0))

    def by_part(
        self, num_clips: int, num_frames: int, num_labels: int, *, num_label_tokens: int | None = None
    ) -> dict[str, Flops]:
        """Return the same for each of `PARTS`."""
        s, t = num_frames // 2, num_labels
        num_tokens = num_clips * t if num_label_tokens is None else num_label_tokens
        size = {"S": s, "T": t, "L": num_tokens / num_clips, "SS": s * s, "TT": t * t, "TS": t * s}
        sums = {key: num_clips * sum(size[name] * n for name, n in c.items()) for key, c in self._terms.items()}
        if 0 < self._loss_chunk_tokens < num_tokens:
            sums["logits", "recomputed"] = sums["logits", "forward"]
        kinds = ("forward", "backward", "recomputed")
        return {part: Flops(*(float(sums.get((part, kind), 0)) for kind in kinds)) for part in PARTS}

    def _add(self, part: str, kind: str, term: str, flops: float) -> None:
        self._terms.setdefault((part, kind), Counter())[term] += flops  # type: ignore[assignment]

    def _convolutions(self, first: nn.Conv1d, second: nn.Conv1d) -> bool:
        """Count both; the first runs over all frames, two for each position. Return whether their output learns."""
        learns = False
        for convolution, outputs in ((first, 2), (second, 1)):
            weight = convolution.weight
            flops = 2 * outputs * weight.numel()
            self._add("encoder conv", "forward", "S", flops)
            self._add("encoder conv", "backward", "S", flops * (weight.requires_grad + learns))
            learns = learns or _learns(convolution)
        return learns

    def _linear(
        self, part: str, module: nn.Module, term: str, learns: bool, *, again: bool, is_last: bool = False
    ) -> bool:
        """Count a linear layer with its adapters; return whether its output learns."""
        weights = [(name, weight) for name, weight in module.named_parameters() if weight.ndim == 2]
        for name, weight in weights:
            flops = 2 * weight.numel()
            is_inner = "lora_B" in name  # its input comes out of the adapter's own first half
            self._add(part, "forward", term, flops)
            self._add(part, "backward", term, flops * (weight.requires_grad + (learns or is_inner)))
            # A checkpoint stops computing when it has what the backward needs, before the layer's last product.
            if again and not (is_last and weight is weights[-1][1]):
                self._add(part, "recomputed", term, flops)
        return learns or _learns(module)

    def _attention(
        self,
        part: str,
        layer: nn.Module,
        name: str,
        asks: str,
        answers: str,
        learns: bool,
        hears: bool,
        again: bool,
    ) -> bool:
        """Count an attention of a layer; return whether the residual stream learns behind it."""
        attention = layer.get_submodule(name)
        is_cross = name == "encoder_attn"
        normed = learns or _learns(layer.get_submodule(f"{name}_layer_norm"))
        answered = hears if is_cross else normed
        touched = [
            self._linear(part, attention.get_submodule("q_proj"), asks, normed, again=again),
            self._linear(part, attention.get_submodule("k_proj"), answers, answered, again=again),
            self._linear(part, attention.get_submodule("v_proj"), answers, answered, again=again),
        ]
        width = attention.embed_dim
        assert isinstance(width, int)
        products = 2 * 2 * width  # scores, then the weighted sum
        self._add(part, "forward", asks + answers, products)
        if again:
            self._add(part, "recomputed", asks + answers, products)
        if any(touched):
            self._add(part, "backward", asks + answers, 2 * products)
            self._add(part, "recomputed", asks + answers, products / 2)  # the kernel keeps no scores
        out = self._linear(part, attention.get_submodule("out_proj"), asks, any(touched), again=again)
        return learns or out

    def _mlp(self, part: str, layer: nn.Module, term: str, learns: bool, again: bool) -> bool:
        normed = learns or _learns(layer.get_submodule("final_layer_norm"))
        inner = self._linear(part, layer.get_submodule("fc1"), term, normed, again=again)
        outer = self._linear(part, layer.get_submodule("fc2"), term, inner, again=again, is_last=True)
        return learns or outer


def _learns(*modules: nn.Module) -> bool:
    return any(p.requires_grad for module in modules for p in module.parameters())


def _is_checkpointed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "gradient_checkpointing", False))
