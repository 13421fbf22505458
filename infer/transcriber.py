"""Audio in, text out, through an artefact: the path of evaluation, of the command line and of the service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.audio import SAMPLING_RATE, Waveform, load_waveform
from data.features import LogMel
from data.rows import StoredAudio, encoded
from data.texts import join_texts
from data.windows import Windows
from infer.artefact import Artefact
from infer.decoding import Decoded, Decoder, DecodeSettings
from infer.longform import cut_at_quiet
from infer.subtitles import Segment


@dataclass(frozen=True)
class Clip:
    """What to transcribe: a file, or a part of one."""

    audio: Path | StoredAudio
    """A file, or a clip inside an archive."""
    offset_s: float | None = None
    duration_s: float | None = None


@dataclass(frozen=True)
class Transcript:
    """What a recording says."""

    text: str
    language: str
    """ISO code; of the first piece, where a recording was cut into several."""
    detected_language: str
    language_probability: float
    duration_s: float
    segments: tuple[Segment, ...]
    is_cut: bool
    """True if decoding reached the token limit somewhere; the text may then lack its end."""


class RuntimeArtefact(Protocol):
    """What is asked of an artefact that another runtime loaded."""

    @property
    def windows(self) -> Windows:
        """Rule that the model was trained with."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With Whisper's special tokens."""

    @property
    def model(self) -> Any:
        """Holds `config`, and the `device` and `dtype` that features are wanted in."""

    def describe(self) -> dict[str, Any]:
        """Return what stands beside every number."""


class WindowDecoder(Protocol):
    """Decodes batches of windows, in torch or in another runtime."""

    def decode(
        self, input_features: Tensor, settings: DecodeSettings, *, languages: Sequence[str] | None = None
    ) -> list[Decoded]:
        """Return what each window says, as `Decoder.decode` does."""


@dataclass(frozen=True)
class _Piece:
    source: int
    start_s: float
    waveform: Waveform
    num_frames: int


class Transcriber:
    """Transcribe files or waveforms in batches of one window edge each."""

    def __init__(
        self,
        artefact: Artefact | RuntimeArtefact,
        settings: DecodeSettings | None = None,
        *,
        batch_size: int = 16,
        decoder: WindowDecoder | None = None,
    ) -> None:
        """Remember the artefact and how to decode.

        Args:
            artefact: from `load_artefact`.
            settings: how to decode; greedy with language detection where none are given.
            batch_size: windows decoded together.
            decoder: of another runtime; None decodes in torch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more")
        self.artefact = artefact
        self.settings = settings or DecodeSettings()
        self.batch_size = batch_size
        self.log_mel = LogMel(artefact.model.config.num_mel_bins)
        self._decoder = decoder if decoder is not None else _torch_decoder(artefact)

    def transcribe(
        self,
        sources: Sequence[Path | Clip | Waveform],
        *,
        languages: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Transcript]:
        """Transcribe recordings of any length.

        Args:
            sources: files, parts of files, or waveforms (num_samples,) float32 at 16 kHz.
            languages: language of each, in place of the settings'.
            on_progress: called with the number of windows done after each batch.

        Returns:
            One transcript each, in order.

        Raises:
            AudioError: for the first source that cannot be used.
        """
        if isinstance(sources, str | Path):
            raise TypeError("transcribe takes a list of sources, not one path")
        if languages is not None and len(languages) != len(sources):
            raise ValueError(f"{len(languages)} languages were given for {len(sources)} sources")
        durations: list[float] = []
        pieces: list[_Piece] = []
        for source, waveform in enumerate(_load_all(sources)):
            durations.append(len(waveform) / SAMPLING_RATE)
            for start_s, part in cut_at_quiet(waveform):
                num_frames = self.artefact.windows.num_frames(len(part) / SAMPLING_RATE)
                pieces.append(_Piece(source, start_s, part, num_frames))
        decoded: dict[int, Decoded] = {}
        for batch in self._batches(pieces):
            wanted = None if languages is None else [languages[pieces[i].source] for i in batch]
            features = self.log_mel.batch(
                [pieces[i].waveform for i in batch], num_frames=pieces[batch[0]].num_frames
            ).to(self.artefact.model.device, self.artefact.model.dtype)
            results = self._decoder.decode(features, self.settings, languages=wanted)
            decoded.update(zip(batch, results, strict=True))
            if on_progress is not None:
                on_progress(len(batch))
        parts: list[list[tuple[_Piece, Decoded]]] = [[] for _ in durations]
        for i, piece in enumerate(pieces):
            parts[piece.source].append((piece, decoded[i]))
        return [_join(part, duration_s) for part, duration_s in zip(parts, durations, strict=True)]

    def _batches(self, pieces: Sequence[_Piece]) -> Iterator[list[int]]:
        # Longest first: what does not fit into memory fails at once, not after an hour.
        order = sorted(range(len(pieces)), key=lambda i: (-pieces[i].num_frames, -len(pieces[i].waveform), i))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) == self.batch_size or pieces[i].num_frames != pieces[batch[0]].num_frames):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch


def _torch_decoder(artefact: Artefact | RuntimeArtefact) -> WindowDecoder:
    if not isinstance(artefact, Artefact):
        raise TypeError("an artefact of another runtime needs the decoder of that runtime")
    return Decoder(artefact.model, artefact.tokenizer)


def _load_all(sources: Sequence[Path | Clip | Waveform]) -> Iterator[Waveform]:
    with ThreadPoolExecutor() as pool:
        yield from pool.map(_load, sources)


def _load(source: Path | Clip | Waveform) -> Waveform:
    if isinstance(source, np.ndarray):
        return source
    clip = Clip(source) if isinstance(source, Path) else source
    return load_waveform(
        encoded(clip.audio),
        offset_s=clip.offset_s,
        duration_s=clip.duration_s,
        max_duration_s=None,
        name=str(clip.audio),
    )


def _join(parts: Sequence[tuple[_Piece, Decoded]], duration_s: float) -> Transcript:
    first = parts[0][1]
    segments: list[Segment] = []
    for piece, decoded in parts:
        end_s = piece.start_s + len(piece.waveform) / SAMPLING_RATE
        if decoded.segments:
            segments += [
                Segment(min(piece.start_s + s.start_s, end_s), min(piece.start_s + s.end_s, end_s), s.text)
                for s in decoded.segments
            ]
        elif decoded.text:
            segments.append(Segment(piece.start_s, end_s, decoded.text))
    return Transcript(
        text=join_texts((decoded.text for _, decoded in parts if decoded.text), first.language),
        language=first.language,
        detected_language=first.detected_language,
        language_probability=first.language_probability,
        duration_s=duration_s,
        segments=tuple(segments),
        is_cut=any(decoded.is_cut for _, decoded in parts),
    )


def best_device() -> torch.device:
    """Return the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Stopwatch:
    """Seconds of wall time, the device brought to a stop at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.elapsed_s = 0.0

    def __enter__(self) -> Stopwatch:
        self._synchronise()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._synchronise()
        self.elapsed_s = time.perf_counter() - self._start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
