"""The normaliser makes equal what sounds equal, keeps apart what sounds unlike, and never breaks a word by its marks.

Pairs are made by hand, each with its reason. `SAME` would fail with a normaliser that does nothing; `APART` with one
that folds too much, as Whisper's own `remove_diacritics` does.
"""

import unicodedata

import pytest

from infer.score.normalise import UNDETERMINED, headline_metric, normalise

SAME = [
    # Chinese
    ("zh", "你好，世界。", "你好世界", "full-width punctuation is not heard"),
    ("zh", "我 今天 很 好", "我今天很好", "segmented corpora write spaces between words"),
    ("zh", "用 iPhone 拍照", "用iphone拍照", "a space around Latin script is typography"),
    ("zh", "ＡＢＣ１２３", "abc123", "full-width letters and digits are the same characters"),
    ("zh", "《红楼梦》", "红楼梦", "title marks are punctuation"),
    ("zh", "他说：“走吧！”", "他说走吧", "quotes, colon and exclamation mark"),
    ("zh", "三\u3000四", "三四", "the ideographic space is whitespace"),
    ("zh", "葛\U000e0100城", "葛城", "a variation selector only picks the glyph"),
    ("zh", "（笑）好的", "笑好的", "bracketed text stays, only the brackets go"),
    ("zh", "買東西", "买东西", "script is not heard, and Whisper writes either"),
    ("zh", "頭髮和發展", "头发和发展", "two traditional characters for one simplified"),
    ("zh", "乾 燥", "干燥", "a space does not part a phrase from its conversion"),
    ("zh", "裡面", "裏面", "two traditional variants of one character"),
    ("zh", "臺灣為什麼", "台湾为什么", "Taiwan's forms too"),
    ("zh", "⼈口", "人口", "a radical is its ideograph"),
    ("yue", "你哋係邊個？", "你哋系边个", "Cantonese likewise"),
    # Japanese
    ("ja", "こんにちは、世界。", "こんにちは世界", "Japanese punctuation"),
    ("ja", "ﾊﾟｰﾃｨｰ", "パーティー", "half-width katakana is a way to type it"),
    ("ja", "か\u3099き\u3099", "がぎ", "a voicing mark as its own code point is the same kana"),
    ("ja", "か゛", "が", "the spacing voicing mark too, before NFKC makes a space of it"),
    ("ja", "東京 タワー", "東京タワー", "spaces carry nothing"),
    ("ja", "「はい」", "はい", "corner brackets are quotes"),
    ("ja", "ジョン・スミス", "ジョンスミス", "the middle dot is punctuation"),
    ("ja", "ＮＨＫ", "nhk", "full-width capitals"),
    ("ja", "㌔", "キロ", "NFKC spells square units out"),
    ("ja", "は\u309aん", "ぱん", "the half-voiced mark as its own code point"),
    ("ja", "１２時", "12時", "full-width digits"),
    ("ja", "えっ！？", "えっ", "punctuation for feeling"),
    ("ja", "『雪国』", "雪国", "double corner brackets"),
    # English
    ("en", "I won't go.", "i will not go", "contractions of the English normaliser"),
    ("en", "Don\u2019t!", "don't", "a typographic apostrophe is an apostrophe"),
    ("en", "It’s", "it is", "and so is expanded"),
    ("en", "Mr. Smith", "mister smith", "titles are spoken out"),
    ("en", "twenty one", "21", "numbers in words and digits sound alike"),
    ("en", "uh, hello", "hello", "fillers are dropped"),
    ("en", "Well... yes", "well yes", "an ellipsis is silence"),
    ("en", "well…", "well", "also as one character, and at the end, where the original leaves a dot as a word"),
    ("en", "hello (laughs)", "hello", "in English, and only there, bracketed text goes as in published figures"),
    ("en", "café", "cafe", "the English normaliser drops diacritics"),
    ("en", "the colour of grey", "the color of gray", "British spelling, by OpenAI's map"),
    ("en", "I'm gonna go", "I am going to go", "what people say for going to"),
    ("en", "$20 million", "20000000 dollars", "currencies are spoken after the number"),
    ("en", "1,000", "1000", "a comma in a number is not heard"),
    ("en", "Dr Jones", "doctor jones", "a title without its dot"),
    ("en", "ﬁne", "fine", "a ligature is typography"),
    # Arabic
    ("ar", "مُحَمَّدٌ رَسُولٌ", "محمد رسول", "vowel signs are optional in writing, and are stripped, not made spaces"),
    ("ar", "أحمد", "احمد", "alef with hamza above"),
    ("ar", "إلى", "الى", "alef with hamza below"),
    ("ar", "آمن", "امن", "alef with madda"),
    ("ar", "ٱلله", "الله", "alef wasla"),
    ("ar", "ا\u0654حمد", "احمد", "hamza as a mark of its own composes first"),
    ("ar", "العـــربية", "العربية", "tatweel only stretches"),
    ("ar", "هٰذا", "هذا", "superscript alef is a vowel sign"),
    ("ar", "كيف حالك؟", "كيف حالك", "the Arabic question mark"),
    ("ar", "نعم، شكرا؛", "نعم شكرا", "Arabic comma and semicolon"),
    ("ar", "\u200fنعم\u200e", "نعم", "direction marks are invisible"),
    ("ar", "عام ٢٠٢٤", "عام 2024", "two sets of digits for the same numbers"),
    ("ar", "ﻣﺤﻤﺪ", "محمد", "presentation forms are letters"),
    ("ar", "قُلۡ", "قل", "a Quranic sign, and the vowel before it"),
    # Russian
    ("ru", "ещё", "еще", "print seldom writes the dots of ё"),
    ("ru", "Ёлка", "елка", "nor on capitals"),
    ("ru", "е\u0308лка", "елка", "nor as a combining diaeresis"),
    ("ru", "и\u0306од", "йод", "й from two code points is й"),
    ("ru", "ПРИВЕТ, МИР!", "привет мир", "case and punctuation"),
    ("ru", "«Война и мир»", "война и мир", "guillemets"),
    ("ru", "кто-то", "кто то", "a hyphen is a space"),
    ("ru", "да — нет", "да нет", "a dash with its spaces is one space"),
    ("ru", "№ 5", "no 5", "NFKC spells the numero sign out"),
    ("ru", "за\u0301мок", "за\u0301мок!", "a stress mark stays on its letter and splits nothing"),
    ("ru", "„Да“", "да", "German quotes, in use in handwriting"),
    ("ru", "пере\u00adнос", "перенос", "a soft hyphen is not seen"),
    # others, by the basic rule
    ("de", "Straße, groß!", "straße groß", "ß is a letter"),
    ("fr", "L’été", "l'été", "either apostrophe is a space"),
    ("tr", "IŞIK İstanbul", "ışık istanbul", "Turkish has two letters i"),
    ("el", "ΟΔΟΣ", "οδος", "capital sigma at the end is ς"),
    ("hi", "हिन्दी।", "हिन्दी", "the danda is punctuation, vowel signs are not"),
    ("vi", "Tie\u0302\u0301ng", "tiếng", "stacked marks compose"),
    ("th", "ภาษา ไทย", "ภาษาไทย", "spaces separate phrases, not words"),
    ("ko", "안녕하세요!", "안녕하세요", "punctuation"),
    (UNDETERMINED, "Hello, World", "hello world", "the basic rule where no language is known"),
]

