"""The training loss, summed over label tokens so that updates of any make-up weigh every token alike.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `T` label positions, `V` vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from data.labels import IGNORE_INDEX
from infer.encoder import WindowedWhisper, encode


def summed_nll(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum the negative log-likelihood over label tokens, in nats.

    Summed, not averaged, so that micro-batches and ranks with unlike label lengths can be weighed together by one
    global token count (see `train.step`).

    Args:
        logits: (B, T, V), any float dtype; cast to float32 here, because BF16 carries only 8 significant bits.
        labels: (B, T) int64; positions equal to IGNORE_INDEX carry no loss.
        label_smoothing: mass given to the uniform distribution, in [0, 1).

    Returns:
        Float32 scalar on the device of `logits`.

    Raises:
        ValueError: if `logits` and `labels` disagree in (B, T).

    Source: label smoothing as in Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    if logits.shape[:2] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} disagree in (B, T)")
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


class TrainingObjective(nn.Module):
    """A Whisper with its loss as forward, so that Accelerate wraps autocast and gradient exchange around both."""

    def __init__(self, whisper: WindowedWhisper, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"trainer.label_smoothing={label_smoothing} must lie in 0 to 1")
        self.whisper = whisper
        self.label_smoothing = label_smoothing
        self._encoder_learns = any(p.requires_grad for p in whisper.model.encoder.parameters())

    def forward(self, input_features: Tensor, decoder_input_ids: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of a micro-batch.

        Args:
            input_features: (B, M, F) float32.
            decoder_input_ids: (B, T) int64.
            labels: (B, T) int64.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._encoder_learns):
            hidden = encode(self.whisper.model.encoder, input_features)
        outputs = self.whisper(
            decoder_input_ids=decoder_input_ids,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            use_cache=False,
        )
        return summed_nll(outputs.logits, labels, label_smoothing=self.label_smoothing)
