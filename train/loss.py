"""The training loss, summed over label tokens so that updates of any make-up weigh every token alike.

Logits are made for label tokens alone, and a chunk of them at a time: those of 16 clips of 448 positions would fill
4.9 GiB with their gradients, to be read once.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `T` label positions, `N` label tokens, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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


def chunked_nll(
    rows: Tensor, weight: Tensor, labels: Tensor, *, chunk_tokens: int, label_smoothing: float = 0.0
) -> Tensor:
    """Sum the negative log-likelihood of `rows @ weight.T`, in nats, without ever holding all logits.

    Equal to `summed_nll` of those logits. The backward makes each chunk again instead of keeping its gradient from the
    forward, as `torch.nn.functional.linear_cross_entropy` does: there the loss scale is not known yet, and the small
    probabilities of an FP16 gradient would be lost. The fourth matmul costs 0.2 % of an update of large-v3.

    Args:
        rows: (N, D) last hidden states of the label tokens; under autocast multiplied in its dtype.
        weight: (V, D) of the projection; cast once a forward and once a backward.
        labels: (N,) int64, none of them masked.
        chunk_tokens: rows whose logits exist at one time.
        label_smoothing: mass given to the uniform distribution, in [0, 1).

    Returns:
        Scalar in float32 (float64 for float64 rows).
    """
    device_type = rows.device.type
    is_autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if is_autocast else rows.dtype
    total: Tensor = _ChunkedNll.apply(rows, weight, labels, dtype, chunk_tokens, label_smoothing)
    return total


class _ChunkedNll(torch.autograd.Function):
    """See `chunked_nll`."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, chunk_tokens: int, smoothing: float
    ) -> Tensor:
        exact = torch.promote_types(dtype, torch.float32)
        kept = rows.to(dtype)
        total = torch.zeros((), dtype=exact, device=rows.device)
        log_sums = torch.empty(len(rows), dtype=exact, device=rows.device)
        with torch.autocast(rows.device.type, enabled=False):
            cast = weight.to(dtype)
            for start in range(0, len(rows), chunk_tokens):
                piece = slice(start, start + chunk_tokens)
                logits = (kept[piece] @ cast.T).to(exact)
                log_sums[piece] = torch.logsumexp(logits, dim=1)
                own = logits.gather(1, labels[piece, None])[:, 0]
                expected = own if smoothing == 0.0 else (1.0 - smoothing) * own + smoothing * logits.mean(dim=1)
                total += (log_sums[piece] - expected).sum()
        ctx.save_for_backward(kept, weight, labels, log_sums)
        ctx.chunk_tokens, ctx.smoothing, ctx.rows_dtype = chunk_tokens, smoothing, rows.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        (gradient,) = gradients
        kept, weight, labels, log_sums = ctx.saved_tensors
        learns_rows, learns_weight = ctx.needs_input_grad[:2]
        of_rows = torch.empty_like(kept) if learns_rows else None
        of_weight = torch.zeros(weight.shape, dtype=log_sums.dtype, device=weight.device) if learns_weight else None
        with torch.autocast(kept.device.type, enabled=False):
            cast = weight.to(kept.dtype)
            for start in range(0, len(kept), ctx.chunk_tokens):
                piece = slice(start, start + ctx.chunk_tokens)
                share = (kept[piece] @ cast.T).to(log_sums.dtype)
                share.sub_(log_sums[piece, None]).exp_()  # probabilities
                share.scatter_add_(1, labels[piece, None], share.new_full((len(share), 1), ctx.smoothing - 1.0))
                if ctx.smoothing:
                    share.sub_(ctx.smoothing / weight.shape[0])
                share = share.mul_(gradient).to(kept.dtype)  # scaled before it is halved
                if of_rows is not None:
                    of_rows[piece] = share @ cast
                if of_weight is not None:
                    of_weight += share.T @ kept[piece]
        return (
            None if of_rows is None else of_rows.to(ctx.rows_dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            None,
            None,
            None,
            None,
        )


class TrainingObjective(nn.Module):
    """A Whisper with its loss as forward, so that Accelerate wraps autocast and gradient exchange around both."""

    def __init__(self, whisper: WindowedWhisper, *, label_smoothing: float = 0.0, chunk_tokens: int = 0) -> None:
        """Remember the parts.

        Args:
            whisper: the model.
            label_smoothing: mass given to the uniform distribution, in [0, 1).
            chunk_tokens: label tokens whose logits exist at one time; 0 is all of them. Fewer than that go the plain
                way, with one matmul less.
        """
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"trainer.label_smoothing={label_smoothing} must lie in 0 to 1")
        self.whisper = whisper
        self.label_smoothing = label_smoothing
        self.chunk_tokens = chunk_tokens
        self._encoder_learns = any(p.requires_grad for p in whisper.model.encoder.parameters())

    def forward(
        self,
        input_features: Tensor,
        decoder_input_ids: Tensor,
        labels: Tensor,
        *,
        num_label_tokens: int | None = None,
    ) -> Tensor:
        """Return the summed loss of a micro-batch.

        Args:
            input_features: (B, M, F) float32.
            decoder_input_ids: (B, T) int64.
            labels: (B, T) int64.
            num_label_tokens: N, where the caller knows it; else the host waits for the device to count.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._encoder_learns):
            hidden = encode(self.whisper.model.encoder, input_features)
        states = self.whisper.model.decoder(
            input_ids=decoder_input_ids, encoder_hidden_states=hidden, use_cache=False
        ).last_hidden_state
        index = label_positions(labels, num_label_tokens)
        return self._nll(states.flatten(0, 1)[index], labels.flatten()[index])

    def _nll(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of label tokens, (N, D) and (N,)."""
        projection = self.whisper.proj_out
        if 0 < self.chunk_tokens < len(rows) and torch.is_grad_enabled():
            return chunked_nll(
                rows,
                projection.weight,
                labels,
                chunk_tokens=self.chunk_tokens,
                label_smoothing=self.label_smoothing,
            )
        # Without a gradient through the module itself, so that what watches modules sees its output.
        size = self.chunk_tokens or max(1, len(rows))
        pieces = zip(rows.split(size), labels.split(size), strict=True)
        losses = [
            summed_nll(projection(piece)[None], of_piece[None], label_smoothing=self.label_smoothing)
            for piece, of_piece in pieces
        ]
        return torch.stack(losses).sum()


def label_positions(labels: Tensor, num_label_tokens: int | None = None) -> Tensor:
    """Return where the label tokens stand in the flattened labels, in their order.

    Args:
        labels: (B, T) int64.
        num_label_tokens: N, so that the host need not wait for the device to count them.
    """
    is_masked = labels.flatten() == IGNORE_INDEX
    if num_label_tokens is None:
        return (~is_masked).nonzero()[:, 0]
    return torch.argsort(is_masked.to(torch.uint8), stable=True)[:num_label_tokens]
