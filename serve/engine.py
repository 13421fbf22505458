"""What the page, the API and the live route ask: audio in, text out, many people at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.audio import SAMPLING_RATE, Waveform
from infer.decoding import Decoded, DecodeSettings
from infer.transcript import Transcript
from serve.settings import ServeSettings


@dataclass(frozen=True)
class ModelSpec:
    """A model to serve."""

    name: str
    """As callers say it, such as `demo`; also as the API's `model`."""
    path: Path
    """Of the artefact."""
    runtime: str = "torch"
    """`torch`, `ctranslate2` or `onnx`."""
    compute: str = "auto"
    """`auto`, `fp16`, `bf16` or `fp32`."""
    reason: str = ""
    """Why it computes so, where it was not asked for."""


@dataclass(frozen=True)
class Options:
    """What a caller asks for."""

    model: str = ""
    """Name of a model; empty takes the first."""
    language: str = "auto"
    """ISO code, or `auto`."""
    task: str = "transcribe"
    profile: str = "greedy"
    """Name of a decode profile."""
    timestamps: bool = False
    """Predict times of segments; only where `Engine.has_timestamps` says that the model can."""
    temperature: float | None = None
    """In place of the profile's; above 0 tokens are drawn."""
    prompt: str | None = None
    """Text that came before."""


@dataclass(frozen=True)
class Progress:
    """How far a recording is."""

    num_done: int
    """Windows that are decoded."""
    num_windows: int
    text: str
    """Of the recording's beginning, up to the first window that is not decoded yet."""


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

    async def start(self) -> None:
        """Load the models, test them and warm them up.

        Raises:
            RuntimeError: if a model cannot be loaded, or fails its self-test.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """Take no more requests, let those in flight end for `drain_s`, and end all processes."""
        raise NotImplementedError

    async def transcribe(
        self,
        source: Path | Waveform,
        options: Options | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Transcript:
        """Return what a recording says.

        Cancelling the task frees its place at once; windows that a batch already holds end unheard.

        Args:
            source: a file, which is only read, or (num_samples,) float32 at `sampling_rate`.
            options: what is asked for.
            on_progress: called in the event loop after each window.

        Raises:
            ServiceError: 400 for audio or options that cannot be used, 429 if all places are taken, 503 while the
                service ends or starts.
        """
        raise NotImplementedError

    async def transcribe_window(self, waveform: Waveform, options: Options | None = None) -> Decoded:
        """Return what one window of at most 30 s says, before windows of recordings: for people who are speaking now.

        Args:
            waveform: (num_samples,) float32 at `sampling_rate`.
            options: what is asked for.

        Raises:
            ServiceError: as `transcribe`; there is no 429, since `serve.max_streams` limits who may ask.
        """
        raise NotImplementedError

    def models(self) -> list[str]:
        """Return the names of the models, the default first."""
        raise NotImplementedError

    def languages(self, model: str = "") -> list[tuple[str, str]]:
        """Return (ISO code, English name) of the languages that a model knows, by name."""
        raise NotImplementedError

    def profiles(self, model: str = "") -> list[str]:
        """Return the names of the ways to decode that a model's runtime offers, the default first."""
        raise NotImplementedError

    def has_timestamps(self, model: str = "") -> bool:
        """Whether a model was trained to predict times."""
        raise NotImplementedError

    def describe(self, model: str = "") -> dict[str, Any]:
        """Return what stands beside every text: hash, stored, compute, device, runtime, windows."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """Return `state` (`starting`, `ready`, `draining`), queue, workers and uptime, for `/health`."""
        raise NotImplementedError
