"""Bring a reference and a hypothesis to one spelling before they are compared, a rule set per language.

Whisper's own BasicTextNormalizer is not used: as it comes, it turns combining marks into spaces and shatters
vowelled Arabic into single letters; with `remove_diacritics` it turns Japanese が into か and Russian й into и.
Here no combining mark (category M) ever becomes a space, and a letter is only folded where the table says so.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

NORMALISER_VERSION = 1
"""Recorded beside every number; raise it with any change that can move a score."""

UNDETERMINED = "und"
"""ISO 639-2 code for a text whose language is not known: the basic rule, nothing folded."""

Metric = Literal["wer", "cer"]

_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
_ZERO_WIDTH_SPACE = "\u200b"  # separates words in Khmer and Thai typesetting, so it is a space, not nothing
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})


@dataclass(frozen=True)
class _Rules:
    """What differs from the basic rule in one language."""

    fold_cased: Mapping[int, str | None] = field(default_factory=dict)
    """Code points replaced before Unicode and case folding; None deletes."""
    fold: Mapping[int, str | None] = field(default_factory=dict)
    """Code points replaced afterwards, in NFKC and lower case; None deletes."""
    has_spaces: bool = True
    """False where words are written without spaces: all whitespace goes, so that it cannot count as an error."""
    metric: Metric = "wer"


_WITHOUT_SPACES = _Rules(has_spaces=False, metric="cer")
# str.lower gives i and i + combining dot, both wrong in Turkish and Azerbaijani
_TURKIC_I = _Rules(fold_cased={ord("I"): "ı", ord("İ"): "i"})
_BASIC = _Rules()

_RULES: Mapping[str, _Rules] = {
    "ar": _Rules(
        fold={
            **dict.fromkeys(range(0x064B, 0x0653)),  # tashkeel: vowel signs that few texts write
            0x0670: None,  # superscript alef
            0x0640: None,  # tatweel, a stretched line without a sound
            **dict.fromkeys(map(ord, "أإآٱ"), "ا"),
        }
    ),
    "ru": _Rules(fold={ord("ё"): "е"}),  # print seldom writes the dots; й is another letter and stays
    "zh": _WITHOUT_SPACES,
    "yue": _WITHOUT_SPACES,
    "ja": _Rules(
        fold_cased={
            ord("゛"): "\u3099",
            ord("゜"): "\u309a",
        },  # voicing marks join their kana instead of becoming spaces
        has_spaces=False,
        metric="cer",
    ),
    "th": _WITHOUT_SPACES,
    "lo": _WITHOUT_SPACES,
    "my": _WITHOUT_SPACES,
    "bo": _WITHOUT_SPACES,
    "km": _WITHOUT_SPACES,
    "ko": _Rules(metric="cer"),  # spaces are written, but so variably that OpenAI's chart counts characters
    "tr": _TURKIC_I,
    "az": _TURKIC_I,
}


def normalise(text: str, language: str) -> str:
    """Return `text` in the spelling that scores compare.

    The basic rule, for every language: NFKC, lower case, punctuation and symbols to spaces, invisible format characters
    dropped, runs of whitespace to one space. Bracketed text is kept, because people do say what stands in brackets.

    English goes through the EnglishTextNormalizer of transformers (contractions, numbers, titles, fillers; bracketed
    text is dropped there), as every published Whisper figure does, but with an **empty** spelling map: the map is a
    file of the model's folder, and a score must not depend on the files of the artefact that it judges. So British
    against American spelling counts as an error. Two holes are closed around it: typographic apostrophes are made
    plain first (it would read don't with U+2019 as "don t"), and what has no letter or digit is dropped after (it
    leaves the last dot of an ellipsis as a word).

    Args:
        text: any string; empty is allowed, and punctuation alone becomes empty.
        language: ISO code as in Whisper's tokenizer (`de`, `yue`), or `und`; unknown codes get the basic rule.

    Raises:
        ValueError: if `language` is not a lower-case ISO code.
    """
    rules = _rules(language)
    visible = _drop_invisible(unicodedata.normalize("NFKC", text.translate(rules.fold_cased)))
    if language == "en":
        words = _english_normaliser()(visible.translate(_APOSTROPHES)).split()
        return " ".join(word for word in words if any(character.isalnum() for character in word))
    # NFKC again, because lower-casing can leave a base letter and a mark that have one code point together
    lower = unicodedata.normalize("NFKC", visible.lower())
    spaced = _symbols_to_spaces(lower.translate(rules.fold))
    return (" " if rules.has_spaces else "").join(spaced.split())


def headline_metric(language: str) -> Metric:
    """Return the rate a language is judged by: `cer` where words are written without spaces and for Korean.

    Raises:
        ValueError: if `language` is not a lower-case ISO code.

    Source: the languages of OpenAI's chart of large-v3 (zh, ja, th, lo, my, ko); km and yue added by the same rule.
    """
    return _rules(language).metric


def _rules(language: str) -> _Rules:
    """Look up the rules of a language; a name instead of a code is refused, since it would pass for the basic rule."""
    if not _LANGUAGE_CODE.fullmatch(language):
        raise ValueError(
            f"language={language!r} is not a language code; use the ISO code in lower case, such as en, zh or yue"
        )
    return _RULES.get(language, _BASIC)


def _drop_invisible(text: str) -> str:
    """Drop format characters (joiners, direction marks, soft hyphens) and variation selectors."""
    kept = []
    for character in text:
        if character == _ZERO_WIDTH_SPACE:
            kept.append(" ")
        elif unicodedata.category(character) != "Cf" and not _is_variation_selector(character):
            kept.append(character)
    return "".join(kept)


def _is_variation_selector(character: str) -> bool:
    """Tell whether a mark only picks a glyph: emoji or text style, a variant of an ideograph."""
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _symbols_to_spaces(text: str) -> str:
    """Replace punctuation, symbols and control characters by spaces; marks stay on their letter."""
    kept: list[str] = []
    for character in text:
        category = unicodedata.category(character)
        if category[0] in "PSZ" or category == "Cc":
            kept.append(" ")
        elif category[0] == "M" and (not kept or kept[-1] == " "):
            continue  # a mark with no letter under it (NFKC makes a spacing accent into space + mark) is no word
        else:
            kept.append(character)
    return "".join(kept)


@cache
def _english_normaliser() -> Callable[[str], str]:
    """Build the normaliser on first use: its import takes seconds, and other languages do not need it."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normaliser: Callable[[str], str] = EnglishTextNormalizer({})  # type: ignore[no-untyped-call]
    return normaliser
