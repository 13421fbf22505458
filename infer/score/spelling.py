"""The steps that profiles are made of: each turns a text into one with less of what is not heard."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files

Step = Callable[[str], str]

SPELLING_SHA256 = "6607f948be9824d2e1b2fa2223cd94c06c45afa4e05ea0e3d5e1f2bdffde2465"
"""Of OpenAI's map from British to American spelling; another map would move scores without a word."""

PACKAGES = ("opencc", "rapidfuzz", "sacrebleu", "transformers", "whisper-normalizer")
"""What makes scores besides our own code."""

_ZERO_WIDTH_SPACE = "\u200b"  # separates words in Khmer and Thai typesetting, so it is a space, not nothing


class _Table(dict[int, str | None]):
    """A table for `str.translate` that asks a rule for each code point once."""

    def __init__(self, rule: Callable[[str], str | None]) -> None:
        self.rule = rule

    def __missing__(self, code: int) -> str | None:
        self[code] = self.rule(chr(code))
        return self[code]


def _visible(character: str) -> str | None:
    """Drop format characters (joiners, direction marks, soft hyphens) and variation selectors."""
    if character == _ZERO_WIDTH_SPACE:
        return " "
    is_selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return None if is_selector or unicodedata.category(character) == "Cf" else character


def _heard(character: str) -> str:
    """Make a space of punctuation, symbols, separators and control characters."""
    category = unicodedata.category(character)
    return " " if category[0] in "PSZ" or category == "Cc" else character


_VISIBLE, _HEARD = _Table(_visible), _Table(_heard)


def nfkc(text: str) -> str:
    """Compose letters and marks, and replace compatibility forms."""
    return unicodedata.normalize("NFKC", text)


def drop_invisible(text: str) -> str:
    """Drop what only steers the typesetting."""
    return text.translate(_VISIBLE)


def lower(text: str) -> str:
    """Lower-case by Unicode's rules."""
    return text.lower()


def symbols_to_spaces(text: str) -> str:
    """Replace punctuation, symbols and control characters by spaces; marks stay on their letter."""
    spaced = text.translate(_HEARD)
    if spaced.isascii():
        return spaced
    # a mark with no letter under it (NFKC makes a spacing accent into space + mark) is no word
    return " ".join(_without_bare_marks(word) for word in spaced.split(" "))


def join_spaces(text: str) -> str:
    """Make one space of each gap, and none at the ends."""
    return " ".join(text.split())


def drop_spaces(text: str) -> str:
    """Drop all whitespace."""
    return "".join(text.split())


def drop_wordless(text: str) -> str:
    """Drop words without a letter or a digit."""
    return " ".join(word for word in text.split() if any(map(str.isalnum, word)))


def traditional_to_simplified(text: str) -> str:
    """Write Chinese in simplified characters, by phrases and then by characters."""
    return text if text.isascii() else _simplified()(text)


def whisper_english(text: str) -> str:
    """Run OpenAI's English normaliser, with its own map of spellings."""
    return _english()(text)


STEPS: Mapping[str, Step] = {
    step.__name__: step
    for step in (
        nfkc,
        drop_invisible,
        lower,
        symbols_to_spaces,
        join_spaces,
        drop_spaces,
        drop_wordless,
        traditional_to_simplified,
        whisper_english,
    )
}
"""Steps that take nothing but the text; `replace` and `delete` are made from a profile's own characters."""


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a score depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _without_bare_marks(word: str) -> str:
    while word and unicodedata.category(word[0])[0] == "M":
        word = word[1:]
    return word


@cache
def _simplified() -> Step:
    """Load the dictionaries on first use."""
    from opencc import OpenCC

    convert: Step = OpenCC("t2s").convert
    return convert


@cache
def _english() -> Step:
    """Build the normaliser on first use: its import takes seconds, and other languages do not need it.

    The map is that of the package and not the `normalizer.json` of a model's folder: a score must not depend on the
    files of the artefact that it judges.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    data = (files("whisper_normalizer") / "normalizers" / "english.json").read_bytes()
    if hashlib.sha256(data).hexdigest() != SPELLING_SHA256:
        version = importlib.metadata.version("whisper-normalizer")
        raise RuntimeError(
            f"whisper-normalizer {version} has another map of English spelling than scores are made with; "
            "type pip install -c constraints.txt whisper-normalizer"
        )
    normaliser: Step = EnglishTextNormalizer(json.loads(data))  # type: ignore[no-untyped-call]
    return normaliser
