"""Speed: a draw for every row at once, so that windows can be planned, and the change itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import soxr

from data.audio import SAMPLING_RATE, Waveform

GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # odd, close to 2**64 over the golden ratio: the step of SplitMix64
MASK_64 = 2**64 - 1
UNIT = 2.0**-53  # float64 holds 53 bits


def split_mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the output of SplitMix64 that follows each state.

    A hash of a counter: any row of any epoch is drawn without drawing the ones before, and without a generator of its
    own, which would cost a corpus of a million clips minutes an epoch.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", doi:10.1145/2660193.2660195.
    """
    z = state + np.uint64(GOLDEN_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw_uniform(stream: int, seed: int, epoch: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) for each row, a function of the four arguments alone.

    Args:
        stream: keeps unlike uses of one seed apart.
        seed: of the run.
        epoch: counted from 0.
        rows: (num_rows,) int64, index of each clip in the data set, in any order.
    """
    key = np.zeros(1, np.uint64)
    for word in (stream, seed, epoch):
        key = split_mix(key ^ np.uint64(word & MASK_64))
    bits = split_mix(key + rows.astype(np.uint64) * np.uint64(GOLDEN_GAMMA))
    return (bits >> np.uint64(11)).astype(np.float64) * UNIT


def change_speed(waveform: Waveform, speed: float) -> Waveform:
    """Play a clip faster (above 1) or slower; its pitch moves along.

    Args:
        waveform: (num_samples,) float32 at 16 kHz.
        speed: 1.1 makes the clip shorter by a factor of 1.1; 1 returns it as it is.

    Returns:
        (round(num_samples / speed),) float32 in [-1, 1].

    Source: Ko et al. 2015, "Audio augmentation for speech recognition", Interspeech.
    """
    if speed == 1.0:
        return waveform
    changed: Waveform = soxr.resample(waveform, speed * SAMPLING_RATE, SAMPLING_RATE, quality="HQ")
    # The filter overshoots full scale by a hair; scaling the clip for it would tie its level to its speed.
    return np.clip(changed, -1.0, 1.0)
