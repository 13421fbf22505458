"""The codes are Whisper's, in Whisper's order, and a wrong one is answered with the code that was meant."""

from __future__ import annotations

import copy

import pytest
from transformers import WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from data.languages import LANGUAGE_CODES, TASKS, verify_language


def test_codes_are_those_of_whisper_in_its_order() -> None:
    assert list(LANGUAGE_CODES) == list(LANGUAGES)
    assert len(LANGUAGE_CODES) == 100
    # Golden, from openai/whisper: the first ids after the start token, and the one that large-v3 added.
    assert LANGUAGE_CODES[:6] == ("en", "zh", "de", "es", "ru", "ko")
    assert LANGUAGE_CODES[-2:] == ("su", "yue")
    assert TASKS == ("transcribe", "translate")


@pytest.mark.parametrize("code", LANGUAGE_CODES)
def test_every_code_is_taken_as_it_is(code: str) -> None:
    assert verify_language(code) == code


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("german", "de"),
        ("German", "de"),
        ("EN", "en"),
        (" en ", "en"),
        ("en-US", "en"),
        ("pt_BR", "pt"),
        ("ZH-Hans-CN", "zh"),
        ("cantonese", "yue"),
        ("englsh", "en"),
        ("haitian creole", "ht"),
        ("arabik", "ar"),
    ],
)
def test_what_is_nearly_a_code_is_refused_with_the_code(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'\\? Whisper knows 100 codes"):
        verify_language(given)


@pytest.mark.parametrize("given", ["", "  ", "qqqqqq", "你好", "<|en|>x9"])
def test_what_is_like_nothing_gets_no_wild_guess(given: str) -> None:
    with pytest.raises(ValueError, match=r"unknown language .*\. Whisper knows 100 codes"):
        verify_language(given)


def test_every_name_of_transformers_leads_to_a_code_that_it_knows() -> None:
    for name in TO_LANGUAGE_CODE:
        with pytest.raises(ValueError, match="unknown language"):
            verify_language(name)
    for code, name in LANGUAGES.items():
        with pytest.raises(ValueError, match=f"did you mean '{code}'"):
            verify_language(name)


def test_ids_follow_the_start_token_as_transformers_counts_them(tokenizer: WhisperTokenizer) -> None:
    """transformers finds a language by `bos + 1 + index`, not by its token; both must give the same id."""
    tokenizer = copy.deepcopy(tokenizer)
    for code in LANGUAGE_CODES:
        tokenizer.set_prefix_tokens(language=code, task="transcribe", predict_timestamps=False)
        names = tokenizer.convert_ids_to_tokens(tokenizer.prefix_tokens)
        assert names == ["<|startoftranscript|>", f"<|{code}|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer.set_prefix_tokens(language="de", task="translate", predict_timestamps=True)
    names = tokenizer.convert_ids_to_tokens(tokenizer.prefix_tokens)
    assert names == ["<|startoftranscript|>", "<|de|>", "<|translate|>"]
