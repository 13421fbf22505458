"""What the first step of a search says before any text: the language, and whether anybody speaks.

Shapes: `B` clips, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def likeliest_languages(logits: Tensor, language_ids: Mapping[str, int]) -> list[tuple[str, float]]:
    """Return the likeliest language of each clip and its probability among all languages.

    Args:
        logits: (B, V) behind the start token.
        language_ids: token of each ISO code.
    """
    ids = torch.tensor(list(language_ids.values()), device=logits.device)
    probabilities, best = logits[:, ids].softmax(-1).max(-1)
    codes = list(language_ids)
    return [(codes[i], p) for i, p in zip(best.tolist(), probabilities.tolist(), strict=True)]


def no_speech_probs(logits: Tensor, no_speech_id: int | None) -> list[float | None]:
    """Return how likely it is that nobody speaks, of each clip; None for a model without the token.

    Args:
        logits: (B, V) behind the start token.
        no_speech_id: of `<|nospeech|>`.
    """
    if no_speech_id is None:
        return [None] * len(logits)
    return list((logits[:, no_speech_id] - logits.logsumexp(-1)).exp().tolist())
