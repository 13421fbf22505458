"""Token after token: the likeliest one, or one that is drawn, for a batch of rows; rows that have ended leave it.

Shapes: `B` rows, `V` vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infer.decoder_steps import DecoderSteps
from infer.token_rules import TokenRules

STEPS_BETWEEN_LOOKS = 8  # on a device other than the CPU: each look at what has ended makes the host wait for it


@dataclass(frozen=True)
class Said:
    """What one row says."""

    tokens: tuple[int, ...]
    """Without the end token."""
    sum_logprob: float
    """Natural logarithm, over the tokens and the end token, after the rules."""
    is_cut: bool
    """True if the limit came before the end token."""

    @property
    def avg_logprob(self) -> float:
        """Mean a token, the end token counted, in nats.

        Source: openai/whisper `decoding.py`, `DecodingTask.run`.
        """
        return self.sum_logprob / (len(self.tokens) + 1)


def search(
    steps: DecoderSteps,
    logits: Tensor,
    rules: TokenRules,
    *,
    end_id: int,
    limit: int | Sequence[int],
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> list[Said]:
    """Say each row's tokens, one after the other.

    Args:
        steps: the rows, their prefix given.
        logits: (B, V) of the first token.
        rules: what may come.
        end_id: of the token that ends a text.
        limit: most tokens, 1 or more; or those of each row.
        temperature: 0 takes the likeliest token; above it tokens are drawn from the logits divided by it.
        seeds: of the draws of each row, so that a row draws the same whatever shares its batch.

    Returns:
        One result a row, in order.
    """
    device = logits.device
    num_rows = logits.shape[0]
    limits = [limit] * num_rows if isinstance(limit, int) else list(limit)
    longest = max(limits)
    last = None if min(limits) == longest else torch.tensor(limits, device=device) - 1
    said = torch.full((num_rows, longest), end_id, dtype=torch.long, device=device)
    sums = torch.zeros(num_rows, dtype=torch.float64, device=device)
    lots = _draw_lots(seeds, longest, device) if temperature > 0 else None
    rows = torch.arange(num_rows, device=device)
    done = torch.zeros(num_rows, dtype=torch.bool, device=device)
    look_every = 1 if device.type == "cpu" else STEPS_BETWEEN_LOOKS
    for n in range(longest):
        scores = logits.float()
        rules.apply_(scores, said[rows, :n])
        if lots is None:
            best, tokens = scores.max(dim=-1)
        else:
            tokens = _drawn(scores / temperature, lots[rows, n])
            best = scores.gather(1, tokens[:, None])[:, 0]
        logprobs = best - scores.logsumexp(dim=-1)
        sums[rows] += logprobs.double().masked_fill(done, 0.0)
        tokens = tokens.masked_fill(done, end_id)
        said[rows, n] = tokens
        done = done | (tokens == end_id)
        if last is not None:
            done = done | (last[rows] == n)
        if n + 1 == longest:
            break
        if (n + 1) % look_every == 0:
            left = (~done).nonzero()[:, 0]
            if len(left) == 0:
                break
            # Copying the caches of a row costs a few steps of it, so only where half of the rows are gone.
            if 2 * len(left) <= len(rows):
                steps.keep(left)
                rows, tokens, done = rows[left], tokens[left], done[left]
        logits = steps.logits(steps.advance(tokens[:, None])[:, -1])
    ended = zip(said.tolist(), limits, sums.tolist(), strict=True)
    return [_said(ids[:most], total, end_id) for ids, most, total in ended]


def seeds_of(input_features: Tensor, rows: Sequence[int], seed: int, attempt: int) -> list[int]:
    """Return a seed for each row: of what it hears, so that a window draws the same whatever shares its batch."""
    sounds = [zlib.crc32(input_features[row].float().cpu().numpy().tobytes()) for row in rows]
    return [sound ^ (seed * 1_000_003 + attempt * 7919) & 0xFFFFFFFF for sound in sounds]


def _said(ids: list[int], sum_logprob: float, end_id: int) -> Said:
    is_cut = end_id not in ids
    return Said(tuple(ids if is_cut else ids[: ids.index(end_id)]), sum_logprob, is_cut)


def _draw_lots(seeds: Sequence[int], limit: int, device: torch.device) -> Tensor:
    """Return (B, limit) numbers in [0, 1), float64, each row from its own seed."""
    lots = [torch.rand(limit, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(lots).to(device)


def _drawn(scores: Tensor, lots: Tensor) -> Tensor:
    """Return (B,) tokens: where each lot falls on the line that the probabilities divide."""
    line = scores.double().softmax(dim=-1).cumsum(dim=-1)
    place = (lots * line[:, -1])[:, None]
    return torch.searchsorted(line, place, right=True)[:, 0].clamp_max(scores.shape[1] - 1)
