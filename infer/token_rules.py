"""Which token may come next: the suppress lists of the model, and Whisper's rules for timestamps, for whole batches.

Shapes: `B` rows, `N` tokens said so far, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_INITIAL_TIMESTAMP = 50  # steps of 0.02 s; a first word later than 1 s after the window's start is not believed


class TokenRules:
    """Set the logits of what must not come to minus infinity."""

    def __init__(
        self,
        *,
        suppressed: Sequence[int],
        suppressed_first: Sequence[int],
        end_id: int,
        no_timestamps_id: int,
        timestamps: bool,
        device: torch.device,
    ) -> None:
        """Put the lists where the logits are.

        Args:
            suppressed: ids that never come.
            suppressed_first: ids that do not come first.
            end_id: of `<|endoftext|>`; all text lies below it.
            no_timestamps_id: of `<|notimestamps|>`; the times follow it.
            timestamps: whether the rules for times hold.
            device: of the logits.
        """
        self._suppressed = torch.tensor(list(suppressed), dtype=torch.long, device=device)
        self._suppressed_first = torch.tensor(list(suppressed_first), dtype=torch.long, device=device)
        self._end_id = end_id
        self._no_timestamps_id = no_timestamps_id
        self._begin = no_timestamps_id + 1
        self._timestamps = timestamps

    def apply_(self, logits: Tensor, said: Tensor) -> None:
        """Forbid in place.

        Args:
            logits: (B, V) of the next token.
            said: (B, N) tokens since the prefix.
        """
        if len(self._suppressed):
            logits.index_fill_(1, self._suppressed, -torch.inf)
        if said.shape[1] == 0 and len(self._suppressed_first):
            logits.index_fill_(1, self._suppressed_first, -torch.inf)
        if self._timestamps:
            self._apply_times_(logits, said)

    def _apply_times_(self, logits: Tensor, said: Tensor) -> None:
        """Times come in pairs, never fall, and come where together they are likelier than any word.

        Source: openai/whisper `decoding.py`, `ApplyTimestampRules`.
        """
        begin = self._begin
        logits[:, self._no_timestamps_id] = -torch.inf
        text, times = logits[:, :begin], logits[:, begin:]
        if said.shape[1] == 0:
            text.fill_(-torch.inf)
            times[:, MAX_INITIAL_TIMESTAMP + 1 :] = -torch.inf
            return
        is_time = said >= begin
        last = is_time[:, -1]
        before = is_time[:, -2] if said.shape[1] > 1 else torch.ones_like(last)
        closing = last & ~before  # an end was said: another time, or the end of the text, must follow
        latest = torch.where(is_time, said - begin, -1).amax(dim=1)
        # The time that closes a segment may be said again, as the beginning of the next; no other one may.
        lowest = torch.where(closing, latest, latest + 1)
        forbidden = torch.arange(times.shape[1], device=logits.device) < lowest[:, None]
        times.masked_fill_(forbidden | (last & before)[:, None], -torch.inf)
        logits[:, : self._end_id].masked_fill_(closing[:, None], -torch.inf)
        is_time_likelier = times.logsumexp(dim=1) > text.amax(dim=1)
        text.masked_fill_(is_time_likelier[:, None], -torch.inf)
