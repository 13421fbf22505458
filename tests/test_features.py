"""Log-mel features equal those of transformers at 30 s, and a short window equals the first frames of the 30 s one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tone
from torch import Tensor
from transformers import WhisperFeatureExtractor

from data.audio import SAMPLING_RATE
from data.features import LogMel

FULL = 3000
SPECIAL = {
    "silence": np.zeros(48_000, np.float32),
    "constant": np.full(48_000, 0.25, np.float32),
    "click at the start": np.eye(1, 16_000, 0, dtype=np.float32)[0],
    "click at the end": np.eye(1, 32_000, 31_999, dtype=np.float32)[0],
    "loud": np.sign(tone(1.0)),
    "one sample": np.array([0.5], np.float32),
    "noise to 30 s": np.random.default_rng(0).normal(0, 0.1, 480_000).astype(np.float32),
    "click at 30 s": np.eye(1, 480_000, 479_999, dtype=np.float32)[0],
}


def _reference(waveform: np.ndarray, num_mel_bins: int) -> Tensor:
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    return extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features[0]


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("duration_s", [0.1, 0.3057, 1.0, 5.0, 12.345, 29.985, 29.99, 29.9999, 30.0])
def test_equals_transformers_at_30_s(duration_s: float, num_mel_bins: int) -> None:
    waveform = tone(duration_s)
    log_mel = LogMel(num_mel_bins)(waveform, num_frames=FULL)
    expected = _reference(waveform, num_mel_bins)
    assert log_mel.shape == (num_mel_bins, FULL)
    assert log_mel.dtype == torch.float32
    torch.testing.assert_close(log_mel, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("name", list(SPECIAL))
def test_equals_transformers_on_odd_signals(name: str, num_mel_bins: int) -> None:
    log_mel = LogMel(num_mel_bins)(SPECIAL[name], num_frames=FULL)
    torch.testing.assert_close(log_mel, _reference(SPECIAL[name], num_mel_bins), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("num_frames", "num_samples"),
    [(100, 1600), (100, 15_999), (100, 16_000), (200, 20_000), (500, 79_900), (500, 80_000), (2998, 479_680)],
)
def test_short_window_is_the_beginning_of_the_30_s_window(num_frames: int, num_samples: int) -> None:
    waveform = tone(num_samples / SAMPLING_RATE)
    log_mel = LogMel(80)
    short = log_mel(waveform, num_frames=num_frames)
    torch.testing.assert_close(short, log_mel(waveform, num_frames=FULL)[:, :num_frames], atol=0, rtol=0)
    torch.testing.assert_close(short, _reference(waveform, 80)[:, :num_frames], atol=1e-5, rtol=0)


@pytest.mark.parametrize("last", [1, 20, 160])
def test_the_loudest_frame_may_lie_behind_a_full_short_window(last: int) -> None:
    """A click in the last samples is heard best by frames that the window no longer has, and still sets the floor."""
    waveform = np.zeros(16_000, np.float32)
    waveform[:4000] = 1e-5 * tone(0.25)
    waveform[-last] = 1.0
    short = LogMel(80)(waveform, num_frames=100)
    torch.testing.assert_close(short, _reference(waveform, 80)[:, :100], atol=1e-5, rtol=0)


def test_a_click_in_the_second_half_moves_only_the_frames_that_hear_it() -> None:
    quiet = tone(1.0)
    clicked = quiet.copy()
    clicked[8000] += 0.01
    log_mel = LogMel(80)
    changed = (log_mel(quiet, num_frames=100) != log_mel(clicked, num_frames=100)).any(0).nonzero().flatten()
    assert (changed.min(), changed.max()) == (49, 51)


def test_batch_is_the_clips_one_by_one() -> None:
    waveforms = [tone(0.5, hz=300), tone(1.0, hz=500), tone(0.77, hz=900)]
    log_mel = LogMel(80)
    batch = log_mel.batch(waveforms, num_frames=100)
    assert batch.shape == (3, 80, 100)
    for i, waveform in enumerate(waveforms):
        assert torch.equal(batch[i], log_mel(waveform, num_frames=100))


def test_a_view_and_a_read_only_array_are_left_as_they_are() -> None:
    samples = tone(2.0)
    before = samples.copy()
    LogMel(80)(samples[::2], num_frames=100)
    np.testing.assert_array_equal(samples, before)
    torch.testing.assert_close(
        LogMel(80)(samples[::2], num_frames=100), LogMel(80)(samples[::2].copy(), num_frames=100), atol=0, rtol=0
    )


BAD = {
    "stereo": (np.zeros((16_000, 2), np.float32), "one axis"),
    "batched": (np.zeros((1, 16_000), np.float32), "one axis"),
    "int16": (np.zeros(16_000, np.int16), "float32"),
    "float64": (np.zeros(16_000), "float32"),
    "NaN": (np.full(16_000, np.nan, np.float32), "NaN"),
    "infinite": (np.full(16_000, np.inf, np.float32), "NaN"),
    "empty": (np.zeros(0, np.float32), "no samples"),
    "too long": (np.zeros(16_001, np.float32), "never cut"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_no_clip_is_refused(name: str) -> None:
    waveform, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        LogMel(80)(waveform, num_frames=100)


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize(("num_frames", "lengths"), [(200, [100, 16_000, 32_000]), (3000, [400, 479_900, 480_000])])
def test_a_batch_on_the_device_equals_clip_by_clip(num_mel_bins: int, num_frames: int, lengths: list[int]) -> None:
    log_mel = LogMel(num_mel_bins)
    waveforms = [tone(length / 16_000, seed=length)[:length] for length in lengths]
    padded = torch.zeros(len(lengths), num_frames * 160)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    found = log_mel.on_device(padded.clone(), torch.tensor(lengths))
    expected = log_mel.batch(waveforms, num_frames=num_frames)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 2e-5
