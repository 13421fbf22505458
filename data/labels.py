"""The label tokens of a row: which ids the decoder is given, and which it must say.

    <|startofprev|> prompt <|startoftranscript|> <|language|> <|task|> <|notimestamps|> text <|endoftext|>

The start token is given once and never predicted; the language token is predicted, so that detection stays trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from data.manifest import Row
from data.reasons import Reason

IGNORE_INDEX = -100  # no loss where a label has this value; torch's own default
TIMESTAMP_STEP_S = 0.02
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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_positions: int, timestamps: bool = False) -> None:
        """Look up the special ids by name.

        Args:
            tokenizer: a Whisper tokenizer.
            max_positions: `max_target_positions` of the model, 448 for every published Whisper.
            timestamps: write the times of rows that carry segments as timestamp tokens.

        Raises:
            ValueError: if the tokenizer lacks one of Whisper's special tokens.
        """
        self.tokenizer = tokenizer
        self.max_positions = max_positions
        self.timestamps = timestamps
        self.start_id = special_id(tokenizer, "<|startoftranscript|>")
        self.end_id = special_id(tokenizer, "<|endoftext|>")
        self.previous_id = special_id(tokenizer, "<|startofprev|>")
        self.no_timestamps_id = special_id(tokenizer, "<|notimestamps|>")
        self._special_tokens = frozenset(str(token) for token in tokenizer.get_added_vocab())

    def prefix_ids(self, language: str, task: str, *, timestamps: bool = False) -> list[int]:
        """Return `<|startoftranscript|>`, language, task and, without timestamps, `<|notimestamps|>`."""
        ids = [
            self.start_id,
            special_id(self.tokenizer, f"<|{language}|>"),
            special_id(self.tokenizer, f"<|{task}|>"),
        ]
        return ids if timestamps else [*ids, self.no_timestamps_id]

    def build(self, row: Row) -> Labels:
        """Return the tokens of a row.

        Raises:
            TooLongError: if they do not fit the model; they are never cut.
            LabelError: if the text holds a control token such as `<|en|>`, a segment lies outside the window, or the
                tokenizer does not know the language.
        """
        if f"<|{row.language}|>" not in self._special_tokens:
            raise MissingLanguageError(f"the tokenizer has no token <|{row.language}|>")
        with_times = self.timestamps and bool(row.segments)
        prefix = self.prefix_ids(row.language, row.task, timestamps=with_times)
        prompt = self._prompt_ids(row.prompt)
        text = self._timed_ids(row) if with_times else self._text_ids(row.text)
        ids = [*prompt, *prefix, *text, self.end_id]
        if len(ids) - 1 > self.max_positions:
            raise TooLongError(f"{len(ids) - 1} label positions, the model has {self.max_positions}")
        labels = ids[1:]
        labels[: len(prompt)] = [IGNORE_INDEX] * len(prompt)
        return Labels(tuple(ids[:-1]), tuple(labels))

    def _text_ids(self, text: str) -> list[int]:
        found = next((token for token in self._special_tokens if token in text), None)
        if found is not None:
            raise LabelError(f"the text holds the control token {found}")
        # Whisper writes a space before the first word in every language, as its own training data did.
        ids = self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids]

    def _prompt_ids(self, prompt: str) -> list[int]:
        if not prompt:
            return []
        keep = int(self.max_positions * MAX_PROMPT_SHARE) - 1
        return [self.previous_id, *self._text_ids(prompt.strip())[-keep:]]

    def _timed_ids(self, row: Row) -> list[int]:
        ids: list[int] = []
        origin_s = row.offset_s or 0.0
        for segment in row.segments:
            ids.append(self._timestamp_id(segment.start_s - origin_s))
            ids += self._text_ids(segment.text.strip())
            ids.append(self._timestamp_id(segment.end_s - origin_s))
        return ids

    def _timestamp_id(self, time_s: float) -> int:
        steps = round(time_s / TIMESTAMP_STEP_S)
        if not 0 <= steps * TIMESTAMP_STEP_S <= 30:
            raise SegmentTimeError(f"a segment lies at {time_s:.2f} s, outside the clip's window of 30 s")
        return special_id(self.tokenizer, f"<|{steps * TIMESTAMP_STEP_S:.2f}|>")


def special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of a special token.

    Raises:
        ValueError: if the tokenizer does not have it; Whisper's unknown token is `<|endoftext|>`, a silent trap.
    """
    index = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(index, int) or tokenizer.convert_ids_to_tokens(index) != token:
        raise ValueError(f"the tokenizer has no token {token}; it is not Whisper's, or is one without that language")
    return index
