"""Rooms: the response of one, recorded or made, and a clip as it is heard there."""

from __future__ import annotations

import numpy as np

from data.audio import SAMPLING_RATE, Waveform
from data.level import fit_full_scale
from data.noise import fast_length
from data.sounds import Sounds, to_waveform

DIRECT_TO_REVERBERANT_DB = (0.0, 12.0)  # from across a room to close to the microphone


def draw_room(rng: np.random.Generator, rt60_s: tuple[float, float], sounds: Sounds | None = None) -> Waveform:
    """Return the response of a room.

    Args:
        rng: draws the recording, or the properties of the room and its response.
        rt60_s: shortest and longest reverberation time of a made room, in seconds.
        sounds: recorded impulse responses; None makes one.

    Returns:
        (num_taps,) float32 at 16 kHz, of any level.
    """
    if sounds is None:
        return make_room(float(rng.uniform(*rt60_s)), float(rng.uniform(*DIRECT_TO_REVERBERANT_DB)), rng)
    return to_waveform(sounds.read(int(rng.integers(len(sounds)))))


def make_room(rt60_s: float, direct_to_reverberant_db: float, rng: np.random.Generator) -> Waveform:
    """Make a room response: the direct sound, then Gaussian noise that decays exponentially.

    It has the decay of a room and its blur, without early reflections of a place; recorded responses sound truer.

    Args:
        rt60_s: time in which the reverberation falls by 60 dB, in seconds.
        direct_to_reverberant_db: energy of the direct sound over that of all reverberation, in dB.
        rng: draws the noise.

    Returns:
        (rt60_s * 16000,) float32; the direct sound is its first sample and has the value 1.

    Source: Polack 1988, the statistical model; Lehmann & Johansson 2010, doi:10.1109/TASL.2009.2035038, section II.
    """
    num_taps = max(2, round(rt60_s * SAMPLING_RATE))
    decay = np.float32(10.0) ** np.linspace(0.0, -3.0, num_taps, dtype=np.float32)  # as amplitude: 60 dB at its end
    response = rng.standard_normal(num_taps, dtype=np.float32) * decay
    response[0] = 0.0
    energy = float(np.square(response).sum(dtype=np.float64))
    response *= np.float32(10.0 ** (-direct_to_reverberant_db / 20.0) / np.sqrt(energy))
    response[0] = 1.0
    return response


def add_room(waveform: Waveform, response: Waveform) -> Waveform:
    """Return a clip as it is heard in a room.

    The strongest tap is taken as the direct sound and stays where the clip is, so that times in labels keep holding;
    the reverberation behind the clip's end is cut.

    Args:
        waveform: (num_samples,) float32 in [-1, 1].
        response: (num_taps,) float32, of any level.

    Returns:
        (num_samples,) float32 in [-1, 1], of the clip's own power where full scale allows.
    """
    num_samples = len(waveform)
    direct = int(np.abs(response).argmax())
    size = fast_length(num_samples + len(response) - 1)
    heard = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)
    heard = heard[direct : direct + num_samples]
    power = float(np.square(heard).mean(dtype=np.float64))
    if power == 0.0:  # silence, or a clip shorter than the response's own delay
        return waveform
    gain = np.sqrt(float(np.square(waveform).mean(dtype=np.float64)) / power)
    return fit_full_scale((heard * np.float32(gain)).astype(np.float32))
