"""Transcripts before they become tokens: one Unicode form, no control characters, and how two of them are joined."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from data.reasons import Reason

LANGUAGES_WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Whisper's languages whose writing sets no space between words.

Thai, Lao, Burmese and Khmer set one between phrases, but a text is as often cut within a phrase; scores drop it.
Korean, Vietnamese and the languages of India and Ethiopia write spaces.
"""

# Line breaks and tabs lay a text out and are no part of it; runs of plain spaces are left to whoever wrote them.
_LAYOUT = re.compile(r"\s*[\t\n\v\f\r\x85\u2028\u2029]\s*")
# C0 and C1 controls, half surrogate pairs, what stands where a decoder gave up, and code points that are no character.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffd\ufffe\uffff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)


class TextError(ValueError):
    """A text that is no transcript; `reason` says why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def clean_text(text: str, *, may_be_empty: bool = False) -> str:
    """Return a transcript in NFC, without white space at its ends and without line breaks.

    Nothing else is changed: spelling, punctuation and the invisible joiners of Persian and Hindi are the corpus's.

    Args:
        text: as the source gives it.
        may_be_empty: allow texts in which nothing can be spoken, for prompts and for clips without speech.

    Raises:
        TextError: for control characters, half surrogate pairs and U+FFFD (T02); for a text without any letter or
            digit (T03).
    """
    if not text.isprintable() or "\ufffd" in text:  # few are, and the expressions cost ten times the rest
        found = _FORBIDDEN.search(text)
        if found is not None:
            raise TextError(Reason.TEXT_CONTROL, f"U+{ord(found.group()):04X} at character {found.start()}")
        text = _LAYOUT.sub(" ", text)
    text = unicodedata.normalize("NFC", text).strip()
    if not may_be_empty and not any(map(str.isalnum, text)):
        raise TextError(Reason.TEXT_EMPTY, f"nothing in {text!r:.40} is spoken" if text else "")
    return text


def join_texts(texts: Iterable[str], language: str) -> str:
    """Join texts that follow each other, with a space in languages that write spaces; empty ones leave no trace."""
    space = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    return space.join(stripped for text in texts if (stripped := text.strip()))
