"""A tokenizer learnt from transcripts, with Whisper's special tokens, for models from random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AddedToken, WhisperTokenizer

from data.languages import LANGUAGE_CODES

Unit = Literal["character", "bpe"]
NUM_TIMESTAMPS = 1501  # 0.00 to 30.00 s in steps of 0.02 s


def special_tokens() -> list[str]:
    """Return Whisper's special tokens in the order of large-v3's vocabulary, `<|endoftext|>` first."""
    control = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in LANGUAGE_CODES),
        *(f"<|{name}|>" for name in control),
        *(f"<|{i * 0.02:.2f}|>" for i in range(NUM_TIMESTAMPS)),
    ]


def learn_tokenizer(texts: Iterable[str], *, unit: Unit, vocabulary_size: int) -> WhisperTokenizer:
    """Learn a byte-level tokenizer; any text can be written with it, seen or not.

    Args:
        texts: transcripts.
        unit: `character` gives each character that occurs a token; `bpe` joins frequent neighbours as Whisper's does.
        vocabulary_size: text tokens at most, for `bpe`; 256 are the bytes.

    Raises:
        ValueError: for another unit, or a vocabulary smaller than the bytes.
    """
    if unit == "character":
        vocabulary, merges = _character_merges(texts)
    elif unit == "bpe":
        vocabulary, merges = _learn_bpe(texts, vocabulary_size)
    else:
        raise ValueError(f"model.tokenizer_unit={unit!r} must be character or bpe")
    tokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=merges,
        additional_special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens()[1:]],
        model_max_length=448,
        pad_token="<|endoftext|>",
    )
    return tokenizer


def _byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _character_merges(texts: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Join the bytes of each character from left to right; no merge crosses a character."""
    characters = sorted({character for text in texts for character in text if len(character.encode()) > 1})
    to_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {symbol: i for i, symbol in enumerate(_byte_alphabet())}
    merges: list[tuple[str, str]] = []
    for character in characters:
        symbols = to_symbols.pre_tokenize_str(character)[0][0]
        joined = symbols[0]
        for symbol in symbols[1:]:
            if joined + symbol not in vocabulary:
                vocabulary[joined + symbol] = len(vocabulary)
                merges.append((joined, symbol))
            joined += symbol
    return vocabulary, merges


def _learn_bpe(texts: Iterable[str], vocabulary_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    alphabet = _byte_alphabet()
    if vocabulary_size < len(alphabet):
        raise ValueError(f"model.vocabulary_size={vocabulary_size} must be {len(alphabet)} or more, one a byte")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=vocabulary_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((f" {text}" for text in texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return dict(model["vocab"]), [(first, second) for first, second in model["merges"]]
