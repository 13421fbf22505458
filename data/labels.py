"""The label tokens of a row: which ids the decoder is given, and which it must say.

    <|startofprev|> prompt <|startoftranscript|> <|language|> <|task|> <|notimestamps|> text <|endoftext|>

The start token is given once and never predicted; the language token is predicted, so that detection stays trained.
With timestamps, each segment stands between its times and `<|notimestamps|>` is absent; a segment that goes on behind
the window is there with its start alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from data.reasons import Reason
from data.rows import Row
from data.texts import LANGUAGES_WITHOUT_SPACES

IGNORE_INDEX = -100  # no loss where a label has this value; torch's own default
TIMESTAMP_STEP_S = 0.02
MAX_TIMESTAMP_S = 30.0
PREFIX_LENGTH = 4  # start, language, task, and that there are no timestamps
MAX_PROMPT_SHARE = 0.5  # of the label positions, as OpenAI's decoding cuts it: 224 of 448


class LabelError(ValueError):
    """A text that cannot become labels; `reason` says why."""

    reason = Reason.TEXT_SPECIAL_TOKEN


class TooLongError(LabelError):
    """A text that needs more label positions than the model has."""

    reason = Reason.TEXT_TOO_LONG


class SegmentTimeError(LabelError):
    """A segment that no timestamp token can name."""

    reason = Reason.SEGMENT_TIME


class MissingLanguageError(LabelError):
    """A language of Whisper's that this tokenizer has no token for."""

    reason = Reason.TEXT_LANGUAGE


