"""How a language is written: the scripts of Whisper's languages, and what in a transcript does not belong to them."""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

from data.texts import LANGUAGES_WITHOUT_SPACES

LATIN = frozenset({"LATIN"})
CYRILLIC = frozenset({"CYRILLIC"})
ARABIC = frozenset({"ARABIC"})
DEVANAGARI = frozenset({"DEVANAGARI"})
BENGALI = frozenset({"BENGALI"})
HEBREW = frozenset({"HEBREW"})
HAN = frozenset({"HAN", "BOPOMOFO"})

SCRIPTS: Mapping[str, frozenset[str]] = {
    "am": frozenset({"ETHIOPIC"}),
    "ar": ARABIC,
    "as": BENGALI,
    "az": LATIN | CYRILLIC | ARABIC,
    "ba": CYRILLIC,
    "be": CYRILLIC | LATIN,
    "bg": CYRILLIC,
    "bn": BENGALI,
    "bo": frozenset({"TIBETAN"}),
    "bs": LATIN | CYRILLIC,
    "el": frozenset({"GREEK"}),
    "fa": ARABIC,
    "gu": frozenset({"GUJARATI"}),
    "ha": LATIN | ARABIC,
    "he": HEBREW,
    "hi": DEVANAGARI,
    "hy": frozenset({"ARMENIAN"}),
    "ja": HAN | {"HIRAGANA", "KATAKANA"},
    "jw": LATIN | {"JAVANESE"},
    "ka": frozenset({"GEORGIAN"}),
    "kk": CYRILLIC | LATIN | ARABIC,
    "km": frozenset({"KHMER"}),
    "kn": frozenset({"KANNADA"}),
    "ko": HAN | {"HANGUL"},
    "lo": frozenset({"LAO"}),
    "mk": CYRILLIC,
    "ml": frozenset({"MALAYALAM"}),
    "mn": CYRILLIC | {"MONGOLIAN"},
    "mr": DEVANAGARI,
    "ms": LATIN | ARABIC,
    "my": frozenset({"MYANMAR"}),
    "ne": DEVANAGARI,
    "pa": ARABIC | {"GURMUKHI"},
    "ps": ARABIC,
    "ru": CYRILLIC,
    "sa": DEVANAGARI,
    "sd": ARABIC | DEVANAGARI,
    "si": frozenset({"SINHALA"}),
    "sr": CYRILLIC | LATIN,
    "su": LATIN | {"SUNDANESE"},
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "tg": CYRILLIC | ARABIC,
    "th": frozenset({"THAI"}),
    "tk": LATIN | CYRILLIC,
    "tt": CYRILLIC | LATIN,
    "uk": CYRILLIC,
    "ur": ARABIC,
    "uz": LATIN | CYRILLIC,
    "yi": HEBREW,
    "yue": HAN,
    "zh": HAN,
}
"""Scripts by language code; a language that is not listed is written in Latin letters.

Source: the main and secondary scripts of the Unicode CLDR's language data (supplemental/languageInfo), by hand.
"""

# Unicode has no script property in the standard library; the first word of a letter's name says the same for all of
# these. What it calls otherwise is spelt here, and letters of no script (ordinal signs, mathematics) count for none.
_BY_NAME = {"CJK": "HAN", "IDEOGRAPHIC": "HAN", "KANGXI": "HAN", "KATAKANA-HIRAGANA": "KATAKANA"}
_KNOWN = LATIN.union(*SCRIPTS.values())
_OTHER = "OTHER"

MIXED_UP = (LATIN | {"CYRILLIC"}, LATIN | {"GREEK"})
"""Pairs of scripts with letters of the same shape: a word of both was typed on the wrong keyboard."""

# Joiners change the shape of Persian and Indic letters, and marks of direction belong to Arabic and Hebrew.
_MEANT_INVISIBLE = frozenset("\u200c\u200d\u200e\u200f\u061c")
_ZERO_WIDTH_SPACE = "\u200b"  # parts words where typesetters write no spaces
# UTF-8 that was read as Latin-1 or Windows-1252: two or three letters where there was one.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf\u0152-\u0192\u2013-\u2122]|\u00e2\u20ac|[\u00d0\u00d1][\u0080-\u00bf]"
)
_WORD = re.compile(r"\w+")
WRONG_SCRIPT_SHARE = 0.5  # of a text's letters; names and loan words in Latin letters are common in any language


class TextFault(enum.IntFlag):
    """What is odd in a transcript; each a bit, so that a corpus keeps a byte a row."""

    WRONG_SCRIPT = 1
    """Most letters are of a script that the language is not written in."""
    MIXED_WORD = 2
    """A word mixes Latin letters with Cyrillic or Greek ones."""
    MOJIBAKE = 4
    """Bytes were read in the wrong encoding."""
    INVISIBLE = 8
    """Characters that nobody sees and that no language asks for."""


def scripts_of(language: str) -> frozenset[str]:
    """Return the scripts that a language is written in."""
    return SCRIPTS.get(language, LATIN)


@lru_cache(maxsize=65_536)
def script_of(character: str) -> str:
    """Return the script of a letter, an empty string for what is no letter, or `OTHER`."""
    category = unicodedata.category(character)
    if not category.startswith("L"):
        return ""
    words = unicodedata.name(character, "").split()
    while words and words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    if not words:
        return _OTHER
    script = _BY_NAME.get(words[0], words[0])
    if script in _KNOWN:
        return script
    is_sign = category == "Lm" or unicodedata.normalize("NFKC", character) != character  # the okina; ordinals, formulas
    return "" if is_sign else _OTHER


def find_text_faults(text: str, language: str) -> TextFault:
    """Return what is odd in a transcript, judged by its language."""
    if text.isascii() and text.isprintable() and scripts_of(language) >= LATIN:  # most rows of most corpora
        return TextFault(0)
    faults = TextFault(0)
    scripts = [script for script in map(script_of, text) if script]
    foreign = sum(script not in scripts_of(language) for script in scripts)
    if foreign > WRONG_SCRIPT_SHARE * len(scripts):
        faults |= TextFault.WRONG_SCRIPT
    present = set(scripts)
    if any(pair <= present for pair in MIXED_UP) and any(map(_is_mixed, _WORD.findall(text))):
        faults |= TextFault.MIXED_WORD
    if _MOJIBAKE.search(text):
        faults |= TextFault.MOJIBAKE
    if any(_is_invisible(character, language) for character in text):
        faults |= TextFault.INVISIBLE
    return faults


def main_script(text: str) -> str:
    """Return the script of most letters of a text, as its Unicode name, or an empty string."""
    scripts = [script for script in map(script_of, text) if script]
    return max(sorted(set(scripts)), key=scripts.count, default="")


def hash_text(text: str) -> int:
    """Return 64 bits that name what is said: letters and digits without case, punctuation, spaces and width."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c for c in folded if c.isalnum() or unicodedata.category(c).startswith("M"))
    return int.from_bytes(blake2b(kept.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def show_invisible(text: str) -> str:
    """Spell characters that cannot be seen, or that would turn the line around, as `[U+200B]`."""
    return "".join(
        f"[U+{ord(c):04X}]"
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in _MEANT_INVISIBLE
        else c
        for c in text
    )


def _is_mixed(word: str) -> bool:
    scripts = {script_of(character) for character in word}
    return any(pair <= scripts for pair in MIXED_UP)


def _is_invisible(character: str, language: str) -> bool:
    if character in _MEANT_INVISIBLE or (character == _ZERO_WIDTH_SPACE and language in LANGUAGES_WITHOUT_SPACES):
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn")
