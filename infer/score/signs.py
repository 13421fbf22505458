"""Signs that a model wrote what nobody said: each can be seen in the texts alone, and none proves it.

A rate hides them: one clip in a hundred with a page of invented text is a small rate and a lost reader.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from infer.score.alignment import Unit, split_units

SIGNS = ("insertion_burst", "repetition", "compression", "text_on_no_speech", "cut")
"""In the order of the report."""

MIN_BURST = {"word": 5, "character": 12}
"""Units inserted at one place, more than a filler or a name read twice."""
MIN_REPEATS = {"word": 4, "character": 6}
"""Times in a row that a phrase stands, more than people say `no no no` or `ははは`."""
MAX_PERIOD = {"word": 8, "character": 30}
"""Units of the longest phrase that is looked for."""
MAX_COMPRESSION_RATIO = 2.4
"""Bytes of the text over bytes after zlib; OpenAI's threshold for decoding again."""


def find_signs(
    reference: str, hypothesis: str, *, unit: Unit, longest_insertion: int, no_speech: bool, is_cut: bool
) -> tuple[str, ...]:
    """Return the signs that an utterance shows, some of `SIGNS`.

    What the reference shows as well, such as a refrain, is no sign.

    Args:
        reference: normalised.
        hypothesis: normalised.
        unit: what bursts and repetitions are counted in.
        longest_insertion: units in the longest run of insertions at one place.
        no_speech: whether nothing is said.
        is_cut: whether decoding reached the token limit.
    """
    signs = []
    if not no_speech and longest_insertion >= MIN_BURST[unit]:
        signs.append("insertion_burst")
    if hypothesis != reference:
        heard, said = split_units(hypothesis, unit), split_units(reference, unit)
        if is_repetitive(heard, unit) and not is_repetitive(said, unit):
            signs.append("repetition")
        if compression_ratio(hypothesis) > max(MAX_COMPRESSION_RATIO, compression_ratio(reference)):
            signs.append("compression")
    if no_speech and hypothesis:
        signs.append("text_on_no_speech")
    if is_cut:
        signs.append("cut")
    return tuple(signs)


def is_repetitive(units: Sequence[str], unit: Unit) -> bool:
    """Tell whether some phrase stands `MIN_REPEATS` times in a row."""
    repeats = MIN_REPEATS[unit]
    if len(units) - len(set(units)) < repeats - 1:  # the shortest repetition alone has as many units twice
        return False
    for period in range(1, min(MAX_PERIOD[unit], len(units) // repeats) + 1):
        run = 0
        for unit_, earlier in zip(units[period:], units, strict=False):
            run = run + 1 if unit_ == earlier else 0
            if run == period * (repeats - 1):
                return True
    return False


def compression_ratio(text: str) -> float:
    """Return how many times smaller zlib makes a text: high where it says the same again and again.

    Source: `compression_ratio` of openai/whisper, utils.py.
    """
    data = text.encode("utf-8", errors="replace")
    return len(data) / len(zlib.compress(data)) if data else 0.0