APART = [
    ("ja", "がぎぐ", "かきく", "voicing is heard; remove_diacritics would lose it"),
    ("ja", "パーティー", "ハーティー", "so is the half-voiced mark"),
    ("ja", "ビル", "ビール", "the long vowel mark is a letter"),
    ("ru", "йод", "иод", "й is not и"),
    ("ru", "мой", "мои", "and tells singular from plural"),
    ("ar", "كتاب", "كتب", "long vowels are letters"),
    ("ar", "على", "علي", "alef maksura is not folded into yeh"),
    ("zh", "乾坤", "干坤", "the conversion knows phrases: here the character stays"),
    ("zh", "買", "賣", "buy and sell"),
    ("ja", "買", "买", "Japanese is not converted: this is another character there"),
    ("ja", "おばさん", "おばあさん", "aunt and grandmother, by a vowel's length"),
    ("ja", "きて", "きって", "the small tsu is heard"),
    ("en", "it's", "its", "an apostrophe tells a verb"),
    ("en", "advice", "advise", "the map folds spelling, not words"),
    ("en", "15", "50", "numbers"),
    ("ar", "مدرسة", "مدرسه", "teh marbuta is not folded into heh"),
    ("ar", "سأل", "سل", "the alef under a hamza stays"),
    ("ru", "все", "вся", "and no other letter is folded"),
    ("de", "schon", "schön", "an umlaut is another word"),
    ("de", "er (laut) sprach", "er sprach", "bracketed text is kept outside English"),
    ("fr", "[rires] oui", "oui", "square brackets too"),
    ("ko", "나는 학교", "나는학교", "Korean keeps its spaces"),
    ("hi", "कि", "की", "vowel signs are heard"),
]


