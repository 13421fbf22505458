"""Which words of a window are final: those that two passes in a row agree on, or as many as the settings say.

Units are words, or characters in languages that write no spaces. Each unit carries the space before it, so that units
join to the text they came from.

Source: LocalAgreement-2 of Liu et al. 2020, arXiv:2005.11185, as used for Whisper by Macháček et al. 2023,
arXiv:2307.14743.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.texts import LANGUAGES_WITHOUT_SPACES

_WORD = re.compile(r"\s*\S+")
_CHARACTER = re.compile(r"\s*[^\w\s]*\w[^\w\s]*")  # signs stay with the character that they stand at


def split_units(text: str, language: str) -> list[str]:
    """Split a text into words or characters that join to it again; white space at its ends is lost."""
    pattern = _CHARACTER if language in LANGUAGES_WITHOUT_SPACES else _WORD
    return pattern.findall(text.strip())


def num_held(language: str) -> int:
    """Return how many units at the end of a pass wait while somebody speaks: about half a second of them."""
    return 2 if language in LANGUAGES_WITHOUT_SPACES else 1


def key(unit: str) -> str:
    """Return what two passes must agree on: letters and digits, whatever their case.

    Full stops and capitals come and go while a sentence grows; waiting for them would hold back words that are sure.
    """
    return "".join(filter(str.isalnum, unit)).casefold() or unit.strip()


def common_prefix(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many units two passes agree on from the beginning."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if key(a) != key(b):
            break
        count += 1
    return count


class Agreement:
    """What the last passes said behind the words that are final."""

    def __init__(self) -> None:
        self._earlier: list[list[str]] = []

    def take(self, units: Sequence[str], *, num_passes: int, held: int) -> int:
        """Take what a new pass says, and return how many of its units are final now.

        Args:
            units: behind those that are final already.
            num_passes: in a row that must agree, this one counted.
            held: units at the end that wait: the last word of a window may be half of one.
        """
        needed = num_passes - 1
        earlier = self._earlier[len(self._earlier) - needed :] if needed else []
        agreed = 0
        if len(self._earlier) >= needed:
            agreed = min((common_prefix(said, units) for said in earlier), default=len(units))
            agreed = max(0, min(agreed, len(units) - held))
        self._earlier = [said[agreed:] for said in (*self._earlier, list(units))][-max(needed, 1) :]
        return agreed

    def forget(self) -> None:
        """Begin anew: what was said belongs to another window or language."""
        self._earlier = []


def match_prefix(whole: Sequence[str], units: Sequence[str]) -> tuple[int, int]:
    """Find the beginning of `units` that says what `whole` says.

    A pass may hear differently what is final already. What is final stays, and only what follows it in the new pass
    counts; so its end is looked for with as few edits as possible.

    Args:
        whole: units to be found, all of them.
        units: in which they are looked for, from the beginning.

    Returns:
        (number of units in that beginning, edits); of equally good ones the length nearest to that of `whole`.
    """
    a, b = [key(unit) for unit in whole], [key(unit) for unit in units]
    if b[: len(a)] == a:
        return len(a), 0
    row = list(range(len(b) + 1))
    for i, wanted in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != found))
    best = min(range(len(row)), key=lambda j: (row[j], abs(j - len(a))))
    return best, row[best]
