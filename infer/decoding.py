"""From encoder windows to text: language, greedy or beam search, timestamps, through transformers' `generate`.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `T` token positions, `V` vocabulary.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

from data.labels import LabelBuilder, special_id
from data.languages import LANGUAGE_CODES, TASKS, verify_language
from infer.encoder import WindowedWhisper, encode
from infer.subtitles import Segment

TIMESTAMP_TOKEN = re.compile(r"<\|(\d+\.\d\d)\|>")
POSITIONS_PER_S = 50  # of the encoder
MAX_TOKENS_PER_S, EXTRA_TOKENS = 50, 20  # spoken bytes a second stay below this in every script
MAX_INITIAL_TIMESTAMP = 50  # steps of 0.02 s; a first word later than 1 s after the window's start is not believed


@dataclass(frozen=True)
class DecodeSettings:
    """How text is read off the model; stands beside every number that comes from it."""

    name: str = "greedy"
    language: str = "auto"
    """An ISO code, or `auto`: detected for each clip."""
    task: str = "transcribe"
    num_beams: int = 1
    max_new_tokens: int | None = None
    """None allows 50 a second of window: no language is spoken faster, and a model that loops ends early."""
    timestamps: bool = False
    """Predict segment times; only for models that were trained with them."""

    def __post_init__(self) -> None:
        if self.language != "auto":
            verify_language(self.language)
        if self.task not in TASKS:
            raise ValueError(f"decoding.task={self.task!r} must be one of {', '.join(TASKS)}")
        if self.num_beams < 1:
            raise ValueError(f"decoding.num_beams={self.num_beams} must be 1 (greedy) or more")


@dataclass(frozen=True)
class Decoded:
    """What one window says."""

    text: str
    language: str
    """Language that the text was decoded in."""
    detected_language: str
    language_probability: float
    """Of `detected_language`, among all languages of the model."""
    segments: tuple[Segment, ...]
    """Timed parts; empty without timestamps."""
    is_cut: bool
    """True if the token limit was reached before the end of the text."""


class Decoder:
    """Decode batches of windows with one model."""

    def __init__(self, model: WindowedWhisper, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look up the ids of the languages that this model knows."""
        self.model = model
        self.tokenizer = tokenizer
        self.label_builder = LabelBuilder(tokenizer, max_positions=model.config.max_target_positions)
        vocabulary = tokenizer.get_vocab()
        self.language_ids = {code: vocabulary[f"<|{code}|>"] for code in LANGUAGE_CODES if f"<|{code}|>" in vocabulary}
        self.timestamp_begin = special_id(tokenizer, "<|0.00|>")

    @torch.inference_mode()
    def decode(
        self, input_features: Tensor, settings: DecodeSettings, *, languages: Sequence[str] | None = None
    ) -> list[Decoded]:
        """Decode a batch of windows.

        The language is always detected, too, since one decoder step costs little and the detection is scored.

        Args:
            input_features: (B, M, F) on the model's device.
            settings: how to decode.
            languages: language of each clip, in place of `settings.language`.

        Returns:
            One result a clip, in order.
        """
        hidden = encode(self.model.model.encoder, input_features)
        codes, probabilities = self._detect(hidden)
        wanted = [settings.language] * len(codes) if languages is None else list(languages)
        chosen = [code if want == "auto" else want for want, code in zip(wanted, codes, strict=True)]
        prefix = torch.tensor(
            [self.label_builder.prefix_ids(code, settings.task, timestamps=settings.timestamps) for code in chosen],
            device=hidden.device,
        )
        tokens = self._generate(hidden, prefix, settings)
        return [
            self._read(
                tokens[i],
                language=chosen[i],
                detected=codes[i],
                probability=probabilities[i],
                window_s=hidden.shape[1] / POSITIONS_PER_S if settings.timestamps else None,
            )
            for i in range(len(codes))
        ]

    def _detect(self, hidden: Tensor) -> tuple[list[str], list[float]]:
        start = torch.full((hidden.shape[0], 1), self.label_builder.start_id, device=hidden.device)
        logits = self.model(
            decoder_input_ids=start,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            use_cache=False,
        ).logits[:, -1]
        ids = torch.tensor(list(self.language_ids.values()), device=hidden.device)
        probabilities, best = logits[:, ids].float().softmax(-1).max(-1)
        codes = list(self.language_ids)
        return [codes[i] for i in best.tolist()], probabilities.tolist()

    def _generate(self, hidden: Tensor, prefix: Tensor, settings: DecodeSettings) -> Tensor:
        room = self.model.config.max_target_positions - prefix.shape[1]
        config = _generation_config(self.model.generation_config)
        limit = settings.max_new_tokens or EXTRA_TOKENS + hidden.shape[1] * MAX_TOKENS_PER_S // POSITIONS_PER_S
        config.num_beams = settings.num_beams
        config.max_length = prefix.shape[1] + min(limit, room)
        # The generate of Whisper pads every window to 30 s again; the one below it does not.
        ids: Tensor = GenerationMixin.generate(
            self.model,
            generation_config=config,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device),
            decoder_input_ids=prefix,
            logits_processor=self._processors(prefix.shape[1], timestamps=settings.timestamps),
        )
        return ids[:, prefix.shape[1] :]

    def _processors(self, begin_index: int, *, timestamps: bool) -> LogitsProcessorList:
        config = self.model.generation_config
        device = self.model.device
        processors = LogitsProcessorList()
        if config.suppress_tokens:
            processors.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
        if config.begin_suppress_tokens:
            processors.append(
                SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin_index, device=device)
            )
        if timestamps:
            timed = copy.deepcopy(config)
            timed.no_timestamps_token_id = self.label_builder.no_timestamps_id
            timed.max_initial_timestamp_index = MAX_INITIAL_TIMESTAMP
            processors.append(WhisperTimeStampLogitsProcessor(timed, begin_index=begin_index))
        return processors

    def _read(
        self, tokens: Tensor, *, language: str, detected: str, probability: float, window_s: float | None
    ) -> Decoded:
        ids = [int(i) for i in tokens.tolist()]
        is_cut = self.label_builder.end_id not in ids
        ids = ids if is_cut else ids[: ids.index(self.label_builder.end_id)]
        text = self.tokenizer.decode([i for i in ids if i < self.timestamp_begin], skip_special_tokens=True)
        segments = () if window_s is None else self._segments(ids, window_s)
        return Decoded(text.strip(), language, detected, probability, segments, is_cut)

    def _segments(self, ids: Sequence[int], window_s: float) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        start_s: float | None = None
        words: list[int] = []
        for i in ids:
            if i < self.timestamp_begin:
                words.append(i)
                continue
            time_s = (i - self.timestamp_begin) * 0.02
            if start_s is not None and words:
                text = self.tokenizer.decode(words, skip_special_tokens=True).strip()
                segments.append(Segment(start_s, time_s, text))
                words = []
            start_s = time_s
        if start_s is not None and words:  # cut before its closing timestamp; what was said must still stand somewhere
            text = self.tokenizer.decode(words, skip_special_tokens=True).strip()
            segments.append(Segment(start_s, max(start_s, window_s), text))
        return tuple(segments)


def _generation_config(base: GenerationConfig | None) -> GenerationConfig:
    """Keep the ids, drop what would steer the search twice: we give prefix and processors ourselves."""
    config = GenerationConfig()
    if base is not None:
        config.eos_token_id = base.eos_token_id
        config.pad_token_id = base.pad_token_id
        config.bos_token_id = base.bos_token_id
        config.decoder_start_token_id = base.decoder_start_token_id
    config.do_sample = False
    config.use_cache = True
    return config