@pytest.mark.parametrize(("language", "left", "right", "reason"), SAME)
def test_what_sounds_equal_becomes_equal(language: str, left: str, right: str, reason: str) -> None:
    assert left != right, "a pair that is equal before proves nothing"
    assert normalise(left, language) == normalise(right, language), reason
    assert normalise(left, language), "two empty strings would be equal too"


@pytest.mark.parametrize(("language", "left", "right", "reason"), APART)
def test_what_sounds_unlike_stays_apart(language: str, left: str, right: str, reason: str) -> None:
    assert normalise(left, language) != normalise(right, language), reason


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("ar", "السَّلامُ عَلَيْكُم", "السلام عليكم"),
        ("zh", "我有 2 只猫。", "我有2只猫"),
        ("ja", "がぎぐ　パーティー", "がぎぐパーティー"),
        ("ru", "Ещё мой йод", "еще мой йод"),
        ("en", "She's got $20, hasn't she?", "she has got $20 has not she"),
        ("hi", "नमस्ते, दुनिया", "नमस्ते दुनिया"),
        ("de", "  Guten\tTag\n", "guten tag"),
    ],
)
def test_the_outcome_is_exactly_this(language: str, text: str, expected: str) -> None:
    assert normalise(text, language) == expected


@pytest.mark.parametrize("language", ["en", "zh", "ar", "ru", "de"])
@pytest.mark.parametrize("text", ["", "   ", "?!…", "—", "♪♪", "\u200b\ufeff", "\u0301"])
def test_what_is_not_heard_becomes_empty(language: str, text: str) -> None:
    assert normalise(text, language) == ""


@pytest.mark.parametrize("language", ["zh", "en", "ja", "ar", "ru"])
def test_every_language_of_the_table_has_pairs_enough(language: str) -> None:
    pairs = [pair for pair in SAME + APART if pair[0] == language]
    assert len({pair[1:3] for pair in pairs}) >= 15
    assert len({pair[3] for pair in pairs}) >= 15, "each for a reason of its own"


@pytest.mark.parametrize("language", ["de", "fr", "vi", "pl", "uk"])
def test_the_basic_rule_is_whispers_on_plain_text(language: str) -> None:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    texts = [
        "Der Hund, die Katze – und: das Schaf!",
        "Ça va? L’été est fini…",
        "Tiếng Việt 100 %",
        "Żółw № 5",
        "a\n b  c",
    ]
    for text in texts:
        assert normalise(text, language) == BasicTextNormalizer()(text).strip()


def test_the_english_rule_is_whispers_on_plain_text() -> None:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    theirs = EnglishTextNormalizer({"colour": "color"})
    for text in ["The colour isn't red.", "He'd paid $3.50, I'm told", "Twenty-one or 21st?", "uh, Mr. Smith's 1960s"]:
        assert normalise(text, "en") == theirs(text).strip()


def test_no_combining_mark_of_unicode_breaks_a_word() -> None:
    marks = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code))[0] == "M"]
    assert len(marks) > 2000
    broken = [f"U+{ord(mark):04X}" for mark in marks if " " in normalise(f"a{mark}b", "de")]
    assert broken == []


@pytest.mark.parametrize("language", ["de", "ar", "ru", "ja", "tr", "zh", "ko", "th"])
def test_normalising_twice_changes_nothing(language: str) -> None:
    for other, left, _, _ in SAME:
        if other != "en":
            once = normalise(left, language)
            assert normalise(once, language) == once


@pytest.mark.parametrize("language", ["zh", "yue", "ja", "th", "lo", "my", "km", "ko"])
def test_the_headline_is_cer_where_words_are_not_the_unit(language: str) -> None:
    assert headline_metric(language) == "cer"


@pytest.mark.parametrize("language", ["en", "ar", "ru", "de", "vi", "haw", UNDETERMINED])
def test_the_headline_is_wer_elsewhere(language: str) -> None:
    assert headline_metric(language) == "wer"


@pytest.mark.parametrize("language", ["", "English", "EN", "zh-TW", "<|en|>"])
def test_a_name_instead_of_a_code_is_refused(language: str) -> None:
    with pytest.raises(ValueError, match="use the ISO code"):
        normalise("text", language)


def test_a_language_without_a_profile_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no scoring profile for language 'dee'; did you mean 'de'"):
        headline_metric("dee")
