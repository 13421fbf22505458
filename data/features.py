"""Log-mel features, equal to Whisper's, for windows of any length.

Shapes: `B` clips, `M` mel bins, `F` mel frames (100 a second).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from data.audio import SAMPLING_RATE, Waveform

N_FFT = 400  # samples, 25 ms
HOP_LENGTH = 160  # samples, 10 ms
FRAMES_PER_S = SAMPLING_RATE // HOP_LENGTH
MAX_WINDOW_S = 30  # the encoder of every Whisper has positions for 30 s and no more
MEL_FLOOR = 1e-10
DYNAMIC_RANGE = 8.0  # decades below the loudest cell of the clip; Whisper clips the rest
HALF = N_FFT // 2


class LogMel:
    """Compute Whisper's log-mel features of a window that may be shorter than 30 s.

    The features of a short window equal the first frames of the 30 s ones, because a clip is padded with silence in
    both. Frames that hear nothing but padding are filled in, not computed.

    Source: `WhisperFeatureExtractor` of transformers; openai/whisper `audio.py`.
    """

    def __init__(self, num_mel_bins: int) -> None:
        """Build the filters for 80 bins (up to large-v2) or 128 (large-v3)."""
        self.num_mel_bins = num_mel_bins
        filters = mel_filter_bank(
            num_frequency_bins=1 + HALF,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=SAMPLING_RATE / 2,
            sampling_rate=SAMPLING_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters = torch.from_numpy(np.ascontiguousarray(filters.T)).float()
        self._window = torch.hann_window(N_FFT)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, waveform: Waveform, *, num_frames: int) -> Tensor:
        """Compute the features of one clip.

        Args:
            waveform: (num_samples,) float32 at 16 kHz; at most `num_frames` * 160 samples.
            num_frames: frames of the window, 100 a second.

        Returns:
            (M, F) float32.

        Raises:
            ValueError: if the waveform is not one float channel, is not finite, or does not fit the window.
        """
        _verify_waveform(waveform, num_frames)
        num_samples = len(waveform)
        is_whole = num_frames == MAX_WINDOW_S * FRAMES_PER_S
        # A frame hears samples t*160-200 .. t*160+199: those past this one hear only padding.
        # The two behind a full short window are computed too: the loudest cell, which sets the floor, may lie there.
        num_heard = min(MAX_WINDOW_S * FRAMES_PER_S, math.ceil((num_samples + HALF) / HOP_LENGTH))
        padded = torch.zeros((num_heard - 1) * HOP_LENGTH + N_FFT)
        signal = torch.from_numpy(waveform)
        fits = min(num_samples, len(padded) - HALF)
        padded[HALF : HALF + fits] = signal[:fits]
        # Whisper mirrors the signal at both ends of the 30 s window; a shorter window goes on in silence there.
        padded[:HALF] = padded[HALF + 1 : N_FFT + 1].flip(0)
        overhang = len(padded) - HALF - MAX_WINDOW_S * SAMPLING_RATE
        if is_whole and overhang > 0:
            end = HALF + MAX_WINDOW_S * SAMPLING_RATE
            padded[end:] = padded[end - 1 - overhang : end - 1].flip(0)
        spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, window=self._window, center=False, return_complex=True)
        power = _power(spectrum)
        heard = (self._filters @ power).clamp_min_(MEL_FLOOR).log10_()
        floor = max(float(heard.max()) - DYNAMIC_RANGE, math.log10(MEL_FLOOR))
        log_mel = torch.full((self.num_mel_bins, num_frames), floor)
        log_mel[:, :num_heard] = heard[:, :num_frames].clamp_min_(floor)
        return log_mel.add_(4.0).div_(4.0)

    def on_device(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Compute the features of a batch where it lies; equal to one call for each clip.

        Args:
            waveforms: (B, num_frames * 160) float32 at 16 kHz, zero behind each clip's end.
            num_samples: (B,) length of each clip.

        Returns:
            (B, M, F) float32 on the device of `waveforms`.
        """
        num_frames = waveforms.shape[1] // HOP_LENGTH
        is_whole = num_frames == MAX_WINDOW_S * FRAMES_PER_S
        # Two frames behind a short window can hear its end, and the loudest cell may lie there.
        num_computed = num_frames if is_whole else num_frames + 2
        padded = torch.nn.functional.pad(waveforms, (HALF, HALF + (0 if is_whole else 2 * HOP_LENGTH)))
        padded[:, :HALF] = padded[:, HALF + 1 : N_FFT + 1].flip(1)
        if is_whole:
            padded[:, -HALF:] = padded[:, -N_FFT - 1 : -HALF - 1].flip(1)
        device = waveforms.device
        if device not in self._on:  # copied once: a copy from pageable memory waits for the device
            self._on[device] = self._window.to(device), self._filters.to(device)
        window, filters = self._on[device]
        spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True)
        power = _power(spectrum[:, :, :num_computed])
        log_mel = (filters @ power).clamp_min_(MEL_FLOOR).log10_()
        floor = (log_mel.amax(dim=(1, 2), keepdim=True) - DYNAMIC_RANGE).clamp_min(math.log10(MEL_FLOOR))
        # Frames past those that hear the clip are filled in, as in one call for a clip, whatever rounding left there.
        frames = torch.arange(num_computed, device=waveforms.device)
        is_heard = frames < ((num_samples + HALF + HOP_LENGTH - 1) // HOP_LENGTH)[:, None]
        log_mel = torch.where(is_heard[:, None], torch.maximum(log_mel, floor), floor)
        return log_mel[:, :, :num_frames].add_(4.0).div_(4.0)

    def batch(self, waveforms: Sequence[Waveform], *, num_frames: int) -> Tensor:
        """Compute the features of several clips, (B, M, F) float32."""
        return torch.stack([self(waveform, num_frames=num_frames) for waveform in waveforms])


def _power(spectrum: Tensor) -> Tensor:
    """Return the squared magnitude; four times as fast as squaring and summing over the pair."""
    parts = torch.view_as_real(spectrum)
    real, imaginary = parts[..., 0], parts[..., 1]
    return real.square().addcmul_(imaginary, imaginary)


def _verify_waveform(waveform: Waveform, num_frames: int) -> None:
    if waveform.ndim != 1:
        raise ValueError(f"a waveform has one axis, found shape {waveform.shape}; mix the channels to mono first")
    if waveform.dtype != np.float32:
        raise ValueError(f"a waveform is float32 in [-1, 1], found {waveform.dtype}")
    if len(waveform) == 0:
        raise ValueError("the waveform has no samples")
    if len(waveform) > num_frames * HOP_LENGTH:
        found_s, window_s = len(waveform) / SAMPLING_RATE, num_frames / FRAMES_PER_S
        raise ValueError(f"a clip of {found_s:.2f} s does not fit a window of {window_s:g} s, and is never cut")
    if not np.isfinite(waveform).all():
        raise ValueError("the waveform holds NaN or infinite samples")
