"""When each word of a window is said, in torch: the text is given to the decoder once more, and it is seen what it
listens to as it says each token.

Source: Radford et al. 2022, arXiv:2212.04356; openai/whisper `timing.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.labels import LabelBuilder
from infer.decoded import Decoded, judged
from infer.encoder import WindowedWhisper
from infer.listening import ListeningSteps, alignment_heads, costs_of
from infer.reading import TokenReader
from infer.warping import first_frames
from infer.word_splitting import WordSplitter
from infer.word_times import POSITIONS_PER_S, Alignment, time_words

FRAMES_PER_POSITION = 2


class WordAligner:
    """Find the times of words with one model."""

    def __init__(self, model: WindowedWhisper, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look up which heads follow the speech."""
        self._model = model
        self._heads = alignment_heads(model)
        self._builder = LabelBuilder(tokenizer, max_positions=model.config.max_target_positions)
        self._reader = TokenReader(tokenizer)
        self._splitter = WordSplitter(tokenizer)

    def add_words(
        self, decoded: Sequence[Decoded], hidden: Sequence[Tensor], task: str, num_frames: Sequence[int] | None
    ) -> list[Decoded]:
        """Return what windows say with the times of its words.

        Args:
            decoded: of each window.
            hidden: (B, S, D) from the encoder, of each window length; together as many rows as windows.
            task: `transcribe` or `translate`.
            num_frames: mel frames of each window that hold sound; None takes the whole windows.
        """
        found: list[Decoded] = []
        for group in hidden:
            rows = decoded[len(found) : len(found) + len(group)]
            frames = (
                [FRAMES_PER_POSITION * group.shape[1]] * len(group) if num_frames is None else num_frames[len(found) :]
            )
            found += self._add_to_group(rows, group, task, frames)
        return found

    def _add_to_group(
        self, decoded: Sequence[Decoded], hidden: Tensor, task: str, num_frames: Sequence[int]
    ) -> list[Decoded]:
        runs = [self._splitter.runs(window.tokens) for window in decoded]
        rows = [row for row, said in enumerate(runs) if said]
        if not rows:
            return list(decoded)
        positions = [positions_of(num_frames[row], hidden.shape[1]) for row in rows]
        alignments = self._align(
            [runs[row] for row in rows], [decoded[row] for row in rows], hidden[rows], task, positions
        )
        found = list(decoded)
        for row, alignment in zip(rows, alignments, strict=True):
            found[row] = with_alignment(decoded[row], alignment, self._reader, hidden.shape[1] / POSITIONS_PER_S)
        return found

    def _align(
        self,
        runs: Sequence[list[list[int]]],
        decoded: Sequence[Decoded],
        hidden: Tensor,
        task: str,
        positions: Sequence[int],
    ) -> list[Alignment]:
        builder = self._builder
        texts = [[token for run in said for token in run] for said in runs]
        prefixes = [builder.prefix_ids(window.language, task, timestamps=False) for window in decoded]
        first = len(prefixes[0]) - 1  # the token before the text is the one that says its first token
        # The longest text there can be leaves no room for its end, which only takes part in the normalisation.
        given = [
            [*prefix, *text, builder.end_id][: builder.max_positions]
            for prefix, text in zip(prefixes, texts, strict=True)
        ]
        lengths = [len(ids) for ids in given]
        padded = torch.tensor([[*ids, *[builder.end_id] * (max(lengths) - len(ids))] for ids in given])
        steps = ListeningSteps(self._model, hidden, heads=self._heads, num_tokens=lengths, num_positions=positions)
        said = steps.advance(padded.to(hidden.device))
        costs, sizes = costs_of(steps.weights, first, [len(text) for text in texts])
        frames = first_frames(costs, sizes)
        return [
            align_text(
                runs[row],
                frames[row].tolist(),
                self._probabilities(steps.logits(said[row, first : first + len(text)]), text),
                self._splitter,
                language_of(decoded[row].language, task),
            )
            for row, text in enumerate(texts)
        ]

    def _probabilities(self, logits: Tensor, text: Sequence[int]) -> list[float]:
        """Return how likely each token of text is, among all tokens of text."""
        chosen = torch.tensor(text, device=logits.device)[:, None]
        likely = logits[:, : self._builder.end_id].float().softmax(dim=-1).gather(1, chosen)
        return [float(value) for value in likely[:, 0].tolist()]


def positions_of(num_frames: int, num_positions: int) -> int:
    """Return how many encoder positions of a window hold sound."""
    return max(1, min(num_frames // FRAMES_PER_POSITION, num_positions))


def language_of(language: str, task: str) -> str:
    """Return the language of a text."""
    return "en" if task == "translate" else language


def align_text(
    runs: Sequence[Sequence[int]],
    frames: Sequence[int],
    probabilities: Sequence[float],
    splitter: WordSplitter,
    language: str,
) -> Alignment:
    """Return the words of a text with their times.

    Args:
        runs: tokens of text, from `WordSplitter.runs`.
        frames: encoder position at which each token begins, and that of the end.
        probabilities: of each token.
        splitter: of the tokenizer.
        language: of the text.
    """
    pieces = splitter.split(runs, language)
    return time_words(pieces, frames, probabilities, borders=frozenset(itertools.accumulate(map(len, runs))))


def with_alignment(decoded: Decoded, alignment: Alignment, reader: TokenReader, window_s: float) -> Decoded:
    """Return what a window says with its words, and those of each segment in it."""
    segments = reader.segments(decoded.tokens, window_s, alignment) if decoded.segments else ()
    return replace(decoded, alignment=alignment, segments=tuple(judged(segment, decoded) for segment in segments))
