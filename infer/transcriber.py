"""Audio in, text out, through an artefact: the path of evaluation, of the command line and of the service."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.ahead import read_ahead
from data.audio import SAMPLING_RATE, Waveform
from data.features import FRAMES_PER_S, HOP_LENGTH, LogMel
from data.windows import Windows
from infer.artefact import Artefact
from infer.decoding import Decoded, Decoder, DecodeSettings
from infer.longform import cut_at_quiet
from infer.reading import TokenReader
from infer.recordings import Block, Clip, load_blocks
from infer.sequential import SequentialRecording
from infer.timing import Stopwatch
from infer.transcript import Transcript, join_pieces, join_sequential

__all__ = ["Clip", "Stopwatch", "Transcriber", "Transcript", "best_device"]


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
    """One window to decode."""

    source: int
    start_s: float
    waveform: Waveform
    num_frames: int
    """Of the window."""

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.waveform) / SAMPLING_RATE

    @property
    def sounding(self) -> int:
        """Frames of the window that hold sound."""
        return len(self.waveform) // HOP_LENGTH


class Transcriber:
    """Transcribe files or waveforms in batches of one window edge each."""

    def __init__(
        self,
        artefact: Artefact | RuntimeArtefact,
        settings: DecodeSettings | None = None,
        *,
        batch_size: int = 16,
        decoder: WindowDecoder | None = None,
        batch_audio_s: float | None = None,
    ) -> None:
        """Remember the artefact and how to decode.

        Args:
            artefact: from `load_artefact`.
            settings: how to decode; greedy with language detection where none are given.
            batch_size: windows decoded together, at most.
            decoder: of another runtime; None decodes in torch.
            batch_audio_s: seconds of windows decoded together, at most, so that short windows make larger batches up
                to `batch_size`; None has no such limit.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more")
        if batch_audio_s is not None and batch_audio_s <= 0:
            raise ValueError(f"batch_audio_s={batch_audio_s} must be above 0")
        self.artefact = artefact
        self.settings = settings or DecodeSettings()
        self.batch_size = batch_size
        self.batch_audio_s = batch_audio_s
        self.log_mel = LogMel(artefact.model.config.num_mel_bins)
        self.processing_s = 0.0
        """Wall time of features, search and text so far, the device brought to a stop; reading files is not in it."""
        self._decoder = decoder if decoder is not None else _torch_decoder(artefact)
        self._reader = TokenReader(artefact.tokenizer)
        if self.settings.condition_on_previous_text and not isinstance(self._decoder, Decoder):
            raise ValueError("decoding.condition_on_previous_text=true needs the torch runtime; give false")

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
        found = dict(self.stream(sources, languages=languages, on_progress=on_progress))
        return [found[i] for i in range(len(sources))]

    def stream(
        self,
        sources: Sequence[Path | Clip | Waveform],
        *,
        languages: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Transcript]]:
        """Yield each transcript with the index of its source as soon as it is there, in the order of decoding.

        Args:
            sources: as in `transcribe`; an hour of audio is held at once, and the next one is read meanwhile.
            languages: as in `transcribe`.
            on_progress: as in `transcribe`.

        Raises:
            AudioError: for the first source that cannot be used.
        """
        if isinstance(sources, str | Path):
            raise TypeError("transcribe takes a list of sources, not one path")
        if languages is not None and len(languages) != len(sources):
            raise ValueError(f"{len(languages)} languages were given for {len(sources)} sources")
        wanted = [self.settings.language] * len(sources) if languages is None else list(languages)
        by_times = self.settings.long_form == "sequential"
        for block in read_ahead(load_blocks(sources), count=1):
            decode = self._sequentially if by_times else self._in_pieces
            yield from decode(block, wanted, on_progress or (lambda _: None))

    def warm_up(self) -> None:
        """Decode a few tokens of silence in each window, so that the first clip on the clock meets a warm machine.

        On a device other than the CPU with batches as large as they will be, since memory is taken then, too.

        Source: the Open ASR Leaderboard's protocol warms up before it starts the clock.
        """
        settings = replace(self.settings, max_new_tokens=4, temperature=self.settings.temperature[:1])
        is_cpu = self.artefact.model.device.type == "cpu"
        for edge_s in self.artefact.windows.edges_s:
            num_frames = round(edge_s * FRAMES_PER_S)
            piece = _Piece(0, 0.0, np.zeros(num_frames * HOP_LENGTH, dtype=np.float32), num_frames)
            self._decoder.decode(self._features([piece] * (1 if is_cpu else self._num_together(num_frames))), settings)

    def _in_pieces(
        self, block: Block, wanted: Sequence[str], on_progress: Callable[[int], None]
    ) -> Iterator[tuple[int, Transcript]]:
        """Cut long recordings at quiet points and decode all pieces in any order."""
        pieces: list[_Piece] = []
        parts: dict[int, dict[int, Decoded | None]] = {}
        for source, waveform in block:
            cut = cut_at_quiet(waveform, max_duration_s=self.settings.piece_s)
            indices = range(len(pieces), len(pieces) + len(cut))
            pieces += [self._piece(source, start_s, part) for start_s, part in cut]
            parts[source] = dict.fromkeys(indices)
        durations_s = {source: len(waveform) / SAMPLING_RATE for source, waveform in block}
        for batch, results in self._decoded(pieces, wanted, None):
            on_progress(len(batch))
            for i, decoded in zip(batch, results, strict=True):
                parts[pieces[i].source][i] = decoded
            for source in dict.fromkeys(pieces[i].source for i in batch):
                done = [
                    (pieces[i].start_s, pieces[i].end_s, decoded)
                    for i, decoded in parts[source].items()
                    if decoded is not None
                ]
                if len(done) == len(parts[source]):
                    del parts[source]
                    yield source, join_pieces(done, durations_s[source])

    def _sequentially(
        self, block: Block, wanted: Sequence[str], on_progress: Callable[[int], None]
    ) -> Iterator[tuple[int, Transcript]]:
        """Decode the next window of every recording, again and again, until all are read."""
        settings = self.settings
        waveforms = dict(block)
        recordings = {
            source: SequentialRecording(
                len(waveform) / SAMPLING_RATE, self._reader, conditioned=settings.condition_on_previous_text
            )
            for source, waveform in block
        }
        is_first = True
        while recordings:
            pieces: list[_Piece] = []
            for source, recording in recordings.items():
                start = recording.seek * HOP_LENGTH
                part = waveforms[source][start : start + recording.size * HOP_LENGTH]
                pieces.append(self._piece(source, start / SAMPLING_RATE, part))
            languages = [
                wanted[source] if is_first or wanted[source] != "auto" else recording.language
                for source, recording in recordings.items()
            ]
            prompts = [recording.prompt for recording in recordings.values()]
            given = prompts if settings.condition_on_previous_text and not is_first else None
            of_source = dict(zip(recordings, languages, strict=True))
            for batch, results in self._decoded(pieces, of_source, given):
                on_progress(len(batch))
                for i, decoded in zip(batch, results, strict=True):
                    recordings[pieces[i].source].take(decoded)
            for source in [source for source, recording in recordings.items() if recording.is_done]:
                yield source, join_sequential(recordings.pop(source))
            is_first = False

    def _piece(self, source: int, start_s: float, waveform: Waveform) -> _Piece:
        return _Piece(source, start_s, waveform, self.artefact.windows.num_frames(len(waveform) / SAMPLING_RATE))

    def _decoded(
        self,
        pieces: Sequence[_Piece],
        languages: Sequence[str] | Mapping[int, str],
        prompts: Sequence[Sequence[int]] | None,
    ) -> Iterator[tuple[list[int], list[Decoded]]]:
        """Yield batches of indices with what they say; features of the next one are made meanwhile."""
        batches = ((batch, self._features([pieces[i] for i in batch])) for batch in self._batches(pieces))
        made = read_ahead(batches, count=1)
        with contextlib.closing(made):
            while True:
                with Stopwatch(self.artefact.model.device) as watch:
                    batch, features = next(made, (None, None))
                    if batch is None or features is None:
                        return
                    results = self._decoder.decode(
                        features,
                        self.settings,
                        languages=[languages[pieces[i].source] for i in batch],
                        **({} if prompts is None else {"prompts": [prompts[i] for i in batch]}),
                        **({"num_frames": [pieces[i].sounding for i in batch]} if self.settings.word_times else {}),
                    )
                self.processing_s += watch.elapsed_s
                yield batch, results

    def _features(self, batch: Sequence[_Piece]) -> Tensor:
        made = self.log_mel.batch([piece.waveform for piece in batch], num_frames=batch[0].num_frames)
        return made.to(self.artefact.model.device, self.artefact.model.dtype)

    def _num_together(self, num_frames: int) -> int:
        if self.batch_audio_s is None:
            return self.batch_size
        return max(1, min(self.batch_size, int(self.batch_audio_s * FRAMES_PER_S // num_frames)))

    def _batches(self, pieces: Sequence[_Piece]) -> Iterator[list[int]]:
        # Longest first: what does not fit into memory fails at once, not after an hour. Clips of like length also say
        # about as much, so that no row waits long for the others of its batch.
        order = sorted(range(len(pieces)), key=lambda i: (-pieces[i].num_frames, -len(pieces[i].waveform), i))
        for num_frames, group in itertools.groupby(order, key=lambda i: pieces[i].num_frames):
            indices = list(group)
            size = self._num_together(num_frames)
            yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _torch_decoder(artefact: Artefact | RuntimeArtefact) -> WindowDecoder:
    if not isinstance(artefact, Artefact):
        raise TypeError("an artefact of another runtime needs the decoder of that runtime")
    return Decoder(artefact.model, artefact.tokenizer)


def best_device() -> torch.device:
    """Return the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
