"""Signs that a text is not to be trusted: loops, low probability, silence; and what is done about it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from infer.decode_settings import DecodeSettings

MAX_PERIOD = 40  # tokens; a loop of whole sentences is seen by the compression ratio


def compression_ratio(text: str) -> float:
    """Return how many times smaller zlib makes a text; above 2.4 it repeats itself. An empty text has 0.

    Source: openai/whisper `utils.compression_ratio`.
    """
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


def tail_repetitions(ids: Sequence[int], *, max_period: int = MAX_PERIOD) -> tuple[int, int]:
    """Find the phrase that a text ends on again and again.

    Args:
        ids: tokens of the text.
        max_period: longest phrase, in tokens.

    Returns:
        (length of the phrase in tokens, how often it stands at the end in a row); of several, the one that covers most
        of the text, the shortest first. (0, 0) for no tokens.
    """
    best = (0, 0)
    for period in range(1, min(max_period, len(ids)) + 1):
        phrase = list(ids[-period:])
        count = 1
        while list(ids[-(count + 1) * period : -count * period]) == phrase:
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best if best[1] or not ids else (1, 1)


def without_tail_repetitions(ids: Sequence[int], max_repetitions: int) -> list[int]:
    """Return the tokens with the phrase at the end written once, where it stands there too often."""
    period, count = tail_repetitions(ids)
    return list(ids) if count <= max_repetitions else list(ids[: len(ids) - period * (count - 1)])


def is_silence(settings: DecodeSettings, *, no_speech_prob: float, avg_logprob: float) -> bool:
    """Say whether a window holds no speech: the model says so, and is not sure of its text.

    Source: openai/whisper `transcribe.py`, `should_skip`.
    """
    if settings.no_speech_threshold is None or no_speech_prob <= settings.no_speech_threshold:
        return False
    return settings.logprob_threshold is None or avg_logprob <= settings.logprob_threshold


def needs_fallback(
    settings: DecodeSettings, *, ratio: float, avg_logprob: float, no_speech_prob: float, repetitions: int
) -> bool:
    """Say whether a window is decoded again, at the next temperature.

    Silence is not: nothing that is drawn there would be better.

    Source: openai/whisper `transcribe.py`, `decode_with_fallback`; the guard against repetitions is ours.
    """
    limit, lowest = settings.compression_ratio_threshold, settings.logprob_threshold
    is_unsure = lowest is not None and avg_logprob < lowest
    failed = (limit is not None and ratio > limit) or is_unsure
    if settings.max_repetitions is not None:
        failed = failed or repetitions > settings.max_repetitions
    hears_nothing = settings.no_speech_threshold is not None and no_speech_prob > settings.no_speech_threshold
    return failed and not (is_unsure and hears_nothing)
