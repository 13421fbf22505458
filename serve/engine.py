"""What the page, the API and the live route ask: audio in, text out, many people at once.

One process answers people; audio is decoded in others (`audio_pool`), and models run in others again (`model_worker`),
so that a crash in native code, of a codec or of a kernel, takes down neither the service nor what waits in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from data.audio import MIN_DURATION_S, SAMPLING_RATE, Waveform
from data.features import MAX_WINDOW_S
from infer.decoding import Decoded, DecodeSettings
from infer.longform import cut_at_quiet
from infer.transcript import Transcript, join_pieces
from serve.admission import Admission
from serve.audio_pool import AudioPool
from serve.errors import ServiceError
from serve.metrics import Metrics
from serve.model_worker import ModelNursery
from serve.options import Options, Progress, progress_of, resolve, verify_profiles
from serve.served_model import ModelSpec, ServedModel
from serve.settings import ServeSettings
from serve.window_queue import Recording

__all__ = ["Engine", "ModelSpec", "Options", "Progress"]

DRAIN_LOOK_S = 0.05

logger = logging.getLogger(__name__)


class Engine:
    """Decodes files, cuts them into windows, batches the windows of all callers, and joins their texts."""

    sampling_rate = SAMPLING_RATE

    def __init__(
        self,
        models: Sequence[ModelSpec],
        settings: ServeSettings | None = None,
        *,
        profiles: Mapping[str, DecodeSettings] | None = None,
    ) -> None:
        """Remember what to serve; `start` loads it.

        Args:
            models: the first is the default.
            settings: limits and batching.
            profiles: ways to decode by name; the first is the default.
        """
        self.settings = settings or ServeSettings()
        self.metrics = Metrics()
        self.admission = Admission(self.settings, self.metrics)
        given = dict(profiles or {"greedy": DecodeSettings()})
        verify_profiles(given)
        if not models or len({spec.name for spec in models}) != len(models):
            raise ValueError(f"models {[spec.name for spec in models]} need names of their own, and one at least")
        self._nursery = ModelNursery()
        self._models = {
            spec.name: ServedModel(
                spec, self.settings, given, self._nursery, self.metrics, num_expected=lambda: self.admission.num_taken
            )
            for spec in models
        }
        self._default = models[0].name
        self._profiles = given
        self._audio = AudioPool(self.settings)
        self._started_s = time.monotonic()

    @property
    def state(self) -> str:
        """`starting`, `ready`, `draining` or `stopped`."""
        return self.admission.state

    async def start(self) -> None:
        """Load the models, test them and warm them up.

        Raises:
            RuntimeError: if a model cannot be loaded, or fails its self-test.
        """
        await self._audio.start()
        self._nursery.begin()
        try:
            for model in self._models.values():
                await model.start()
        except BaseException:
            await self._end()
            raise
        self._started_s = time.monotonic()
        self.admission.state = "ready"

    async def stop(self) -> None:
        """Take no more requests, let those in flight end for `drain_s`, and end all processes."""
        self.drain()
        end_s = time.monotonic() + self.settings.drain_s
        while self.admission.num_taken and time.monotonic() < end_s:
            await asyncio.sleep(DRAIN_LOOK_S)
        if self.admission.num_taken:
            logger.warning("%d requests did not end within %g s", self.admission.num_taken, self.settings.drain_s)
        await self._end()

    def drain(self) -> None:
        """Take no more requests; those in flight go on."""
        if self.state != "stopped":
            self.admission.state = "draining"

    async def _end(self) -> None:
        for model in self._models.values():
            await model.stop()
        self._nursery.end()
        await self._audio.stop()
        self.admission.state = "stopped"

    async def transcribe(
        self,
        source: Path | Waveform,
        options: Options | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        has_place: bool = False,
    ) -> Transcript:
        """Return what a recording says.

        Cancelling the task frees its place at once; windows that a batch already holds end unheard.

        Args:
            source: a file, which is only read, or (num_samples,) float32 at `sampling_rate`.
            options: what is asked for.
            on_progress: called in the event loop after each window.
            has_place: the caller holds one, of `admission.place`.

        Raises:
            ServiceError: 400 for audio or options that cannot be used, 429 if all places are taken, 503 while the
                service ends or starts.
        """
        options = options or Options()
        model, settings = self._resolve(options)
        with nullcontext() if has_place else self.admission.place():
            waveform = await self._audio.decode(source) if isinstance(source, Path) else _verified(source)
            duration_s = len(waveform) / SAMPLING_RATE
            if duration_s > self.settings.max_duration_s:
                raise ServiceError(
                    f"the recording is longer than {self.settings.max_duration_s:g} s; cut it into parts",
                    status=400,
                    code="audio_too_long",
                    param="file",
                )
            with self.admission.audio(duration_s):
                pieces = [(0.0, waveform)]
                if duration_s > settings.piece_s:
                    pieces = await asyncio.to_thread(cut_at_quiet, waveform, max_duration_s=settings.piece_s)
                decoded = await self._decode(model, settings, options, [part for _, part in pieces], on_progress)
        parts = [
            (start_s, start_s + len(part) / SAMPLING_RATE, found)
            for (start_s, part), found in zip(pieces, decoded, strict=True)
        ]
        self.metrics.audio_s.inc(duration_s)
        transcript = join_pieces(parts, duration_s)
        if self.settings.log_text:
            logger.info("%.1f s, %s: %s", duration_s, transcript.language, transcript.text)
        return transcript

    async def transcribe_window(self, waveform: Waveform, options: Options | None = None) -> Decoded:
        """Return what one window of at most 30 s says, before windows of recordings: for people who are speaking now.

        Args:
            waveform: (num_samples,) float32 at `sampling_rate`.
            options: what is asked for.

        Raises:
            ServiceError: as `transcribe`; there is no 429, since `serve.max_streams` limits who may ask.
        """
        options = options or Options()
        model, settings = self._resolve(options)
        waveform = _verified(waveform)
        if len(waveform) > MAX_WINDOW_S * SAMPLING_RATE:
            raise ServiceError(f"a window is at most {MAX_WINDOW_S} s", status=400, code="audio_too_long")
        return (await self._decode(model, settings, options, [waveform], None, is_live=True))[0]

    async def _decode(
        self,
        model: ServedModel,
        settings: DecodeSettings,
        options: Options,
        waveforms: list[Waveform],
        on_progress: Callable[[Progress], None] | None,
        *,
        is_live: bool = False,
    ) -> list[Decoded]:
        language = options.language
        if options.prompt and language == "auto":  # a prompt stands before the place where the language is read off
            first = replace(settings, max_new_tokens=1, temperature=(0.0,), timestamps=False, word_times=False)
            heard = Recording(first, "auto", None, is_live, asyncio.get_running_loop().create_future())
            language = (await model.decode(heard, waveforms[:1]))[0].language
        recording = Recording(
            settings, language, options.prompt or None, is_live, asyncio.get_running_loop().create_future()
        )
        if on_progress is not None:
            recording.on_window = lambda results: on_progress(progress_of(results))
        return await model.decode(recording, waveforms)

    def verify(self, options: Options) -> None:
        """Check options without any audio.

        Raises:
            ServiceError: 400 for those that cannot be used, 404 for a model that is not served.
        """
        self._resolve(options)

    def _resolve(self, options: Options) -> tuple[ServedModel, DecodeSettings]:
        model = self._model(options.model)
        return model, resolve(options, model.facts, self._profiles)

    def _model(self, name: str) -> ServedModel:
        found = self._models.get(name or self._default)
        if found is None:
            raise ServiceError(
                f"model {name!r} is none of {', '.join(self._models)}",
                status=404,
                code="model_not_found",
                param="model",
            )
        return found

    def models(self) -> list[str]:
        """Return the names of the models, the default first."""
        return list(self._models)

    def languages(self, model: str = "") -> list[tuple[str, str]]:
        """Return (ISO code, English name) of the languages that a model knows, by name."""
        codes = self._model(model).facts.languages
        return sorted(((code, LANGUAGES[code].title()) for code in codes), key=lambda pair: pair[1])

    def profiles(self, model: str = "") -> list[str]:
        """Return the names of the ways to decode that a model's runtime offers, the default first."""
        return list(self._model(model).facts.profiles)

    def has_timestamps(self, model: str = "") -> bool:
        """Whether a model was trained to predict times."""
        return self._model(model).facts.has_timestamps

    def has_words(self, model: str = "") -> bool:
        """Whether a model's runtime finds times of words."""
        return self._model(model).facts.has_words

    def describe(self, model: str = "") -> dict[str, Any]:
        """Return what stands beside every text: hash, stored, compute, device, runtime, windows."""
        return dict(self._model(model).facts.description)

    def status(self) -> dict[str, Any]:
        """Return `state` (`starting`, `ready`, `draining`), queue, workers and uptime, for `/health`."""
        return {
            "state": self.state,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "queue": {
                "recordings": self.admission.num_taken,
                "max_recordings": self.settings.max_queue,
                "windows": sum(model.queue.num_waiting for model in self._models.values()),
                "audio_s": round(self.admission.audio_s, 1),
            },
            "models": {name: model.status() for name, model in self._models.items()},
        }

    def process_ids(self) -> list[int]:
        """Return the numbers of the model processes that are up."""
        return [number for model in self._models.values() for number in model.process_ids()]


def _verified(waveform: Waveform) -> Waveform:
    found = np.ascontiguousarray(waveform, dtype=np.float32)
    if found.ndim != 1 or len(found) < MIN_DURATION_S * SAMPLING_RATE:
        raise ServiceError(
            f"the recording is shorter than {MIN_DURATION_S:g} s", status=400, code="audio_too_short", param="file"
        )
    if not np.isfinite(found).all():
        raise ServiceError("the recording holds samples that are no numbers", status=400, code="audio_invalid")
    return found
