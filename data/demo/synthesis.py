"""Speech of the demo corpus: one sentence in, one Ogg/Opus clip out, by espeak-ng and opusenc."""

from __future__ import annotations

import io
import random
import re
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

SAMPLING_RATE = 16_000
VARIANTS = ("m1", "m3", "f2", "f4")
"""espeak-ng voice variants; every language has these four speakers."""

PITCH = (35, 65)  # espeak-ng scale from 0 to 99
SILENCE_S = (0.05, 0.2)
LEVEL_DBFS = (-26.0, -20.0)
SNR_DB = (35.0, 45.0)

BITRATE_KBPS = 10  # keeps the full 8 kHz band for speech, and the shipped corpus below 6 MB
_PEAK = 0.98


@dataclass(frozen=True)
class ClipJob:
    """What a worker needs to make one clip."""

    clip_id: str
    spoken: str
    """Text for espeak-ng."""
    espeak_voice: str
    """Voice without variant, for example `en-us`."""
    variant: str
    speed_wpm: tuple[int, int]
    """Slowest and fastest speech to draw from."""
    path: Path
    """Ogg file to write; its folder exists."""
    seed: int


def find_tool(name: str, package: str) -> str:
    """Find a program that only the maker of the corpus needs.

    Args:
        name: program on the search path.
        package: Debian package that holds it, for the message.

    Returns:
        Full path of the program.

    Raises:
        RuntimeError: if it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(
            f"{name} is not installed, but making the demo corpus needs it; install it (Debian, Ubuntu: "
            f"sudo apt install {package}; macOS: brew install {package}). Using the shipped corpus does not need it."
        )
    return path


def read_espeak_version() -> str:
    """Read the version of the installed espeak-ng, for example `1.51`."""
    output = _run([find_tool("espeak-ng", "espeak-ng"), "--version"])
    match = re.search(rb"text-to-speech: (\S+)", output)
    return match.group(1).decode() if match else "unknown"


def compute_phonemes(text: str, espeak_voice: str) -> str:
    """Ask espeak-ng how it would pronounce a text.

    Args:
        text: as in `ClipJob.spoken`.
        espeak_voice: voice without variant.

    Returns:
        Phoneme mnemonics of espeak-ng; `(en)` in them marks a switch to English, that is, a character it cannot read.
    """
    command = [find_tool("espeak-ng", "espeak-ng"), "-v", espeak_voice, "-q", "-x", "--stdin"]
    return _run(command, text.encode()).decode().strip()


def render_clip(job: ClipJob) -> float:
    """Speak, degrade slightly, encode and decode one clip.

    Speed, pitch, level, silence and noise are drawn from the seed and the id, so a clip does not depend on the order of
    work.

    Args:
        job: what to say and where to put it.

    Returns:
        Duration of the decoded file in seconds.

    Raises:
        RuntimeError: if espeak-ng or opusenc fails, or the file does not decode to 16 kHz mono.
    """
    rng = random.Random(f"{job.seed}-{job.clip_id}")
    waveform = _speak(job, speed_wpm=rng.randint(*job.speed_wpm), pitch=rng.randint(*PITCH))
    waveform = _finish_waveform(waveform, rng)
    _encode_opus(waveform, job)
    decoded, sampling_rate = sf.read(job.path, dtype="float32", always_2d=True)
    num_samples, num_channels = decoded.shape
    if sampling_rate != SAMPLING_RATE or num_channels != 1:
        raise RuntimeError(f"{job.path} decodes to {sampling_rate} Hz, {num_channels} channels; 16 kHz mono is wanted")
    return round(float(num_samples) / SAMPLING_RATE, 4)


def _speak(job: ClipJob, *, speed_wpm: int, pitch: int) -> NDArray[np.float64]:
    """Synthesise the sentence, at 16 kHz without the pause that espeak-ng adds at the end."""
    voice = f"{job.espeak_voice}+{job.variant}"
    command = [find_tool("espeak-ng", "espeak-ng"), "-v", voice, "-s", str(speed_wpm), "-p", str(pitch)]
    wav = _run([*command, "-z", "--stdin", "--stdout"], job.spoken.encode())
    waveform, sampling_rate = sf.read(io.BytesIO(wav), dtype="float64")
    if not waveform.any():
        raise RuntimeError(f"espeak-ng says nothing for {job.spoken!r} in voice {voice}; check voice and lexicon")
    resampled: NDArray[np.float64] = soxr.resample(waveform, sampling_rate, SAMPLING_RATE)
    return resampled


def _finish_waveform(waveform: NDArray[np.float64], rng: random.Random) -> NDArray[np.float64]:
    """Set the level, pad with silence and add the noise floor."""
    level_dbfs = rng.uniform(*LEVEL_DBFS)
    waveform = waveform * (10 ** (level_dbfs / 20) / np.sqrt(np.mean(waveform**2)))
    lead, tail = (round(rng.uniform(*SILENCE_S) * SAMPLING_RATE) for _ in range(2))
    waveform = np.pad(waveform, (lead, tail))
    noise_rms = 10 ** ((level_dbfs - rng.uniform(*SNR_DB)) / 20)
    waveform = waveform + np.random.default_rng(rng.getrandbits(64)).normal(scale=noise_rms, size=len(waveform))
    return waveform * min(1.0, _PEAK / float(np.abs(waveform).max()))


def _encode_opus(waveform: NDArray[np.float64], job: ClipJob) -> None:
    """Write Ogg/Opus; a fixed stream number keeps the bytes the same from run to run."""
    stream_number = zlib.crc32(job.clip_id.encode()) & 0x7FFFFFFF
    command = [find_tool("opusenc", "opus-tools"), "--quiet", "--speech", "--bitrate", str(BITRATE_KBPS)]
    command += ["--framesize", "60", "--padding", "0", "--discard-comments", "--serial", str(stream_number)]
    command += ["--raw", "--raw-rate", str(SAMPLING_RATE), "--raw-chan", "1", "--raw-bits", "16", "-", str(job.path)]
    _run(command, (waveform * 32767).round().astype("<i2").tobytes())


def _run(command: list[str], stdin: bytes = b"") -> bytes:
    """Run a program and return its standard output."""
    result = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if result.returncode != 0:
        message = result.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"{Path(command[0]).name} failed with status {result.returncode}: {message}")
    return result.stdout
