"""From tokens to words: where one ends and the next begins."""

from __future__ import annotations

import codecs
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from data.labels import special_id
from infer.export.openai_layout import token_bytes

SPLIT_AT_CHARACTERS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages whose words cannot be told from their writing; each whole character stands for itself."""


@dataclass(frozen=True)
class Piece:
    """A word, or punctuation by itself."""

    text: str
    """As it was said, with the space before it."""
    first: int
    """Index of its first token among the tokens of text."""
    num_tokens: int

    @property
    def end(self) -> int:
        """Index behind its last token."""
        return self.first + self.num_tokens

    def with_next(self, other: Piece) -> Piece:
        """Return the two as one."""
        return Piece(self.text + other.text, self.first, self.num_tokens + other.num_tokens)


class WordSplitter:
    """Split what a model says, with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.end_id = special_id(tokenizer, "<|endoftext|>")
        """All text lies below it."""

    @cached_property
    def _bytes(self) -> list[bytes]:
        return token_bytes(self._tokenizer, self.end_id)

    def runs(self, tokens: Sequence[int]) -> list[list[int]]:
        """Return the tokens of text, apart where a time stands between them."""
        runs: list[list[int]] = [[]]
        for token in tokens:
            if token < self.end_id:
                runs[-1].append(token)
            elif runs[-1]:
                runs.append([])
        return [run for run in runs if run]

    def split(self, runs: Sequence[Sequence[int]], language: str) -> list[Piece]:
        """Return words and punctuation in order; none reaches over a time.

        Args:
            runs: tokens of text, from `runs`.
            language: of the text; an ISO code.

        Source: openai/whisper `tokenizer.py`, `split_to_word_tokens`.
        """
        pieces: list[Piece] = []
        for run in runs:
            first = pieces[-1].end if pieces else 0
            characters = self._characters(run, first)
            pieces += characters if language in SPLIT_AT_CHARACTERS else _at_spaces(characters)
        return pieces

    def _characters(self, run: Sequence[int], first: int) -> list[Piece]:
        """Join the tokens whose bytes make whole characters only together; bytes that make none become U+FFFD."""
        pieces: list[Piece] = []
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, begin = "", first
        for i, token in enumerate(run):
            text += decoder.decode(self._bytes[token], final=i + 1 == len(run))
            if not decoder.getstate()[0]:
                pieces.append(Piece(text, begin, first + i + 1 - begin))
                text, begin = "", first + i + 1
        return pieces


def _at_spaces(characters: Sequence[Piece]) -> list[Piece]:
    pieces: list[Piece] = []
    for piece in characters:
        is_punctuation = piece.text.strip() in string.punctuation
        if not pieces or piece.text.startswith(" ") or is_punctuation:
            pieces.append(piece)
        else:
            pieces[-1] = pieces[-1].with_next(piece)
    return pieces
