"""Transcripts come out in one Unicode form or not at all; nothing else about them changes."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from data.languages import LANGUAGE_CODES
from data.texts import LANGUAGES_WITHOUT_SPACES, TextError, clean_text, join_texts


def _refused(text: str) -> str:
    try:
        clean_text(text)
    except TextError as e:
        return e.reason.code
    return ""


def test_every_code_point_is_taken_or_refused_as_its_category_says() -> None:
    """Independent reference: the Unicode tables of Python, for the first plane and both ends of the others."""
    layout = set("\t\n\v\f\r\x85")
    ends = [
        plane + i for plane in range(0x10000, sys.maxunicode, 0x10000) for i in (*range(64), *range(0xFFC0, 0x10000))
    ]
    for code in (*range(0x10000), *ends):
        character = chr(code)
        category = unicodedata.category(character)
        is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
        wanted = (category in ("Cc", "Cs") and character not in layout) or is_noncharacter or character == "\ufffd"
        assert (_refused(f"a{character}b") == "T02") == wanted, f"U+{code:04X}"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("  one two  ", "one two"),
        ("one\r\n two\n\n\nthree\tfour", "one two three four"),
        ("one\u2028two", "one two"),
        ("one  two", "one  two"),
        ("e\u0301 \u1100\u1161", "é 가"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("¡Sí! 100 %", "¡Sí! 100 %"),
        ("你好　世界", "你好　世界"),
    ],
)
def test_texts_keep_what_is_theirs(given: str, wanted: str) -> None:
    assert clean_text(given) == wanted
    assert clean_text(wanted) == wanted


@pytest.mark.parametrize("text", ["", "  \n", "...", "。！", "—", "♪♪", "🎵", "¿?"])
def test_a_text_in_which_nothing_is_spoken_is_refused(text: str) -> None:
    assert _refused(text) == "T03"
    assert clean_text(text, may_be_empty=True) == text.strip()


@pytest.mark.parametrize("text", ["a", "7", "½", "ß", "ก", "ああ", "م", "가", "𐤀"])
def test_one_letter_or_digit_is_a_text(text: str) -> None:
    assert clean_text(text) == text


def test_a_refusal_names_the_character_and_its_place() -> None:
    with pytest.raises(TextError, match=r"U\+0000 at character 3"):
        clean_text("one\0two")
    with pytest.raises(TextError, match=r"U\+D83D at character 0"):
        clean_text("\ud83d", may_be_empty=True)


def test_joined_texts_follow_the_language() -> None:
    assert join_texts(["one ", "", "  ", " two"], "en") == "one two"
    assert join_texts(["你好", "世界"], "zh") == "你好世界"
    assert join_texts([], "en") == ""
    assert set(LANGUAGE_CODES) >= LANGUAGES_WITHOUT_SPACES
