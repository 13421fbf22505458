"""From the frames at which tokens begin to words with times: punctuation joins its word, and overlong words are cut.

A word that stands at a pause is often given the whole pause, since nothing else can hold those frames. So the longest
that a word at the border of a sentence or of a segment may be is twice the median of its window.

Source: openai/whisper `timing.py`, with its limits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from infer.subtitles import Segment, Word
from infer.word_splitting import Piece

POSITIONS_PER_S = 50  # of the encoder
GOES_WITH_NEXT = "\"'“¿([{-"
GOES_WITH_LAST = "\"'.。,，!！?？:：”)]}、"
ENDS_SENTENCE = ".。!！?？"
MAX_MEDIAN_S = 0.7
MAX_MEDIANS = 2  # that a word at a border may last
PAUSE_MEDIANS = 4  # that a first word must end behind what was said before, to be taken for one that holds a pause
TRUST_S = 0.5  # a segment's own time is believed where it differs from its word's by more


@dataclass(frozen=True)
class AlignedWord:
    """A word of one window."""

    text: str
    """As it was said, with the space before it."""
    position: int
    """Index of its first token among the window's tokens of text."""
    start_s: float
    """From the beginning of the window, like the next one."""
    end_s: float
    probability: float


@dataclass(frozen=True)
class Alignment:
    """When each word of one window is said."""

    words: tuple[AlignedWord, ...]
    median_s: float
    """That a word lasts; at most 0.7."""

    def between(self, first: int, end: int) -> tuple[Word, ...]:
        """Return the words whose first token is among some of the window's tokens of text, by their indices."""
        return tuple(
            Word(word.start_s, word.end_s, word.text.strip(), word.probability)
            for word in self.words
            if first <= word.position < end
        )

    def all(self) -> tuple[Word, ...]:
        """Return all words."""
        return self.between(0, self.words[-1].position + 1) if self.words else ()


def time_words(
    pieces: Sequence[Piece], frames: Sequence[int], probabilities: Sequence[float], *, borders: frozenset[int]
) -> Alignment:
    """Return words with times.

    Args:
        pieces: words, and punctuation by itself.
        frames: encoder position at which each token of text begins, and behind them that at which the text ends.
        probabilities: of each token of text.
        borders: indices of tokens behind which a time stands; punctuation joins no word over one.
    """
    words = [
        AlignedWord(
            text=piece.text,
            position=piece.first,
            start_s=frames[piece.first] / POSITIONS_PER_S,
            end_s=frames[piece.end] / POSITIONS_PER_S,
            probability=float(np.mean(probabilities[piece.first : piece.end])),
        )
        for piece in pieces
    ]
    lengths = [word.end_s - word.start_s for word in words if word.end_s != word.start_s]
    median_s = min(MAX_MEDIAN_S, float(np.median(lengths))) if lengths else 0.0
    if lengths:
        words = _cut_at_sentences(words, MAX_MEDIANS * median_s)
    merged = _with_punctuation(words, borders)
    return Alignment(tuple(word for word in merged if word.text.strip()), median_s)


def _cut_at_sentences(words: list[AlignedWord], max_s: float) -> list[AlignedWord]:
    """Shorten what ends a sentence at its end, and what begins one at its beginning."""
    cut = words[:1]
    for last, word in itertools.pairwise(words):
        kept = word
        if word.end_s - word.start_s > max_s:
            if word.text in ENDS_SENTENCE:
                kept = replace(word, end_s=word.start_s + max_s)
            elif last.text in ENDS_SENTENCE:
                kept = replace(word, start_s=word.end_s - max_s)
        cut.append(kept)
    return cut


def _with_punctuation(words: Sequence[AlignedWord], borders: frozenset[int]) -> list[AlignedWord]:
    """Join punctuation to its word, which keeps its own times and probability."""
    opened: list[AlignedWord] = []
    for word in reversed(words):
        follows = opened and opened[-1].position not in borders
        if follows and word.text.startswith(" ") and word.text.strip() in GOES_WITH_NEXT:
            opened[-1] = replace(opened[-1], text=word.text + opened[-1].text, position=word.position)
        else:
            opened.append(word)
    merged: list[AlignedWord] = []
    for word in reversed(opened):
        follows = merged and word.position not in borders and not merged[-1].text.endswith(" ")
        if follows and word.text in GOES_WITH_LAST:
            merged[-1] = replace(merged[-1], text=merged[-1].text + word.text)
        else:
            merged.append(word)
    return merged


def fit_segment(segment: Segment, words: Sequence[Word], *, median_s: float, last_end_s: float) -> Segment:
    """Return a segment with its words: both believe each other where one of them holds a pause.

    Args:
        segment: in seconds of the recording.
        words: of it, in seconds of the recording.
        median_s: that a word of its window lasts.
        last_end_s: when speech ended before.
    """
    if not words:
        return segment
    max_s = MAX_MEDIANS * median_s
    fitted = _cut_after_pause(list(words), max_s, pause_s=PAUSE_MEDIANS * median_s, last_end_s=last_end_s)
    start_s, end_s = segment.start_s, segment.end_s
    first = fitted[0]
    if start_s < first.end_s and start_s - TRUST_S > first.start_s:
        fitted[0] = replace(first, start_s=max(0.0, min(first.end_s - median_s, start_s)))
    else:
        start_s = first.start_s
    last = fitted[-1]
    if end_s > last.start_s and end_s + TRUST_S < last.end_s:
        fitted[-1] = replace(last, end_s=max(last.start_s + median_s, end_s))
    else:
        end_s = last.end_s
    return replace(segment, start_s=start_s, end_s=max(start_s, end_s), words=tuple(fitted))


def _cut_after_pause(words: list[Word], max_s: float, *, pause_s: float, last_end_s: float) -> list[Word]:
    """Shorten the first and the second word after a pause."""
    first = words[0]
    is_long = first.end_s - first.start_s > max_s
    are_long = len(words) > 1 and words[1].end_s - first.start_s > 2 * max_s
    if first.end_s - last_end_s <= pause_s or not (is_long or are_long):
        return words
    if len(words) > 1 and words[1].end_s - words[1].start_s > max_s:
        border_s = max(words[1].end_s / 2, words[1].end_s - max_s)
        first = replace(first, end_s=border_s)
        words[1] = replace(words[1], start_s=border_s)
    words[0] = replace(first, start_s=max(0.0, first.end_s - max_s))
    return words


def moved(words: Sequence[Word], by_s: float, *, end_s: float) -> tuple[Word, ...]:
    """Return words later by some seconds, none behind the end of what was heard."""
    return tuple(
        replace(word, start_s=min(word.start_s + by_s, end_s), end_s=min(word.end_s + by_s, end_s)) for word in words
    )
