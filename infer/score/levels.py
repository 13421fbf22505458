"""How loud a clip is and how far above its background, measured off the clock and beside the transcription."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from data.audio import Waveform, load_waveform
from data.level import FRAME_SAMPLES, compute_active_power
from data.rows import Row, encoded
from infer.score.utterances import Prediction

BACKGROUND_PERCENTILE = 10.0
"""Of the power of frames: in running speech one frame in ten falls between words."""
MIN_FRAMES = 25  # half a second: in less there may be no pause at all
MAX_SNR_DB = 80.0  # above what 16 bits hold


@dataclass(frozen=True)
class Level:
    """Loudness and noise of one clip."""

    loudness_dbfs: float | None
    """Active speech level in dB of full scale; None for digital silence."""
    snr_db: float | None
    """Speech over background in dB; None for less than half a second, or digital silence."""


def measure_level(waveform: Waveform) -> Level:
    """Measure one clip.

    The background is what the quietest tenth of the frames hold. In a clip without a pause that is still speech, and
    the ratio comes out too low; it sorts clips into bins, and is no measurement of a room.

    Args:
        waveform: (num_samples,) float32 at 16 kHz.
    """
    if not np.any(waveform):
        return Level(None, None)
    active = compute_active_power(waveform)
    loudness_dbfs = 10 * math.log10(active) if active > 0 else None
    num_frames = len(waveform) // FRAME_SAMPLES
    if num_frames < MIN_FRAMES or not active:
        return Level(loudness_dbfs, None)
    frames = waveform[: num_frames * FRAME_SAMPLES].reshape(num_frames, -1)
    background = float(np.percentile(np.square(frames).mean(axis=1, dtype=np.float64), BACKGROUND_PERCENTILE))
    speech = max(active - background, active * 1e-3)
    ratio_db = MAX_SNR_DB if background == 0 else 10 * math.log10(speech / background)
    return Level(loudness_dbfs, min(ratio_db, MAX_SNR_DB))


def with_levels(predictions: Sequence[Prediction], rows: Sequence[Row]) -> list[Prediction]:
    """Return the predictions with the levels of their clips, which are read again for it.

    Args:
        predictions: of `rows`, in their order.
        rows: the held-out rows.

    Raises:
        AudioError: if a clip cannot be read.
    """

    def measured(pair: tuple[Prediction, Row]) -> Prediction:
        prediction, row = pair
        waveform = load_waveform(
            encoded(row.audio),
            offset_s=row.offset_s,
            duration_s=row.duration_s,
            max_duration_s=None,
            name=str(row.audio),
        )
        level = measure_level(waveform)
        return replace(prediction, loudness_dbfs=level.loudness_dbfs, snr_db=level.snr_db)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(measured, zip(predictions, rows, strict=True)))
