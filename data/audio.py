"""A clip as waveform: decoded by soundfile or PyAV, mixed to mono, resampled to 16 kHz, and checked."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from av.audio.resampler import AudioResampler

from data.reasons import Reason

Waveform = npt.NDArray[np.float32]
"""(num_samples,) float32, mono, 16 kHz, in [-1, 1]."""

SAMPLING_RATE = 16_000  # Hz; Whisper's feature extractor knows no other
MIN_DURATION_S = 0.1  # below it there is hardly a phone
MAX_CHANNELS = 8
MIN_SOURCE_RATE, MAX_SOURCE_RATE = 4_000, 192_000  # Hz; beyond them a header lies
UNKNOWN_FRAMES = 2**62  # libsndfile says this much of a stream whose header has no length
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
    path: Path,
    *,
    offset_s: float | None = None,
    duration_s: float | None = None,
    max_duration_s: float | None = 30.0,
) -> Waveform:
    """Decode a clip to mono float32 at 16 kHz.

    Decoding stops as soon as the limit is passed, so that a small file which unpacks to hours costs no memory.

    Args:
        path: a regular file in any format of libsndfile, or else of FFmpeg's libraries (through PyAV).
        offset_s: where to begin, in seconds; None if the clip is the whole file.
        duration_s: how much to take, in seconds; None takes the rest. Less than this in the file is an error, and so is
            more where the clip is the whole file.
        max_duration_s: longest clip that is accepted; None accepts any.

    Returns:
        (num_samples,) float32, finite, at 16 kHz.

    Raises:
        AudioError: if the clip is missing, empty, broken, not finite, too short or too long.
    """
    if not path.is_file():
        raise AudioError(Reason.AUDIO_NOT_A_FILE if path.exists() else Reason.AUDIO_MISSING, path)
    if os.path.getsize(path) == 0:
        raise AudioError(Reason.AUDIO_EMPTY, path, "0 bytes")
    # A limit is read with some slack, so that a longer file is not cut in silence but seen.
    limit_s = math.inf if max_duration_s is None else max_duration_s + 0.5
    if duration_s is not None:
        limit_s = min(limit_s, duration_s if offset_s is not None else duration_s + 2 * _tolerance_s(duration_s))
    samples, rate = _decode(path, offset_s=offset_s or 0.0, wanted_s=limit_s)
    if samples.shape[0] == 0:
        raise AudioError(Reason.AUDIO_EMPTY, path)
    if not np.isfinite(samples).all():
        raise AudioError(Reason.AUDIO_NOT_FINITE, path)
    mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
    if rate != SAMPLING_RATE:
        mono = soxr.resample(mono, rate, SAMPLING_RATE, quality="HQ")
    waveform = np.ascontiguousarray(mono, dtype=np.float32)
    found_s = len(waveform) / SAMPLING_RATE
    if max_duration_s is not None and len(waveform) > round(max_duration_s * SAMPLING_RATE):
        raise AudioError(Reason.AUDIO_TOO_LONG, path, f"more than {max_duration_s:g} s")
    if duration_s is not None and found_s < duration_s - _tolerance_s(duration_s):
        raise AudioError(Reason.AUDIO_TRUNCATED, path, f"{found_s:.2f} s found, {duration_s:.2f} s expected")
    if duration_s is not None and offset_s is None and found_s > duration_s + _tolerance_s(duration_s):
        raise AudioError(Reason.AUDIO_DURATION, path, f"{found_s:.2f} s or more found, {duration_s:.2f} s expected")
    if found_s < MIN_DURATION_S:
        raise AudioError(Reason.AUDIO_TOO_SHORT, path, f"{found_s:.3f} s")
    return waveform


def _tolerance_s(duration_s: float) -> float:
    return max(0.1, DURATION_TOLERANCE * duration_s)


def probe_duration_s(path: Path) -> float:
    """Read the length of a file from its header, in seconds; decode it where the header does not say.

    Raises:
        AudioError: if the file cannot be opened as audio.
    """
    try:
        info = soundfile.info(str(path))
        _verify_format(path, int(info.samplerate), int(info.channels))
        if info.frames >= UNKNOWN_FRAMES:
            raise soundfile.LibsndfileError(0, "length unknown: ")
        return float(info.frames) / float(info.samplerate)
    except soundfile.LibsndfileError:
        samples, rate = _decode(path, offset_s=0.0, wanted_s=math.inf)
        return len(samples) / rate


def _decode(path: Path, *, offset_s: float, wanted_s: float) -> tuple[npt.NDArray[np.float32], int]:
    try:
        return _decode_soundfile(path, offset_s, wanted_s)
    except soundfile.LibsndfileError:
        return _decode_av(path, offset_s, wanted_s)


def _verify_format(path: Path, rate: int, channels: int) -> None:
    if not MIN_SOURCE_RATE <= rate <= MAX_SOURCE_RATE:
        raise AudioError(Reason.AUDIO_SAMPLING_RATE, path, f"{rate} Hz")
    if channels > MAX_CHANNELS:
        raise AudioError(Reason.AUDIO_CHANNELS, path, f"{channels} channels")


def _decode_soundfile(path: Path, offset_s: float, wanted_s: float) -> tuple[npt.NDArray[np.float32], int]:
    with soundfile.SoundFile(str(path)) as file:
        rate = int(file.samplerate)
        _verify_format(path, rate, int(file.channels))
        start = round(offset_s * rate)
        if start:
            if start >= file.frames:
                raise AudioError(Reason.AUDIO_TRUNCATED, path, f"offset {offset_s:g} s lies behind the end")
            file.seek(start)
        if math.isinf(wanted_s) and file.frames >= UNKNOWN_FRAMES:
            raise soundfile.LibsndfileError(0, "length unknown: ")  # PyAV reads on until the file ends
        frames = -1 if math.isinf(wanted_s) else math.ceil(wanted_s * rate)
        samples: npt.NDArray[np.float32] = file.read(frames, dtype="float32", always_2d=True)
        return samples, rate


def _decode_av(path: Path, offset_s: float, wanted_s: float) -> tuple[npt.NDArray[np.float32], int]:
    blocks: list[npt.NDArray[np.float32]] = []
    skip = round(offset_s * SAMPLING_RATE)
    wanted = math.inf if math.isinf(wanted_s) else skip + math.ceil(wanted_s * SAMPLING_RATE)
    found = 0
    try:
        # Bytes instead of a name: a playlist or a protocol inside the file then reaches nothing outside it.
        with path.open("rb") as raw, av.open(raw, mode="r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError(Reason.AUDIO_CORRUPT, path, "no audio stream")
            stream = container.streams.audio[0]
            _verify_format(path, int(stream.rate or 0), int(stream.channels or 0))
            # No layout: its downmix of floats adds the channels at -3 dB each, and a voice in both gets louder.
            resampler = AudioResampler(format="fltp", rate=SAMPLING_RATE)
            for frame in container.decode(stream):
                for part in resampler.resample(frame):
                    blocks.append(part.to_ndarray().mean(axis=0, dtype=np.float32))
                    found += len(blocks[-1])
                if found >= wanted:
                    break
            else:
                for part in resampler.resample(None):
                    blocks.append(part.to_ndarray().mean(axis=0, dtype=np.float32))
    except (av.FFmpegError, OSError, ValueError) as e:
        if isinstance(e, AudioError):
            raise
        raise AudioError(Reason.AUDIO_CORRUPT, path, str(e).split("\n")[0][:120]) from e
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if skip and skip >= len(waveform):
        raise AudioError(Reason.AUDIO_TRUNCATED, path, f"offset {offset_s:g} s lies behind the end")
    end = len(waveform) if math.isinf(wanted) else int(wanted)
    return waveform[skip:end, None], SAMPLING_RATE
