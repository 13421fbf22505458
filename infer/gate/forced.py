"""FP16 beside strict FP32 with the same text given to both: where do they disagree, and how large do values become?

Teacher-forced, so that one token that differs does not change all that follow.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `T` label positions, `V` vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from data.audio import SAMPLING_RATE, Waveform
from data.features import LogMel
from data.labels import IGNORE_INDEX, LabelBuilder, Labels
from data.rows import Row
from data.windows import FULL_FRAMES, Windows
from infer.artefact import Artefact
from infer.half import FP16_MAX

CLAMP = 64504.0
"""Where stock Whisper cuts off what its encoder layers give in FP16: the largest value less 1000."""


@dataclass
class Agreement:
    """Counts over label tokens."""

    num_tokens: int = 0
    num_same: int = 0
    kl_nats: float = 0.0
    """Sum over tokens of the divergence of FP16's distribution from that of FP32."""

    def describe(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        tokens = max(1, self.num_tokens)
        return {"tokens": self.num_tokens, "top1": self.num_same / tokens, "kl": self.kl_nats / tokens}


@dataclass
class Headroom:
    """Largest values that modules gave in half arithmetic."""

    largest: dict[str, float] = field(default_factory=dict)
    """By module."""
    num_clamped: int = 0
    """Values that an encoder layer cut off."""
    num_nonfinite: int = 0

    @property
    def share(self) -> float:
        """The largest of them over FP16's largest value."""
        return max(self.largest.values(), default=0.0) / FP16_MAX

    def describe(self) -> dict[str, Any]:
        """Return the figures for JSON, with the three modules that come nearest to the limit."""
        worst = sorted(self.largest, key=lambda name: -self.largest[name])[:3]
        return {
            "share_of_max": self.share,
            "clamp_hits": self.num_clamped,
            "nonfinite": self.num_nonfinite,
            "largest": {name: self.largest[name] for name in worst},
        }


class HeadroomMeter:
    """Look at what every module of a model gives, while the block lasts."""

    def __init__(self, model: nn.Module) -> None:
        """Remember the model."""
        self.model = model
        self.found = Headroom()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Headroom:
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self.found

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, _: Any, output: Any) -> None:
            for tensor in output if isinstance(output, tuple | list) else [output]:
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    self._count(name, module, tensor)

        return look

    def _count(self, name: str, module: nn.Module, tensor: Tensor) -> None:
        size = tensor.detach().float().abs()
        is_finite = torch.isfinite(size)
        self.found.num_nonfinite += int((~is_finite).sum())
        largest = float(torch.where(is_finite, size, 0.0).max()) if size.numel() else 0.0
        self.found.largest[name] = max(self.found.largest.get(name, 0.0), largest)
        if isinstance(module, WhisperEncoderLayer):
            self.found.num_clamped += int((is_finite & (size >= CLAMP)).sum())


def compare_forced(
    half: Artefact,
    strict: Artefact,
    rows: Sequence[Row],
    waveforms: Sequence[Waveform],
    *,
    windows: Windows,
    batch_size: int,
) -> Agreement:
    """Give both the reference texts and compare what each expects next.

    Args:
        half: computing in FP16.
        strict: computing in FP32.
        rows: held-out clips with their texts.
        waveforms: of the rows.
        windows: that clips are padded to.
        batch_size: clips at once.
    """
    found = Agreement()
    for features, tokens, labels in _batches(half, rows, waveforms, windows, batch_size):
        low, high = forced_logits(half, features, tokens), forced_logits(strict, features, tokens)
        taken = labels != IGNORE_INDEX
        low, high = low.to(high.device)[taken], high[taken]
        expected, said = high.log_softmax(-1), low.log_softmax(-1)
        found.num_tokens += int(taken.sum())
        found.num_same += int((high.argmax(-1) == low.argmax(-1)).sum())
        found.kl_nats += float((expected.exp() * (expected - said)).sum())
    return found


@torch.inference_mode()
def forced_logits(artefact: Artefact, features: Tensor, tokens: Tensor) -> Tensor:
    """Return (B, T, V) float32 logits of given texts.

    Args:
        artefact: computes as it was loaded.
        features: (B, M, F).
        tokens: (B, T) decoder inputs, padded at the end.
    """
    model = artefact.model
    output = model(
        input_features=features.to(model.device, model.dtype),
        decoder_input_ids=tokens.to(model.device),
        use_cache=False,
    )
    logits: Tensor = output.logits.float().cpu()
    return logits


def measure_headroom(
    half: Artefact, sounds: Sequence[Waveform], text: Row, *, batch_size: int = 4, num_frames: int = FULL_FRAMES
) -> Headroom:
    """Run sounds without speech, 30 s each, through a half model that is given some text.

    Args:
        half: computing in FP16.
        sounds: waveforms up to 30 s.
        text: what the decoder is given, as if it had heard it.
        batch_size: sounds at once.
        num_frames: of the window.
    """
    log_mel = LogMel(half.model.config.num_mel_bins)
    builder = LabelBuilder(half.tokenizer, max_positions=half.model.config.max_target_positions)
    tokens = torch.tensor([builder.build(text, with_prompt=False).decoder_input_ids])
    meter = HeadroomMeter(half.model)
    with meter as found:
        for start in range(0, len(sounds), batch_size):
            features = log_mel.batch(sounds[start : start + batch_size], num_frames=num_frames)
            forced_logits(half, features, tokens.expand(len(features), -1))
    return found


def _batches(
    artefact: Artefact, rows: Sequence[Row], waveforms: Sequence[Waveform], windows: Windows, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield features (B, M, F), decoder inputs (B, T) and labels (B, T) of clips that share a window."""
    config = artefact.model.config
    log_mel = LogMel(config.num_mel_bins)
    builder = LabelBuilder(artefact.tokenizer, max_positions=config.max_target_positions)
    frames = [windows.num_frames(len(waveform) / SAMPLING_RATE) for waveform in waveforms]
    order = sorted(range(len(rows)), key=lambda i: (frames[i], i))
    for num_frames, group in itertools.groupby(order, key=lambda i: frames[i]):
        indices = list(group)
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            features = log_mel.batch([waveforms[i] for i in part], num_frames=num_frames)
            labels = [builder.build(rows[i], with_prompt=False) for i in part]
            yield features, *_pad(labels, builder.end_id)


def _pad(labels: Sequence[Labels], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(len(one.labels) for one in labels)
    tokens = [[*one.decoder_input_ids, *[pad_id] * (width - len(one.labels))] for one in labels]
    wanted = [[*one.labels, *[IGNORE_INDEX] * (width - len(one.labels))] for one in labels]
    return torch.tensor(tokens), torch.tensor(wanted)
