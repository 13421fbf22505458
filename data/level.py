"""How loud speech is, and what changes loudness: gain, overdrive, and the limit of full scale."""

from __future__ import annotations

import numpy as np

from data.audio import SAMPLING_RATE, Waveform

FRAME_SAMPLES = SAMPLING_RATE // 50  # 20 ms
HANGOVER_FRAMES = 10  # 0.2 s
ACTIVITY_MARGIN = 10.0 ** (-15.9 / 10)  # as power; P.56's margin between the active level and its threshold


def compute_active_power(waveform: Waveform) -> float:
    """Return the mean power of the parts of a clip where somebody speaks.

    The mean over the whole clip would depend on how much silence stands around the speech, and so would every ratio of
    speech to noise. Speech is where a frame of 20 ms lies at most 15.9 dB below the level that is sought, and the 0.2 s
    behind such a frame, so that the pauses within words and between them count.

    Args:
        waveform: (num_samples,) float32; what remains behind the last whole frame is not looked at.

    Returns:
        Mean square, 0 for digital silence.

    Source: ITU-T P.56 (2011), method B, with frames in place of its smoothed envelope.
    """
    num_frames = max(1, len(waveform) // FRAME_SAMPLES)
    frames = waveform[: num_frames * FRAME_SAMPLES].reshape(num_frames, -1)
    power = np.square(frames).mean(axis=1, dtype=np.float64)
    is_active = np.ones(num_frames, bool)
    while True:  # what drops out lies below the mean, which so rises with every turn, and ends in a fixed point
        is_loud = power >= power[is_active].mean() * ACTIVITY_MARGIN
        spread = np.convolve(is_loud, np.ones(HANGOVER_FRAMES + 1))[:num_frames] > 0.0
        if spread.sum() == is_active.sum():
            return float(power[is_active].mean())
        is_active = spread


def fit_full_scale(waveform: Waveform) -> Waveform:
    """Return a clip within [-1, 1]: made quieter as a whole where its peak is above, so that nothing is clipped."""
    peak = float(np.abs(waveform).max())
    return waveform if peak <= 1.0 else np.clip(waveform / np.float32(peak), -1.0, 1.0)


def change_gain(waveform: Waveform, gain_db: float) -> Waveform:
    """Return a clip at another level; a gain that would pass full scale stops there."""
    return fit_full_scale(waveform * np.float32(10.0 ** (gain_db / 20.0)))


def overdrive(waveform: Waveform, drive_db: float) -> Waveform:
    """Return a clip whose samples within `drive_db` of the peak are cut off, as a microphone too close cuts them."""
    limit = np.float32(np.abs(waveform).max() * 10.0 ** (-drive_db / 20.0))
    return np.clip(waveform, -limit, limit)
