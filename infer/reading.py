"""From tokens to text and to segments with their times."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from data.labels import TIMESTAMP_STEP_S, special_id
from infer.subtitles import Segment
from infer.word_times import Alignment


class TokenReader:
    """Read what a model says with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.timestamp_begin = special_id(tokenizer, "<|0.00|>")
        self._end_id = special_id(tokenizer, "<|endoftext|>")

    def words(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that are no times."""
        return [i for i in tokens if i < self.timestamp_begin]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text without times and control tokens, stripped."""
        return str(self._tokenizer.decode(self.words(tokens), skip_special_tokens=True)).strip()

    def without_last_words(self, tokens: Sequence[int], num_dropped: int) -> tuple[int, ...]:
        """Return the tokens without the last words; times stay."""
        kept: list[int] = []
        for token in reversed(tokens):
            if token < self.timestamp_begin and num_dropped > 0:
                num_dropped -= 1
            else:
                kept.append(token)
        return tuple(reversed(kept))

    def time_s(self, token: int) -> float:
        """Return the seconds from the beginning of the window that a time token names."""
        return (token - self.timestamp_begin) * TIMESTAMP_STEP_S

    def num_text(self, tokens: Sequence[int]) -> int:
        """Return how many tokens are text: neither times nor control tokens."""
        return sum(token < self._end_id for token in tokens)

    def segments(
        self, tokens: Sequence[int], window_s: float, alignment: Alignment | None = None
    ) -> tuple[Segment, ...]:
        """Return the timed parts of a window.

        Args:
            tokens: text and times.
            window_s: end of a segment that is cut before its closing time; what was said must still stand somewhere.
            alignment: of the same tokens; gives each segment its words.
        """
        segments: list[Segment] = []
        start_s: float | None = None
        words: list[int] = []
        num_before = 0

        def add(end_s: float) -> None:
            nonlocal words, num_before
            assert start_s is not None
            end = num_before + self.num_text(words)
            timed = () if alignment is None else alignment.between(num_before, end)
            segments.append(Segment(start_s, end_s, self.text(words), words=timed))
            words, num_before = [], end

        for token in tokens:
            if token < self.timestamp_begin:
                words.append(token)
                continue
            time_s = self.time_s(token)
            if start_s is not None and words:
                add(time_s)
            start_s = time_s
        if start_s is not None and words:
            add(max(start_s, window_s))
        return tuple(segments)
