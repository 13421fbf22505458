"""Noise behind speech: a stretch of a recording, or made noise of a drawn colour, at a stated distance in level."""

from __future__ import annotations

import math

import numpy as np

from data.audio import SAMPLING_RATE, Waveform
from data.level import compute_active_power, fit_full_scale
from data.sounds import Sounds, to_waveform

SLOPES = (0.0, -0.5, -1.0)  # of the amplitude over the frequency: white, pink, brown
LOWEST_HZ = 20.0  # pink and brown noise would else put most of their power where nothing is heard


def draw_noise(num_samples: int, rng: np.random.Generator, sounds: Sounds | None = None) -> Waveform:
    """Return noise as long as a clip.

    Args:
        num_samples: of the clip.
        rng: draws the recording and where it begins, or the colour and the noise itself.
        sounds: recordings; one that is too short goes on from its beginning. None makes noise.

    Returns:
        (num_samples,) float32, of any level.
    """
    if sounds is None:
        return make_noise(num_samples, float(rng.choice(SLOPES)), rng)
    recording = sounds.read(int(rng.integers(len(sounds))))
    start = int(rng.integers(len(recording)))
    if len(recording) >= num_samples:
        start = int(start * (len(recording) - num_samples + 1) / len(recording))  # runs on without a seam
        return to_waveform(recording[start : start + num_samples])
    return to_waveform(np.resize(np.roll(recording, -start), num_samples))


def make_noise(num_samples: int, slope: float, rng: np.random.Generator) -> Waveform:
    """Make Gaussian noise whose amplitude goes as frequency ** slope.

    Args:
        num_samples: length of the noise.
        slope: 0 for white, -0.5 for pink, -1 for brown noise.
        rng: draws the noise.

    Returns:
        (num_samples,) float32 of power 1.

    Source: Timmer & König 1995, "On generating power law noise", Astronomy and Astrophysics 300.
    """
    size = fast_length(num_samples)
    spectrum = rng.standard_normal((size // 2 + 1, 2), dtype=np.float32).view(np.complex64)[:, 0]
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLING_RATE).astype(np.float32)
    spectrum *= np.maximum(frequencies, LOWEST_HZ) ** np.float32(slope)
    spectrum[0] = 0.0  # a constant is no sound
    noise: Waveform = np.fft.irfft(spectrum, size)[:num_samples].astype(np.float32)
    noise /= np.sqrt(np.square(noise).mean())
    return noise


def add_noise(waveform: Waveform, noise: Waveform, *, snr_db: float) -> Waveform:
    """Add noise to a clip.

    Args:
        waveform: (num_samples,) float32 in [-1, 1].
        noise: (num_samples,) float32, of any level.
        snr_db: active level of the speech over the mean level of the noise, in dB.

    Returns:
        (num_samples,) float32 in [-1, 1], quieter as a whole where the sum would pass full scale; the clip itself if
        it or the noise is digital silence, between which there is no ratio.
    """
    speech_power = compute_active_power(waveform)
    noise_power = float(np.square(noise).mean(dtype=np.float64))
    if speech_power == 0.0 or noise_power == 0.0:
        return waveform
    gain = math.sqrt(speech_power / noise_power) * 10.0 ** (-snr_db / 20.0)
    return fit_full_scale(waveform + noise * np.float32(gain))


def fast_length(num_samples: int) -> int:
    """Return the smallest even length, at least this, whose Fourier transform is fast; a prime one takes ten times."""
    return min(odd << max(1, math.ceil(math.log2(num_samples / odd))) for odd in (1, 3, 5, 9, 15))
