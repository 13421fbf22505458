"""One clip, decoded and measured: a hash of its samples, loudness, clipping, silence; or why it cannot be used."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from data.audio import SAMPLING_RATE, AudioError, Waveform, load_waveform
from data.containers import is_misnamed
from data.probe import find_format

FULL_SCALE_DB = 20.0  # decibels for a factor of ten in amplitude; 0 dBFS is a mean square of 1
FLOOR_DBFS = -120.0  # what digital silence is given instead of minus infinity
CLIPPED_LEVEL = 0.99  # a sample at or above it counts as clipped; resampling rounds the corners of a plateau
FRAME_SAMPLES = SAMPLING_RATE // 50  # 20 ms
SILENCE_BELOW_LOUD_DB = 35.0  # a frame this far below the loud ones is a pause; weak consonants lie about 30 dB below
SILENCE_DBFS = -60.0  # and so is any frame below this
STEREO_PROBE_S = 10.0  # seconds of a stereo file that are compared, left with right
ANTI_PHASE = -0.5  # correlation of left and right below which mixing to mono cancels speech


@dataclass(frozen=True, slots=True)
class ClipJob:
    """What a worker needs to measure one clip."""

    index: int
    """Place of the row in its split."""
    audio: Path | bytes
    """The file, or the encoded clip where it lies inside an archive."""
    name: str
    """What messages call it."""
    offset_s: float | None
    duration_s: float | None
    max_duration_s: float | None


@dataclass(frozen=True, slots=True)
class ClipFigures:
    """What the samples of a clip say. Where `code` is set the clip cannot be used, and the figures are zero."""

    pcm: int = 0
    """64 bits of BLAKE2b over the samples at 16 kHz, mono, 16 bits: the same for a sound in any lossless container."""
    duration_s: float = 0.0
    rms_dbfs: float = FLOOR_DBFS
    peak: float = 0.0
    clipped_share: float = 0.0
    """Share of samples at full scale."""
    silence_share: float = 0.0
    """Share of 20 ms frames that are pauses."""
    dc: float = 0.0
    """Mean of the samples."""
    sampling_rate: int = 0
    """Of the file, in Hz; 0 where libsndfile cannot say."""
    channels: int = 0
    is_anti_phase: bool = False
    """Left and right of a stereo file cancel when mixed to mono."""
    is_misnamed: bool = False
    """The name promises another format than the file has."""
    code: str = ""
    """Reason code of a clip that cannot be used."""
    detail: str = ""


def measure_clip(job: ClipJob) -> ClipFigures:
    """Decode a clip and measure it; a fault comes back as its code, never as an exception."""
    try:
        waveform = load_waveform(
            job.audio,
            offset_s=job.offset_s,
            duration_s=job.duration_s,
            max_duration_s=job.max_duration_s,
            name=job.name,
        )
    except AudioError as e:
        return ClipFigures(code=e.reason.code, detail=e.detail)
    rate, channels, is_anti_phase = _probe_source(job.audio, job.offset_s or 0.0)
    return ClipFigures(
        pcm=hash_samples(waveform),
        duration_s=len(waveform) / SAMPLING_RATE,
        rms_dbfs=_dbfs(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))),
        peak=float(np.abs(waveform).max()),
        clipped_share=float(np.mean(np.abs(waveform) >= CLIPPED_LEVEL)),
        silence_share=compute_silence_share(waveform),
        dc=float(waveform.mean(dtype=np.float64)),
        sampling_rate=rate,
        channels=channels,
        is_anti_phase=is_anti_phase,
        is_misnamed=is_misnamed(job.name, find_format(job.audio)),
    )


def hash_samples(waveform: Waveform) -> int:
    """Return 64 bits that name a sound.

    Two of 1,000,000 different clips fall together once in 37 million corpora.

    Args:
        waveform: (num_samples,) float32 at 16 kHz; rounded to 16 bits first, so that FLAC, WAV and float files of the
            same samples agree.
    """
    samples = np.round(np.clip(waveform, -1.0, 1.0) * 32767.0).astype("<i2")
    return int.from_bytes(blake2b(samples.tobytes(), digest_size=8).digest(), "little")


def compute_silence_share(waveform: Waveform) -> float:
    """Return the share of 20 ms frames that are pauses, 0 to 1.

    A pause lies 35 dB below the loud frames (their 95th percentile), or below -60 dBFS.

    Args:
        waveform: (num_samples,) float32 at 16 kHz, at least one frame.
    """
    num_frames = len(waveform) // FRAME_SAMPLES
    frames = waveform[: num_frames * FRAME_SAMPLES].reshape(num_frames, FRAME_SAMPLES)
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    levels = 0.5 * FULL_SCALE_DB * np.log10(np.maximum(power, 1e-12))
    threshold = max(float(np.percentile(levels, 95)) - SILENCE_BELOW_LOUD_DB, SILENCE_DBFS)
    return float(np.mean(levels < threshold))


def _dbfs(amplitude: float) -> float:
    return max(FLOOR_DBFS, FULL_SCALE_DB * math.log10(amplitude)) if amplitude > 0 else FLOOR_DBFS


def _probe_source(source: Path | bytes, offset_s: float) -> tuple[int, int, bool]:
    """Return sampling rate, channels, and whether left and right cancel; zeros where only FFmpeg reads the file."""
    try:
        with soundfile.SoundFile(str(source) if isinstance(source, Path) else io.BytesIO(source)) as file:
            rate, channels = int(file.samplerate), int(file.channels)
            if channels != 2:
                return rate, channels, False
            file.seek(round(offset_s * rate))
            return rate, channels, _cancels(file.read(round(STEREO_PROBE_S * rate), dtype="float32"))
    except soundfile.LibsndfileError:
        return 0, 0, False


def _cancels(stereo: npt.NDArray[np.float32]) -> bool:
    left, right = stereo[:, 0], stereo[:, 1]
    energy = math.sqrt(float(np.dot(left, left)) * float(np.dot(right, right)))
    return energy > 0 and float(np.dot(left, right)) / energy < ANTI_PHASE
