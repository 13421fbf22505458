"""When each word of a window is said, under CTranslate2: it gives the frames of tokens, the rest is as in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from data.labels import LabelBuilder
from infer.word_splitting import WordSplitter
from infer.word_times import Alignment
from infer.words import FRAMES_PER_POSITION, align_text, language_of, positions_of


class CTranslate2Aligner:
    """Find the times of words with `ctranslate2.models.Whisper.align`; the alignment heads are those it was given."""

    def __init__(self, runtime: Any, tokenizer: PreTrainedTokenizerBase, builder: LabelBuilder) -> None:
        self._runtime = runtime
        self._builder = builder
        self._splitter = WordSplitter(tokenizer)

    def align(
        self,
        heard: Any,
        tokens: Sequence[Sequence[int]],
        languages: Sequence[str],
        task: str,
        num_frames: Sequence[int],
        num_positions: int,
    ) -> list[Alignment | None]:
        """Return the alignment of each window; None where nothing is said.

        CTranslate2 takes one prefix for a batch, and all of its windows: so each language is asked for by itself, and
        rows of others are given no text.

        Args:
            heard: (B, S, D) from its encoder, or the features where it cannot tell the two apart.
            tokens: of each window.
            languages: of each window.
            task: `transcribe` or `translate`.
            num_frames: mel frames of each window that hold sound.
            num_positions: of a window.
        """
        runs = [self._splitter.runs(said) for said in tokens]
        frames = [FRAMES_PER_POSITION * positions_of(num, num_positions) for num in num_frames]
        found: list[Alignment | None] = [None] * len(runs)
        for language in dict.fromkeys(languages):
            prefix = self._builder.prefix_ids(language, task, timestamps=True)  # it adds `<|notimestamps|>`
            texts = [
                [token for run in said for token in run] if code == language else []
                for said, code in zip(runs, languages, strict=True)
            ]
            if not any(texts):
                continue
            results = self._runtime.align(heard, prefix, texts, frames)
            for row, (text, result) in enumerate(zip(texts, results, strict=True)):
                if text:
                    starts = _first_frames(result.alignments, len(text) + 1)
                    written = language_of(language, task)
                    found[row] = align_text(runs[row], starts, result.text_token_probs, self._splitter, written)
        return found


def _first_frames(pairs: Sequence[tuple[int, int]], num_tokens: int) -> list[int]:
    """Return the first frame of each token, of which there is one more than text: the end."""
    starts: dict[int, int] = {}
    for token, frame in pairs:
        starts.setdefault(token, frame)
    return [starts[i] for i in range(num_tokens)]
