"""A learnt tokenizer writes any text, gives characters one token each, and keeps its ids through transformers."""

import random

import pytest
from conftest import TEXTS
from transformers import AutoTokenizer, WhisperTokenizer

from data.languages import LANGUAGE_CODES
from infer.artefact import load_tokenizer
from train.vocabulary import NUM_TIMESTAMPS, learn_tokenizer, special_tokens


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def _text(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_every_character_that_occurs_is_one_token(tokenizer):
    characters = sorted({character for text in TEXTS.values() for character in text})
    assert len(characters) > 30
    assert {character: len(_ids(tokenizer, character)) for character in characters} == dict.fromkeys(characters, 1)


def test_a_text_is_as_many_tokens_as_characters(tokenizer):
    for text in TEXTS.values():
        assert len(_ids(tokenizer, text)) == len(text)


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS.values(),
        " leading and trailing ",
        "tabs\tand\nnew lines\r\n",
        "no . space , before ? punctuation 's n't",
        "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
        "ಕನ್ನಡ ភាសាខ្មែរ ᚠᚢᚦ 𓀀 ﷽",
        "é é ﬁ ſ İ ß",
        "zero\u200bwidth\ufeff\u202emark",
        "\x00\x01\x7f",
        "😀" * 50,
        "",
    ],
)
def test_any_text_comes_back(tokenizer, text):
    assert _text(tokenizer, _ids(tokenizer, text)) == text


@pytest.mark.parametrize("unit", ["character", "bpe"])
def test_random_unicode_comes_back(unit):
    rng = random.Random(0)
    learnt = learn_tokenizer(TEXTS.values(), unit=unit, vocabulary_size=400)
    for _ in range(100):
        codes = [
            rng.choice([rng.randrange(0x20, 0x2FF), rng.randrange(0x300, 0xD7FF), rng.randrange(0xE000, 0x10FFFF)])
            for _ in range(rng.randrange(1, 30))
        ]
        text = "".join(map(chr, codes))
        ids = _ids(learnt, text)
        assert _text(learnt, ids) == text
        assert max(ids) < learnt.convert_tokens_to_ids("<|endoftext|>")  # text never holds a control token


def test_special_tokens_are_whispers_in_its_order(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(special_tokens())
    first = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert ids == list(range(first, first + len(special_tokens())))
    assert len(tokenizer) == ids[-1] + 1
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert all(tokenizer.convert_tokens_to_ids(f"<|{code}|>") in ids for code in LANGUAGE_CODES)


def test_timestamps_are_contiguous_and_last(tokenizer):
    begin = tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert begin == tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1
    for seconds, name in [(0.02, "<|0.02|>"), (1.0, "<|1.00|>"), (29.98, "<|29.98|>"), (30.0, "<|30.00|>")]:
        assert tokenizer.convert_tokens_to_ids(name) == begin + round(seconds / 0.02)
    assert begin + NUM_TIMESTAMPS == len(tokenizer)


def test_control_tokens_are_never_split_and_may_be_left_out(tokenizer):
    text = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>one<|endoftext|>"
    ids = _ids(tokenizer, text)
    assert len(ids) == 4 + 3 + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "one"


def test_bpe_has_the_size_that_was_asked_for_and_joins_neighbours():
    texts = ["one two three four five six seven"] * 3 + list(TEXTS.values())
    learnt = learn_tokenizer(texts, unit="bpe", vocabulary_size=300)
    assert learnt.convert_tokens_to_ids("<|endoftext|>") == 300
    assert len(learnt) == 300 + len(special_tokens())
    assert len(_ids(learnt, " three")) < len(" three")


def test_bpe_ids_are_shorter_with_a_larger_vocabulary():
    lengths = []
    for size in (256, 260, 320):
        learnt = learn_tokenizer(["one two three"] * 4, unit="bpe", vocabulary_size=size)
        lengths.append(len(_ids(learnt, "one two three")))
    assert lengths[0] == len("one two three") > lengths[1] > lengths[2]


def test_learning_twice_gives_the_same_ids():
    first, second = (learn_tokenizer(list(TEXTS.values()), unit="character", vocabulary_size=0) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


@pytest.mark.parametrize("unit", ["character", "bpe"])
@pytest.mark.parametrize("loader", [WhisperTokenizer.from_pretrained, AutoTokenizer.from_pretrained, load_tokenizer])
def test_ids_survive_saving_and_loading_by_transformers(tmp_path, unit, loader):
    learnt = learn_tokenizer(TEXTS.values(), unit=unit, vocabulary_size=320)
    learnt.save_pretrained(tmp_path)
    if loader is AutoTokenizer.from_pretrained:
        (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    loaded = loader(tmp_path)
    assert loaded.get_vocab() == learnt.get_vocab()
    text = "<|startoftranscript|><|zh|>one 你好 new ж 👋<|endoftext|>"
    assert _ids(loaded, text) == _ids(learnt, text)
    assert _text(loaded, _ids(loaded, text)) == text


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="must be character or bpe"):
        learn_tokenizer(["a"], unit="word", vocabulary_size=300)
    with pytest.raises(ValueError, match="must be 256 or more"):
        learn_tokenizer(["a"], unit="bpe", vocabulary_size=100)
