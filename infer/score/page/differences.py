"""What was said and what was heard, aligned, as pieces that a page can colour."""

from __future__ import annotations

from dataclasses import dataclass

from infer.score.alignment import Kind, Unit, align


@dataclass(frozen=True)
class Piece:
    """A stretch of one of the two texts."""

    kind: str
    """`equal`, `replace`, `delete` or `insert`."""
    text: str
    parts: tuple[tuple[bool, str], ...]
    """The same text in stretches, each with whether its letters differ; one stretch but for replaced words."""


@dataclass(frozen=True)
class Difference:
    """Both texts in pieces."""

    said: tuple[Piece, ...]
    heard: tuple[Piece, ...]
    joint: str
    """What stands between pieces: a space between words, nothing between characters."""


def find_difference(reference: str, hypothesis: str, *, unit: Unit) -> Difference:
    """Align two normalised texts as they were counted.

    Where words were replaced, their letters are aligned once more, so that a reader sees at once what is wrong in them.

    Args:
        reference: what was said.
        hypothesis: what was heard.
        unit: what the language is counted in.
    """
    joint = " " if unit == "word" else ""
    said: list[Piece] = []
    heard: list[Piece] = []
    for span in align(reference, hypothesis, unit=unit):
        left, right = joint.join(span.reference), joint.join(span.hypothesis)
        if span.kind == "replace" and unit == "word":
            left_parts, right_parts = _letters(left, right)
        else:
            left_parts, right_parts = (((span.kind != "equal", text),) for text in (left, right))
        if span.reference:
            said.append(Piece(span.kind, left, left_parts))
        if span.hypothesis:
            heard.append(Piece(span.kind, right, right_parts))
    return Difference(tuple(said), tuple(heard), joint)


def _letters(left: str, right: str) -> tuple[tuple[tuple[bool, str], ...], tuple[tuple[bool, str], ...]]:
    spans = align(left, right, unit="character")
    return (
        tuple((_differs(span.kind), "".join(span.reference)) for span in spans if span.reference),
        tuple((_differs(span.kind), "".join(span.hypothesis)) for span in spans if span.hypothesis),
    )


def _differs(kind: Kind) -> bool:
    return kind != "equal"
