"""Invented text is marked, and what people do say, such as a refrain or a filler, is not."""

import zlib

import pytest

from infer.score.evaluation import Prediction, score_predictions
from infer.score.signs import SIGNS, compression_ratio, find_signs, is_repetitive
from infer.score.utterances import count_utterance

SAID = "we went to the market early this morning"

FOUND = [
    ("en", SAID, SAID + " thank you so much for watching this video", {"insertion_burst"}, "a caption nobody said"),
    (
        "en",
        SAID,
        "we went to to to to to to the market early this morning",
        {"repetition", "insertion_burst"},
        "a loop",
    ),
    (
        "en",
        SAID,
        "i love it i love it i love it i love it early this morning",
        {"repetition", "insertion_burst"},
        "a phrase",
    ),
    ("en", "a b c d e f g h i j k l", "a x y x y x y x y j k l", {"repetition"}, "a loop in place of words"),
    (
        "zh",
        "我们今天去学校",
        "我们今天去学校请不吝点赞订阅转发打赏支持",
        {"insertion_burst"},
        "a caption, in characters",
    ),
    ("zh", "我们今天去学校", "我们哈哈哈哈哈哈去学校", {"repetition"}, "a loop of one character"),
    ("de", "ja", "ja " * 40, {"insertion_burst", "repetition", "compression"}, "a page of one word"),
    ("en", SAID, SAID, set(), "right"),
    ("en", SAID, "we went to the uh market rather early this morning", set(), "two words too many are an error"),
    ("en", "no no no no no", "no no no no no no", set(), "said as often, nearly"),
    ("en", SAID, "", set(), "nothing is no invention"),
    ("en", SAID, "he walks from a garden late that evening", set(), "all wrong, and nothing too much"),
    ("ko", "안녕하세요", "안녕하세오", set(), "one character"),
]


@pytest.mark.parametrize(("language", "reference", "hypothesis", "expected", "reason"), FOUND)
def test_signs_are_these(language, reference, hypothesis, expected, reason):
    utterance = count_utterance(Prediction("a", language, None, reference, hypothesis, 3.0))
    assert set(utterance.signs) == expected, reason


def test_text_on_silence_and_cut_text_are_signs():
    silent = count_utterance(
        Prediction("a", "en", None, "", "Thanks for watching, and subscribe!", 3.0, no_speech=True)
    )
    assert silent.signs == ("text_on_no_speech",)
    assert count_utterance(Prediction("a", "en", None, "", "...", 3.0, no_speech=True)).signs == ()
    assert count_utterance(Prediction("a", "en", None, "yes", "yes", 3.0, is_cut=True)).signs == ("cut",)


@pytest.mark.parametrize("period", [1, 2, 5, 8])
def test_repetition_is_found_at_any_place_and_period(period):
    phrase = [f"w{i}" for i in range(period)]
    assert is_repetitive(["a", "b", *phrase * 4, "c"], "word")
    assert not is_repetitive(["a", "b", *phrase * 3, "c", *phrase], "word")
    assert not is_repetitive([f"w{i}" for i in range(40)], "word")


def test_the_compression_ratio_is_openais():
    text = "la la la " * 30
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))
    assert compression_ratio("") == 0.0
    assert compression_ratio("\ud800") > 0  # a broken character is no crash


def test_counts_stand_in_the_score():
    rows = [
        Prediction("a", "en", None, SAID, SAID + " thank you so much for watching this video", 3.0),
        Prediction("b", "en", None, "", "you", 3.0, no_speech=True),
        Prediction("c", "en", None, "", "", 3.0, no_speech=True),
        Prediction("d", "en", None, SAID, "", 3.0),
        Prediction("e", "de", None, "ja", "ja", 3.0),
    ]
    score = score_predictions(rows, processing_s=0)
    expected = dict.fromkeys(SIGNS, 0) | {"insertion_burst": 1, "text_on_no_speech": 1}
    assert score.languages["en"]["signs"] == {**expected, "any": 2, "empty": 1, "no_speech_clips": 2}
    assert score.languages["de"]["signs"]["any"] == 0
    assert score.overall["signs"]["any"] == 2
    assert {row["id"]: row["signs"] for row in score.worst} == {
        "a": ["insertion_burst"],
        "b": ["text_on_no_speech"],
        "d": [],
    }


def test_signs_are_named_in_the_order_of_the_report():
    found = find_signs("a", "a " * 60, unit="word", longest_insertion=59, no_speech=False, is_cut=True)
    assert found == tuple(sign for sign in SIGNS if sign in found) and len(found) == 4
