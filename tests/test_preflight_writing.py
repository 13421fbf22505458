"""Every language of Whisper has its script, ordinary texts of each pass, and what does not belong is found."""

from __future__ import annotations

import pytest

from data.languages import LANGUAGE_CODES
from data.preflight.writing import (
    SCRIPTS,
    TextFault,
    find_text_faults,
    hash_text,
    script_of,
    scripts_of,
    show_invisible,
)

NAMES = {  # how languages call themselves: an independent list of letters
    "am": "አማርኛ", "ar": "العربية", "as": "অসমীয়া", "az": "Azərbaycanca", "be": "беларуская", "bg": "български",
    "bn": "বাংলা", "bo": "བོད་སྐད", "cs": "čeština", "cy": "Cymraeg", "da": "dansk", "de": "Deutsch", "el": "Ελληνικά",
    "en": "English", "es": "español", "et": "eesti", "fa": "فارسی", "fi": "suomi", "fo": "føroyskt", "fr": "français",
    "gu": "ગુજરાતી", "haw": "ʻŌlelo Hawaiʻi", "he": "עברית", "hi": "हिन्दी", "hr": "hrvatski", "hu": "magyar",
    "hy": "հայերեն", "id": "Bahasa Indonesia", "is": "íslenska", "ja": "日本語の「カタカナ」々ー", "ka": "ქართული",
    "kk": "қазақша", "km": "ភាសាខ្មែរ", "kn": "ಕನ್ನಡ", "ko": "한국어", "lo": "ລາວ", "mk": "македонски",
    "ml": "മലയാളം", "mn": "монгол", "mr": "मराठी", "mt": "Malti", "my": "မြန်မာဘာသာ", "ne": "नेपाली", "pa": "ਪੰਜਾਬੀ",
    "pl": "polski", "ps": "پښتو", "ru": "русский", "sa": "संस्कृतम्", "sd": "سنڌي", "si": "සිංහල", "sr": "српски",
    "ta": "தமிழ்", "te": "తెలుగు", "tg": "тоҷикӣ", "th": "ไทย", "tr": "Türkçe", "tt": "татарча", "uk": "українська",
    "ur": "اردو", "uz": "oʻzbekcha", "vi": "Tiếng Việt", "yi": "ייִדיש", "yo": "Èdè Yorùbá", "yue": "粵語", "zh": "中文",
}  # fmt: skip


def test_the_table_names_languages_of_whisper_only():
    assert set(SCRIPTS) <= set(LANGUAGE_CODES)
    assert set(NAMES) <= set(LANGUAGE_CODES)
    assert all(scripts_of(code) for code in LANGUAGE_CODES)


@pytest.mark.parametrize("language", sorted(NAMES))
def test_a_language_is_written_as_it_writes_its_name(language):
    assert find_text_faults(NAMES[language], language) == TextFault(0)
    assert {script_of(letter) for letter in NAMES[language]} - {""} <= scripts_of(language)


@pytest.mark.parametrize(
    "language", sorted(set(NAMES) & set(SCRIPTS) - {"az", "be", "bs", "ha", "jw", "ms", "su", "tk", "uz"})
)
def test_a_text_in_the_letters_of_another_language_is_found(language):
    other = "ไทยพูดเร็ว" if language != "th" else "русский текст"
    assert TextFault.WRONG_SCRIPT in find_text_faults(other, language)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("私はiPhoneを買いました", "ja"),
        ("мой новый iPhone", "ru"),
        ("1984", "ar"),
        ("ＡＢＣ Ｄｅｆ", "en"),
        ("ﾊﾝｶｸ", "ja"),
        ("naïve café, 5 km²", "en"),
        ("می‌خواهم", "fa"),
        ("क्‍ष", "hi"),
        ("ខ្ញុំ\u200bស្រលាញ់", "km"),
        ("Ã é um til", "pt"),
        ("ÂNGELA", "pt"),
    ],
)
def test_loan_words_digits_widths_and_joiners_are_no_fault(text, language):
    assert find_text_faults(text, language) == TextFault(0)


@pytest.mark.parametrize(
    ("text", "language", "fault"),
    [
        ("privet mir", "ru", TextFault.WRONG_SCRIPT),
        ("привет", "en", TextFault.WRONG_SCRIPT),
        ("конец сeзона", "ru", TextFault.MIXED_WORD),  # a Latin e
        ("ΑθήνA", "el", TextFault.MIXED_WORD),
        ("cafÃ© au lait", "fr", TextFault.MOJIBAKE),
        ("Ð¿ÑÐ¸Ð²ÐµÑ", "ru", TextFault.MOJIBAKE),
        ("zero\u200bwidth", "en", TextFault.INVISIBLE),
        ("soft\u00adhyphen", "en", TextFault.INVISIBLE),
        ("turned \u202eround", "en", TextFault.INVISIBLE),
    ],
)
def test_what_does_not_belong_is_found(text, language, fault):
    assert fault in find_text_faults(text, language)


def test_words_of_two_alphabets_side_by_side_are_no_mixed_word():
    assert TextFault.MIXED_WORD not in find_text_faults("Windows и Linux", "ru")


def test_texts_are_one_whatever_their_case_width_and_punctuation():
    assert hash_text("Hello, World!") == hash_text("ｈｅｌｌｏ world") != hash_text("hello word")
    assert hash_text("كَتَبَ") != hash_text("كتب")
    assert hash_text("हिन्दी") != hash_text("हनद")


def test_what_nobody_sees_is_spelt():
    assert show_invisible("a\u202eb\u200bc\td") == "a[U+202E]b[U+200B]c[U+0009]d"
    assert show_invisible("می‌خواهم") == "می‌خواهم"