@dataclass(frozen=True)
class Labels:
    """Token ids of one row, both (T,): at each position, what the decoder sees and what it must say next."""

    decoder_input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """IGNORE_INDEX under the prompt and where only the start token would be predicted."""

    @property
    def num_label_tokens(self) -> int:
        """Positions that carry loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class LabelBuilder:
    """Turn rows into label tokens for one tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_positions: int, vocabulary_size: int | None = None
    ) -> None:
        """Look up the special ids by name.

        Args:
            tokenizer: a Whisper tokenizer.
            max_positions: `max_target_positions` of the model, 448 for every published Whisper.
            vocabulary_size: rows of the model's token embedding; None if there is no model to hold against it.

        Raises:
            ValueError: if the tokenizer lacks one of Whisper's special tokens, or has ids that the model has not.
        """
        self.tokenizer = tokenizer
        self.max_positions = max_positions
        self.start_id = special_id(tokenizer, "<|startoftranscript|>")
        self.end_id = special_id(tokenizer, "<|endoftext|>")
        self.previous_id = special_id(tokenizer, "<|startofprev|>")
        self.no_timestamps_id = special_id(tokenizer, "<|notimestamps|>")
        # Tokenizers published before 2023 hold no timestamp tokens; in every Whisper their ids are the ones behind.
        self.timestamp_begin = self.no_timestamps_id + 1
        self._special_ids: dict[str, int] = tokenizer.get_added_vocab()
        self._control_token = re.compile("|".join(map(re.escape, filter(None, self._special_ids))))
        largest = max(max(tokenizer.get_vocab().values()), self.timestamp_begin + _steps(MAX_TIMESTAMP_S))
        self.vocabulary_size = largest + 1 if vocabulary_size is None else vocabulary_size
        if largest >= self.vocabulary_size:
            raise ValueError(
                f"the tokenizer has ids up to {largest}, the model knows {self.vocabulary_size}: they do not belong "
                "together; model.path= takes a folder that holds both"
            )

    def prefix_ids(self, language: str, task: str, *, timestamps: bool = False) -> list[int]:
        """Return `<|startoftranscript|>`, language, task and, without timestamps, `<|notimestamps|>`."""
        ids = [
            self.start_id,
            special_id(self.tokenizer, f"<|{language}|>"),
            special_id(self.tokenizer, f"<|{task}|>"),
        ]
        return ids if timestamps else [*ids, self.no_timestamps_id]

    @cached_property
    def no_speech_id(self) -> int:
        """Id of `<|nospeech|>`, which tokenizers before large-v3 call `<|nocaptions|>`."""
        older = "<|nospeech|>" not in self._special_ids and "<|nocaptions|>" in self._special_ids
        return special_id(self.tokenizer, "<|nocaptions|>" if older else "<|nospeech|>")

    @property
    def max_sure_bytes(self) -> int:
        """Longest text, in UTF-8 bytes, that fits whatever it says; -1 for a tokenizer of which that is not known.

        A byte-level BPE begins with one token a byte, and can only join them: so a text has no more tokens than bytes.
        """
        return self.max_positions - PREFIX_LENGTH - 1 if self._is_byte_level else -1

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of previous text that a prompt holds at most, without `<|startofprev|>`: 223 of 448 positions."""
        return int(self.max_positions * MAX_PROMPT_SHARE) - 1

    def knows(self, language: str) -> bool:
        """Whether the tokenizer has a token for a language; models before large-v3 have none for `yue`."""
        return f"<|{language}|>" in self._special_ids

    def build(
        self, row: Row, *, with_timestamps: bool = False, with_prompt: bool = True, time_scale: float = 1.0
    ) -> Labels:
        """Return the tokens of a row.

        Args:
            row: its text, or its segments, become tokens.
            with_timestamps: write the times of the segments; a row without segments has none to write.
            with_prompt: give the text that came before. It is cut at its beginning to half of the positions, and
                further to what the text leaves.
            time_scale: factor by which the clip is played faster; times are divided by it.

        Raises:
            TooLongError: if the text does not fit the model; it is never cut.
            LabelError: if a text holds a control token such as `<|en|>`, a segment lies outside the window, or the
                tokenizer does not know the language.
        """
        if not self.knows(row.language):
            raise MissingLanguageError(f"the tokenizer has no token <|{row.language}|>")
        is_timed = with_timestamps and (bool(row.segments) or row.open_start_s is not None or row.no_speech)
        prefix = self.prefix_ids(row.language, row.task, timestamps=is_timed)
        if row.no_speech:
            given, said = self._no_speech_ids(prefix, is_timed)
        else:
            text = self._timed_ids(row, time_scale) if is_timed else self._text_ids(row.text, _written_language(row))
            given, said = [*prefix, *text], [*prefix[1:], *text, self.end_id]
        if len(given) > self.max_positions:
            raise TooLongError(f"{len(given)} label positions, the model has {self.max_positions}")
        prompt = (
            self._prompt_ids(row.prompt, _written_language(row), room=self.max_positions - len(given))
            if with_prompt
            else []
        )
        assert max(*prompt, *given, *said) < self.vocabulary_size, "checked against the tokenizer when it was opened"
        return Labels((*prompt, *given), (*[IGNORE_INDEX] * len(prompt), *said))

    def verify(self, row: Row) -> None:
        """Make sure that `build` will take a row in every mode; rows that surely fit are not tokenized.

        Raises:
            LabelError: as `build`.
        """
        if not self.fits_surely(row):
            self.build(row)
            if row.segments or row.open_start_s is not None:
                self.build(row, with_timestamps=True)

    def fits_surely(self, row: Row) -> bool:
        """Tell at little cost that `build` will take a row in every mode; False says nothing."""
        if not self._is_byte_level or not self.knows(row.language):
            return False
        texts = [segment.text for segment in row.segments]
        if any(self._control_token.search(text) for text in (row.prompt, row.text, *texts)):
            return False
        origin_s = row.offset_s or 0.0
        times = [time_s for segment in row.segments for time_s in (segment.start_s, segment.end_s)]
        times += [row.open_start_s] if row.open_start_s is not None else []
        if not all(0 <= _steps(time_s - origin_s) <= _steps(MAX_TIMESTAMP_S) for time_s in times):
            return False
        is_short = len(row.text.encode()) <= self.max_sure_bytes
        return is_short and PREFIX_LENGTH - 1 + _num_bytes(texts) + len(times) <= self.max_positions

    def fits_window(self, texts: Sequence[str]) -> bool:
        """Tell whether segments with these texts fit into one window, with their times and the start of one more."""
        left = self.max_positions - PREFIX_LENGTH - 2 * len(texts)
        if self._is_byte_level and _num_bytes(texts) <= left:
            return True
        return sum(len(self._tokenize(text.strip())) for text in texts) <= left

    def count_tokens(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each text, without special ones, (num_texts,) int64."""
        if not texts:
            return np.zeros(0, dtype=np.int64)
        ids = self.tokenizer([f" {text}" for text in texts], add_special_tokens=False, return_attention_mask=False)
        return np.fromiter(map(len, ids["input_ids"]), dtype=np.int64, count=len(texts))

    @cached_property
    def _is_byte_level(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return (
            backend is not None
            and backend.normalizer is None  # one could lengthen a text
            and isinstance(backend.model, models.BPE)
            and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        )

    def _no_speech_ids(self, prefix: list[int], is_timed: bool) -> tuple[list[int], list[int]]:
        # `<|nospeech|>` is predicted where the language would be: there decoders read `no_speech_prob`. They give a
        # language and a task all the same, and what must follow those is no text; which language it is, is not learnt.
        given = [*prefix, self.timestamp_begin] if is_timed else prefix
        return given, [self.no_speech_id, *[IGNORE_INDEX] * (len(given) - 2), self.end_id]

    def _text_ids(self, text: str, written: str) -> list[int]:
        found = self._control_token.search(text)
        if found is not None:
            raise LabelError(f"the text holds the control token {found.group()}")
        # Whisper sets a space before the first word of languages that write spaces, as its training data did. Before
        # others a lone space would become a token, which stock decoders forbid at the beginning.
        return self._tokenize(text, space="" if written in LANGUAGES_WITHOUT_SPACES else " ")

    def _tokenize(self, text: str, *, space: str = " ") -> list[int]:
        ids = self.tokenizer(f"{space}{text}", add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids]

    def _prompt_ids(self, prompt: str, written: str, *, room: int) -> list[int]:
        ids = self._text_ids(prompt.strip(), written) if prompt else []
        keep = min(self.max_prompt_tokens, room - 1)
        return [self.previous_id, *ids[-keep:]] if ids and keep > 0 else []

    def _timed_ids(self, row: Row, time_scale: float) -> list[int]:
        ids: list[int] = []
        origin_s = row.offset_s or 0.0
        for segment in row.segments:
            ids.append(self._timestamp_id((segment.start_s - origin_s) / time_scale))
            ids += self._text_ids(segment.text.strip(), _written_language(row))
            ids.append(self._timestamp_id((segment.end_s - origin_s) / time_scale))
        if row.open_start_s is not None:
            ids.append(self._timestamp_id((row.open_start_s - origin_s) / time_scale))
        return ids

    def _timestamp_id(self, time_s: float) -> int:
        if not 0 <= _steps(time_s) <= _steps(MAX_TIMESTAMP_S):
            raise SegmentTimeError(f"a segment lies at {time_s:.2f} s, outside the clip's window of 30 s")
        return self.timestamp_begin + _steps(time_s)


def special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of a special token.

    Raises:
        ValueError: if the tokenizer does not have it; Whisper's unknown token is `<|endoftext|>`, a silent trap.
    """
    index = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(index, int) or tokenizer.convert_ids_to_tokens(index) != token:
        raise ValueError(f"the tokenizer has no token {token}; it is not Whisper's, or is one without that language")
    return index


def _written_language(row: Row) -> str:
    """Return the language of a row's text; a translation is English."""
    return row.language if row.task == "transcribe" else "en"


def _steps(time_s: float) -> int:
    return round(time_s / TIMESTAMP_STEP_S)


def _num_bytes(texts: Iterable[str]) -> int:
    """Bytes of the texts, each with the space before it."""
    return sum(len(text.encode()) + 1 for text in texts)
