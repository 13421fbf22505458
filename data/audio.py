"""A clip as waveform: decoded by libsndfile or FFmpeg, mixed to mono, resampled to 16 kHz, and checked."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NoReturn

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from av.audio.resampler import AudioResampler

from data.bitstreams import ContainerError
from data.containers import Container, inspect_container
from data.reasons import Reason

Waveform = npt.NDArray[np.float32]
"""(num_samples,) float32, mono, 16 kHz, in [-1, 1]."""

SAMPLING_RATE = 16_000  # Hz; Whisper's feature extractor knows no other
MIN_DURATION_S = 0.1  # below it there is hardly a phone
MAX_CHANNELS = 8
MIN_SOURCE_RATE, MAX_SOURCE_RATE = 4_000, 192_000  # Hz; beyond them a header lies
MAX_PEAK = 64.0  # 36 dB over full scale; samples beyond it were never scaled, or a bit of an exponent flipped
BLOCK_SAMPLES = 1 << 19  # decoded at a time, over all channels; 2 MiB
DURATION_TOLERANCE = 0.01  # relative; and never less than 0.1 s, since codecs pad

logging.getLogger("libav").setLevel(logging.CRITICAL)  # its complaints come back as our AudioError


class AudioError(ValueError):
    """A clip that cannot be used: `reason` says why, the message names the file."""

    def __init__(self, reason: Reason, path: Path | str, detail: str = "") -> None:
        self.reason = reason
        self.detail = f"{path}: {detail}" if detail else str(path)
        super().__init__(f"{reason.message} ({self.detail}) [{reason.code}]")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_audio_error, (self.reason, self.detail))


def _rebuild_audio_error(reason: Reason, detail: str) -> AudioError:
    return AudioError(reason, detail)


def load_waveform(
    source: Path | bytes,
    *,
    offset_s: float | None = None,
    duration_s: float | None = None,
    max_duration_s: float | None = 30.0,
    name: str | None = None,
) -> Waveform:
    """Decode a clip to mono float32 at 16 kHz.

    Decoding stops as soon as the limit is passed, so that a small file which unpacks to hours costs no memory.

    Args:
        source: a regular file, or the bytes of one. The format is told by its content; see `inspect_container`.
        offset_s: where to begin, in seconds; None if the clip is the whole file.
        duration_s: how much to take, in seconds; None takes the rest. Less than this in the file is an error, and so is
            more where the clip is the whole file.
        max_duration_s: longest clip that is accepted; None accepts any.
        name: what errors call the clip; the path by default.

    Returns:
        (num_samples,) float32, finite, at 16 kHz.

    Raises:
        AudioError: if the clip is missing, empty, cut, broken, not finite, too short or too long.
    """
    # A limit is read with some slack, so that a longer file is not cut in silence but seen.
    limit_s = math.inf if max_duration_s is None else max_duration_s + 0.5
    if duration_s is not None:
        limit_s = min(limit_s, duration_s if offset_s is not None else duration_s + 2 * _tolerance_s(duration_s))
    with open_clip(source, name) as clip:
        blocks = list(_at_our_rate(clip.decode(offset_s or 0.0, limit_s), clip.rate))
        if not blocks:
            clip.fail(Reason.AUDIO_EMPTY)
        mono = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        waveform = np.ascontiguousarray(mono, dtype=np.float32)
        found_s = len(waveform) / SAMPLING_RATE
        if max_duration_s is not None and len(waveform) > round(max_duration_s * SAMPLING_RATE):
            clip.fail(Reason.AUDIO_TOO_LONG, f"more than {max_duration_s:g} s")
        if duration_s is not None and found_s < duration_s - _tolerance_s(duration_s):
            clip.fail(Reason.AUDIO_TRUNCATED, f"{found_s:.2f} s found, {duration_s:.2f} s expected")
        if duration_s is not None and offset_s is None and found_s > duration_s + _tolerance_s(duration_s):
            clip.fail(Reason.AUDIO_DURATION, f"{found_s:.2f} s or more found, {duration_s:.2f} s expected")
        if found_s < MIN_DURATION_S:
            clip.fail(Reason.AUDIO_TOO_SHORT, f"{found_s:.3f} s")
        peak = max(float(waveform.max()), -float(waveform.min()))
        if not math.isfinite(peak):
            clip.fail(Reason.AUDIO_NOT_FINITE)
        if peak > MAX_PEAK:
            clip.fail(Reason.AUDIO_SCALE, f"up to {peak:.3g}; divide samples that were integers by their full scale")
        return waveform


def _at_our_rate(blocks: Iterator[npt.NDArray[np.float32]], rate: int) -> Iterator[npt.NDArray[np.float32]]:
    """Resample block by block, bit for bit as in one piece: ten minutes at 192 kHz are then never held at once."""
    if rate == SAMPLING_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32", quality="HQ")
    block = next(blocks, None)
    while block is not None:
        following = next(blocks, None)
        yield stream.resample_chunk(block, last=following is None)
        block = following


def _tolerance_s(duration_s: float) -> float:
    return max(0.1, DURATION_TOLERANCE * duration_s)


@contextmanager
def open_clip(source: Path | bytes, name: str | None, *, thorough: bool = False) -> Iterator[OpenClip]:
    """Open a file, told by its content, and close it afterwards.

    Args:
        source: a regular file, or the bytes of one.
        name: what errors call the clip; the path by default.
        thorough: go through every page and frame of a long Ogg, MP3 or AAC stream, too.

    Raises:
        AudioError: if the file is missing, empty, cut, contradicts itself, or is of no known format.
    """
    if isinstance(source, bytes):
        name = name or "audio in memory"
        raw: BinaryIO = io.BytesIO(source)
        size = len(source)
    else:
        name = name or str(source)
        if not source.is_file():
            raise AudioError(Reason.AUDIO_NOT_A_FILE if source.exists() else Reason.AUDIO_MISSING, name)
        try:
            raw = source.open("rb", buffering=0)  # unbuffered, since libsndfile shares its position
        except OSError as e:
            raise AudioError(Reason.AUDIO_CORRUPT, name, e.strerror or str(e)) from e
        size = os.fstat(raw.fileno()).st_size
    with raw:
        if size == 0:
            raise AudioError(Reason.AUDIO_EMPTY, name, "0 bytes")
        try:
            container = inspect_container(raw, size, thorough=thorough)
        except ContainerError as e:
            raise AudioError(e.reason, name, e.detail) from e
        clip = OpenClip(raw, container, name)
        try:
            yield clip
        finally:
            if clip.file is not None:
                clip.file.close()


class OpenClip:
    """An open file with its decoder: libsndfile, or else FFmpeg."""

    def __init__(self, raw: BinaryIO, container: Container, name: str) -> None:
        """Take a file that was inspected; see `open_clip`."""
        self.name = name
        self.rate = SAMPLING_RATE
        self.file: soundfile.SoundFile | None = None
        self._raw = raw
        self._container = container
        if container.is_for_libsndfile:
            self._open_soundfile()

    @property
    def format(self) -> str:
        """FFmpeg's name of the format."""
        return self._container.demuxer

    def fail(self, reason: Reason, detail: str = "") -> NoReturn:
        """Raise an `AudioError` that names the clip."""
        raise AudioError(reason, self.name, detail)

    def _open_soundfile(self) -> None:
        # By descriptor: by name, libsndfile would take some endings for headerless samples.
        source = self._raw if isinstance(self._raw, io.BytesIO) else self._raw.fileno()
        self._raw.seek(0)
        try:
            self.file = soundfile.SoundFile(source, closefd=False)
        except soundfile.LibsndfileError:
            return  # a codec that it does not have: FFmpeg may
        self.rate = int(self.file.samplerate)
        self._verify_format(self.rate, int(self.file.channels))

    def _verify_format(self, rate: int, num_channels: int) -> None:
        if not MIN_SOURCE_RATE <= rate <= MAX_SOURCE_RATE:
            self.fail(Reason.AUDIO_SAMPLING_RATE, f"{rate} Hz")
        if num_channels > MAX_CHANNELS:
            self.fail(Reason.AUDIO_CHANNELS, f"{num_channels} channels")

    def decode(self, offset_s: float, wanted_s: float) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the samples from `offset_s` on, block by block, mono float32 at `rate`; none of 0 samples."""
        start = round(offset_s * self.rate)
        wanted = math.inf if math.isinf(wanted_s) else math.ceil(wanted_s * self.rate)
        return self._decode_av(start, wanted) if self.file is None else self._decode_soundfile(self.file, start, wanted)

    def _decode_soundfile(
        self, file: soundfile.SoundFile, start: int, wanted: float
    ) -> Iterator[npt.NDArray[np.float32]]:
        if start and start >= file.frames:
            self._fail_behind_end(start, file.frames)
        left = int(min(wanted, file.frames - start))
        try:
            if start:
                file.seek(start)
            while left > 0:
                # NaN, because libsndfile may count samples that it never wrote, if an Ogg page lies about its time.
                shape = (min(left, BLOCK_SAMPLES // file.channels), file.channels)
                block = file.read(out=np.full(shape, np.nan, np.float32))
                if len(block) == 0:
                    break
                left -= len(block)
                yield block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
        except soundfile.LibsndfileError as e:
            raise AudioError(Reason.AUDIO_CORRUPT, self.name, str(e)[-120:]) from e
        if left > _tolerance_s(0.0) * self.rate:
            self.fail(Reason.AUDIO_TRUNCATED, f"{file.frames} samples declared, {left} are missing")

    def _decode_av(self, start: int, wanted: float) -> Iterator[npt.NDArray[np.float32]]:
        end = start + wanted
        position = 0
        self._raw.seek(0)
        try:
            # The format is given and other files are refused, because the demuxers of playlists open what they name.
            with av.open(
                self._raw, format=self._container.demuxer, metadata_errors="ignore", io_open=_refuse_other_files
            ) as container:
                if not container.streams.audio or container.streams.audio[0].codec_context is None:
                    self.fail(Reason.AUDIO_CORRUPT, "no audio stream of a known codec")
                stream = container.streams.audio[0]
                self._verify_format(int(stream.rate or 0), int(stream.channels or 0))
                is_alone = len(container.streams) == 1
                for block in _resampled(container, stream):
                    part = block[max(0, start - position) : int(min(end - position, len(block)))]
                    position += len(block)
                    if len(part):
                        yield part
                    if position >= end:
                        return
                if start and start >= position:
                    self._fail_behind_end(start, position)
                declared_s = container.duration / av.time_base if container.duration else 0.0
        except (av.FFmpegError, OSError, ValueError) as e:
            if isinstance(e, AudioError):
                raise
            raise AudioError(Reason.AUDIO_CORRUPT, self.name, str(e).split("\n")[0][:120]) from e
        found_s = position / SAMPLING_RATE
        is_declared = self._container.demuxer in ("mov", "matroska") and is_alone
        if is_declared and found_s < declared_s - _tolerance_s(declared_s):
            self.fail(Reason.AUDIO_TRUNCATED, f"{declared_s:.2f} s declared, {found_s:.2f} s found")

    def _fail_behind_end(self, start: int, end: int) -> NoReturn:
        self.fail(Reason.AUDIO_TRUNCATED, f"{start / self.rate:g} s lies behind the end, {end / self.rate:.2f} s")


def _resampled(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[npt.NDArray[np.float32]]:
    # No layout: its downmix of floats adds the channels at -3 dB each, and a voice in both gets louder.
    resampler = AudioResampler(format="fltp", rate=SAMPLING_RATE)
    for frame in chain(container.decode(stream), (None,)):
        for part in resampler.resample(frame):
            yield part.to_ndarray().mean(axis=0, dtype=np.float32)


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"the file names another one, {url!r}")
