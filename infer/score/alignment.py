"""Minimal alignments of a reference and a hypothesis, in words or characters, by jiwer's own engine.

RapidFuzz is called directly: jiwer lays every alignment out as objects, which for a million utterances takes many times
the time and the memory. A test holds the counts to jiwer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from rapidfuzz.distance import Levenshtein

Unit = Literal["word", "character"]
Kind = Literal["equal", "replace", "delete", "insert"]


class PairCounts(NamedTuple):
    """Edits between one reference and one hypothesis."""

    substitutions: int
    deletions: int
    insertions: int
    num_units: int
    """In the reference."""
    longest_insertion: int
    """Units in the longest run of insertions at one place."""


@dataclass(frozen=True)
class Span:
    """A part of an alignment."""

    kind: Kind
    reference: tuple[str, ...]
    """Words or characters; empty for an insertion."""
    hypothesis: tuple[str, ...]
    """Empty for a deletion."""


def split_units(text: str, unit: Unit) -> Sequence[str]:
    """Return the words of a text, or its characters without whitespace at the ends, as jiwer does."""
    return text.split() if unit == "word" else text.strip()


def count_pair(reference: Sequence[str], hypothesis: Sequence[str]) -> PairCounts:
    """Count the edits from one list of units to another.

    Args:
        reference: words or characters; empty is allowed, and everything heard is then an insertion.
        hypothesis: likewise.
    """
    if reference == hypothesis:
        return PairCounts(0, 0, 0, len(reference), 0)
    if not reference:
        return PairCounts(0, 0, len(hypothesis), 0, len(hypothesis))
    substitutions = deletions = insertions = longest = 0
    for tag, start, end, from_, to in _opcodes(reference, hypothesis):
        if tag == "replace":
            substitutions += end - start
        elif tag == "delete":
            deletions += end - start
        elif tag == "insert":
            insertions += to - from_
            longest = max(longest, to - from_)
    return PairCounts(substitutions, deletions, insertions, len(reference), longest)


def align(reference: str, hypothesis: str, *, unit: Unit) -> tuple[Span, ...]:
    """Align two texts as they are counted, for people to look at.

    Args:
        reference: normalised, or as written.
        hypothesis: likewise.
        unit: what is aligned; single spaces count as characters.

    Returns:
        Spans that join to both texts.
    """
    heard, said = split_units(hypothesis, unit), split_units(reference, unit)
    return tuple(
        Span(tag, tuple(said[start:end]), tuple(heard[from_:to]))
        for tag, start, end, from_, to in _opcodes(said, heard)
    )


def _opcodes(reference: Sequence[str], hypothesis: Sequence[str]) -> Iterable[tuple[Kind, int, int, int, int]]:
    """Return kind, first and last place in the reference, first and last place in the hypothesis."""
    return cast(Iterable[tuple[Kind, int, int, int, int]], Levenshtein.opcodes(reference, hypothesis))
