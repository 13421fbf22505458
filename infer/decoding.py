"""From encoder windows to text: language, greedy or beam search, fallback to other temperatures, timestamps.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `S` encoder positions, `T` token positions, `D` width, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.labels import PREFIX_LENGTH, LabelBuilder
from data.languages import LANGUAGE_CODES
from infer.beam import beam_search
from infer.confidence import (
    compression_ratio,
    is_silence,
    needs_fallback,
    tail_repetitions,
    without_tail_repetitions,
)
from infer.decode_settings import DecodeSettings
from infer.decoded import Decoded, judged
from infer.decoder_steps import DecoderSteps
from infer.detection import likeliest_languages, no_speech_probs
from infer.encoder import WindowedWhisper, encode_windows
from infer.reading import TokenReader
from infer.search import Said, search, seeds_of
from infer.token_rules import TokenRules
from infer.word_times import POSITIONS_PER_S
from infer.words import WordAligner

__all__ = ["POSITIONS_PER_S", "DecodeSettings", "Decoded", "Decoder", "judged"]

MAX_TOKENS_PER_S, EXTRA_TOKENS = 50, 20  # spoken bytes a second stay below this in every script


@dataclass(frozen=True)
class _Start:
    """Where the rows of a batch begin to speak."""

    languages: list[str]
    detected: list[tuple[str, float]]
    no_speech_probs: list[float | None]
    prefix: Tensor
    """(B, T), padded on the left."""
    padding: Tensor | None
    """(B,) positions of padding; None if there are none."""
    limits: list[int]
    """Most tokens that may follow in each row."""
    steps: DecoderSteps
    logits: Tensor | None
    """(B, V) of the first token; None where the steps have not come so far, as for beams."""


class Decoder:
    """Decode batches of windows with one model."""

    def __init__(self, model: WindowedWhisper, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look up the ids of the languages that this model knows."""
        self.model = model
        self.tokenizer = tokenizer
        self.label_builder = LabelBuilder(tokenizer, max_positions=model.config.max_target_positions)
        self.reader = TokenReader(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.language_ids = {code: vocabulary[f"<|{code}|>"] for code in LANGUAGE_CODES if f"<|{code}|>" in vocabulary}
        self.timestamp_begin = self.reader.timestamp_begin
        older = vocabulary.get("<|nocaptions|>")  # as tokenizers before large-v3 call it
        self.no_speech_id: int | None = vocabulary.get("<|nospeech|>", older)

    @cached_property
    def _aligner(self) -> WordAligner:
        return WordAligner(self.model, self.tokenizer)

    @torch.inference_mode()
    def decode(
        self,
        input_features: Tensor | Sequence[Tensor],
        settings: DecodeSettings,
        *,
        languages: Sequence[str] | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
        num_frames: Sequence[int] | None = None,
    ) -> list[Decoded]:
        """Decode a batch of windows.

        The language is read off the first step of the search, which is taken in any case.

        Args:
            input_features: (B, M, F) on the model's device; or several, of unlike F, whose clips are counted through.
                They share every step of a plain greedy search; what needs more is done length by length.
            settings: how to decode.
            languages: language of each clip, in place of `settings.language`.
            prompts: tokens of the text before each clip, of which the last 223 are taken; an empty one is none. All
                languages must be given then.
            num_frames: mel frames of each window that hold sound, which no word is later than; None takes whole
                windows. Only times of words need it.

        Returns:
            One result a clip, in order.
        """
        groups = [input_features] if isinstance(input_features, Tensor) else list(input_features)
        if len(groups) > 1 and (prompts is not None or settings.num_beams > 1 or settings.temperature != (0.0,)):
            return self._one_by_one(groups, settings, languages, prompts, num_frames)
        num_clips = sum(map(len, groups))
        wanted = [settings.language] * num_clips if languages is None else list(languages)
        if len(wanted) != num_clips:
            raise ValueError(f"{len(wanted)} languages were given for {num_clips} clips")
        hidden = [encode_windows(self.model.model.encoder, group) for group in groups]
        start = self._start(hidden, settings, wanted, prompts)
        results: dict[int, Decoded] = {}
        rows = list(range(num_clips))
        for attempt, temperature in enumerate(settings.temperature):
            seeds = seeds_of(groups[0], rows, settings.seed, attempt) if temperature > 0 else []
            found = self._say(hidden, start, settings, rows, temperature, seeds)
            failed: list[int] = []
            for row, said in zip(rows, found, strict=True):
                results[row] = self._read(said, start, row, temperature)
                failed += [row] if self._fails(results[row], settings) else []
            rows = failed
            if not rows:
                break
        windows_s = [part.shape[1] / POSITIONS_PER_S for part in hidden for _ in part]
        ended = [self._finish(results[row], settings, window_s) for row, window_s in enumerate(windows_s)]
        return self._aligner.add_words(ended, hidden, settings.task, num_frames) if settings.word_times else ended

    def _one_by_one(
        self,
        groups: Sequence[Tensor],
        settings: DecodeSettings,
        languages: Sequence[str] | None,
        prompts: Sequence[Sequence[int]] | None,
        num_frames: Sequence[int] | None,
    ) -> list[Decoded]:
        """Decode windows of several lengths, one length after the other."""
        results: list[Decoded] = []
        for group in groups:
            part = slice(len(results), len(results) + len(group))
            results += self.decode(
                group,
                settings,
                languages=None if languages is None else languages[part],
                prompts=None if prompts is None else prompts[part],
                num_frames=None if num_frames is None else num_frames[part],
            )
        return results

    @torch.inference_mode()
    def detect_languages(self, hidden: Tensor) -> list[tuple[str, float]]:
        """Return the likeliest language of each window and its probability among all languages.

        Args:
            hidden: (B, S, D) from the encoder, also from that of another runtime.
        """
        steps = DecoderSteps(self.model, hidden, room=1, padding=None)
        first = torch.full((hidden.shape[0], 1), self.label_builder.start_id, device=hidden.device)
        return likeliest_languages(steps.logits(steps.advance(first)[:, -1]).float(), self.language_ids)

    def _start(
        self,
        hidden: Sequence[Tensor],
        settings: DecodeSettings,
        wanted: Sequence[str],
        prompts: Sequence[Sequence[int]] | None,
    ) -> _Start:
        """Give the prefix, and read off its first step what is spoken, and whether anything is."""
        builder, device = self.label_builder, hidden[0].device
        is_beam = settings.num_beams > 1
        prompt_ids = [[]] * len(wanted) if prompts is None else [self._prompt_ids(prompt) for prompt in prompts]
        prefix_length = PREFIX_LENGTH - settings.timestamps
        widest = max(map(len, prompt_ids))
        padding = None if prompts is None else torch.tensor([widest - len(ids) for ids in prompt_ids], device=device)
        # Where there are prompts, a row has the room that the longest would leave it, whatever stands beside it.
        room = builder.max_positions - prefix_length - (0 if prompts is None else builder.max_prompt_tokens + 1)
        limits = [
            min(settings.max_new_tokens or EXTRA_TOKENS + part.shape[1] * MAX_TOKENS_PER_S // POSITIONS_PER_S, room)
            for part in hidden
            for _ in part
        ]
        steps = DecoderSteps(self.model, hidden, room=widest + prefix_length + max(limits), padding=padding)
        languages, detected = list(wanted), [(code, math.nan) for code in wanted]
        no_speech: list[float | None] = [None] * len(wanted)
        logits: Tensor | None = None
        if prompts is None and (settings.detect_language or "auto" in wanted):
            first = torch.full((len(wanted), 1), builder.start_id, device=device)
            logits = steps.logits(steps.advance(first)[:, -1]).float()
            detected = likeliest_languages(logits, self.language_ids)
            no_speech = no_speech_probs(logits, self.no_speech_id)
            languages = [code if want == "auto" else want for want, (code, _) in zip(wanted, detected, strict=True)]
        if "auto" in languages:
            raise ValueError("prompts need a language each; detect it in the first window")
        ids = [
            [
                *[builder.end_id] * (widest - len(prompt)),
                *prompt,
                *builder.prefix_ids(code, settings.task, timestamps=settings.timestamps),
            ]
            for prompt, code in zip(prompt_ids, languages, strict=True)
        ]
        prefix = torch.tensor(ids, device=device)
        if is_beam and settings.temperature[0] == 0 and (logits is not None or settings.no_speech_threshold is None):
            return _Start(languages, detected, no_speech, prefix, padding, limits, steps, None)
        heard = steps.advance(prefix[:, steps.length :])
        if logits is None and settings.no_speech_threshold is not None:
            no_speech = no_speech_probs(steps.logits(heard[:, widest]).float(), self.no_speech_id)
        logits = steps.logits(heard[:, -1])
        return _Start(languages, detected, no_speech, prefix, padding, limits, steps, logits)

    def _prompt_ids(self, prompt: Sequence[int]) -> list[int]:
        ids = list(prompt)[-self.label_builder.max_prompt_tokens :]
        return [self.label_builder.previous_id, *ids] if ids else []

    def _say(
        self,
        hidden: Sequence[Tensor],
        start: _Start,
        settings: DecodeSettings,
        rows: Sequence[int],
        temperature: float,
        seeds: Sequence[int],
    ) -> list[Said]:
        """Search once: with beams or the likeliest token at temperature 0, by drawing above it."""
        builder = self.label_builder
        index = torch.tensor(rows, device=hidden[0].device)
        prefix = start.prefix[index]
        padding = None if start.padding is None else start.padding[index]
        if temperature == 0 and settings.num_beams > 1:
            return beam_search(
                self.model,
                hidden[0],
                prefix,
                num_beams=settings.num_beams,
                limit=start.limits[0],
                end_id=builder.end_id,
                no_timestamps_id=builder.no_timestamps_id,
                timestamps=settings.timestamps,
                padding=padding,
            )
        steps, logits = start.steps, start.logits
        if logits is None or temperature != settings.temperature[0]:  # what the first search has used up
            room = prefix.shape[1] + max(start.limits)
            steps = DecoderSteps(self.model, hidden[0][index], room=room, padding=padding)
            logits = steps.logits(steps.advance(prefix)[:, -1])
        config = self.model.generation_config
        rules = TokenRules(
            suppressed=config.suppress_tokens or (),
            suppressed_first=config.begin_suppress_tokens or (),
            end_id=builder.end_id,
            no_timestamps_id=builder.no_timestamps_id,
            timestamps=settings.timestamps,
            device=index.device,
        )
        limits = [start.limits[row] for row in rows]
        return search(steps, logits, rules, end_id=builder.end_id, limit=limits, temperature=temperature, seeds=seeds)

    def _read(self, said: Said, start: _Start, row: int, temperature: float) -> Decoded:
        text = self.reader.text(said.tokens)
        code, probability = start.detected[row]
        return Decoded(
            text=text,
            language=start.languages[row],
            detected_language=code,
            language_probability=probability,
            segments=(),
            is_cut=said.is_cut,
            tokens=said.tokens,
            avg_logprob=said.avg_logprob,
            no_speech_prob=start.no_speech_probs[row],
            compression_ratio=compression_ratio(text),
            temperature=temperature,
        )

    def _fails(self, decoded: Decoded, settings: DecodeSettings) -> bool:
        return needs_fallback(
            settings,
            ratio=decoded.compression_ratio,
            avg_logprob=decoded.avg_logprob,
            no_speech_prob=decoded.no_speech_prob or 0.0,
            repetitions=tail_repetitions(self.reader.words(decoded.tokens))[1] if settings.max_repetitions else 0,
        )

    def _finish(self, decoded: Decoded, settings: DecodeSettings, window_s: float) -> Decoded:
        """Take silence for what it is, cut a loop that no temperature broke, and read the times."""
        tokens = decoded.tokens
        if is_silence(settings, no_speech_prob=decoded.no_speech_prob or 0.0, avg_logprob=decoded.avg_logprob):
            return replace(decoded, text="", tokens=(), no_speech=True)
        if settings.max_repetitions is not None:
            words = self.reader.words(tokens)
            num_kept = len(without_tail_repetitions(words, settings.max_repetitions))
            tokens = self.reader.without_last_words(tokens, len(words) - num_kept)
        text = decoded.text if tokens == decoded.tokens else self.reader.text(tokens)
        segments = self.reader.segments(tokens, window_s) if settings.timestamps else ()
        return replace(decoded, text=text, tokens=tokens, segments=tuple(judged(s, decoded) for s in segments))
