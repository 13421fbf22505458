"""A codec keeps length and place, cuts what it cuts, and gives the same samples every time."""

from __future__ import annotations

import numpy as np
import pytest

from data.audio import SAMPLING_RATE
from data.codec import CODECS, LOW_RATE, TELEPHONE, pass_codec, verify_codecs
from data.noise import make_noise


def voice(duration_s: float, *, seed: int = 0) -> np.ndarray:
    """Return noise that swells like syllables over the band of a voice, (num_samples,) float32."""
    num_samples = round(duration_s * SAMPLING_RATE)
    noise = make_noise(num_samples, -0.5, np.random.default_rng(seed))
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(num_samples) / SAMPLING_RATE)
    return (0.1 * noise * swell).astype(np.float32)


def _lag(waveform: np.ndarray, decoded: np.ndarray) -> int:
    """Return by how many samples the second comes later, from the peak of their cross-correlation."""
    size = 2 * len(waveform)
    product = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(waveform, size))
    peak = int(np.fft.irfft(product, size).argmax())
    return peak if peak < size // 2 else peak - size


@pytest.mark.parametrize("name", CODECS)
def test_nothing_is_delayed(name: str):
    for seed in range(6):
        waveform = voice(1.5, seed=seed)
        decoded = pass_codec(waveform, name, np.random.default_rng(seed))
        # Opus below 12 kbit/s delays some bands by parts of a sample; 1 is 63 millionths of a second.
        assert abs(_lag(waveform, decoded)) <= (1 if name == "opus" else 0)


@pytest.mark.parametrize("name", CODECS)
def test_the_length_is_kept_and_the_speech_recognisable_to_its_end(name: str):
    rng = np.random.default_rng(0)
    for num_samples in [1600, 1601, 4800, *rng.integers(1600, 40_000, 12).tolist()]:
        waveform = voice(num_samples / SAMPLING_RATE, seed=num_samples)
        decoded = pass_codec(waveform, name, rng)
        assert decoded.shape == (num_samples,)
        assert decoded.dtype == np.float32
    waveform = voice(2.125)
    waveform[-2000:] = voice(0.625)[1000:3000]  # no silence at the end
    decoded = pass_codec(waveform, name, rng)
    for part in (slice(0, 4000), slice(-2000, None)):
        assert np.corrcoef(np.abs(waveform[part]), np.abs(decoded[part]))[0, 1] > 0.3


@pytest.mark.parametrize("name", CODECS)
def test_hard_input_stays_finite_and_within_full_scale(name: str):
    rng = np.random.default_rng(0)
    square = np.sign(voice(0.5)).astype(np.float32)
    impulse = np.zeros(8000, np.float32)
    impulse[4000] = 1.0
    white = rng.uniform(-1, 1, 8000).astype(np.float32)
    for waveform in (square, impulse, white, np.zeros(8000, np.float32), np.ones(8000, np.float32)):
        decoded = pass_codec(waveform, name, rng)
        assert np.isfinite(decoded).all()
        assert np.abs(decoded).max() <= 1.0


@pytest.mark.parametrize("name", TELEPHONE)
def test_a_telephone_passes_nothing_above_4_khz(name: str):
    waveform = (0.1 * make_noise(SAMPLING_RATE, 0.0, np.random.default_rng(0))).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(pass_codec(waveform, name, np.random.default_rng(0)))))
    hz = np.fft.rfftfreq(SAMPLING_RATE, 1 / SAMPLING_RATE)
    assert power[hz > 4200].sum() < 1e-3 * power[hz < 3400].sum()
    assert power[(hz > 500) & (hz < 3000)].mean() > 100 * power[hz > 4200].mean()


@pytest.mark.parametrize("name", CODECS)
def test_the_same_draw_gives_the_same_samples(name: str):
    waveform = voice(0.7)
    first, again = (pass_codec(waveform, name, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, waveform)


@pytest.mark.parametrize("name", LOW_RATE)
def test_more_bits_lose_less(name: str):
    waveform = voice(2.0)
    errors = {}
    for seed in range(30):
        decoded = pass_codec(waveform, name, np.random.default_rng(seed))
        errors[round(float(np.square(decoded - waveform).mean()), 9)] = None
    assert len(errors) == len(LOW_RATE[name].kbits_per_s)  # every rate is drawn
    assert min(errors) < 0.5 * max(errors)


def test_mu_law_is_that_of_g711():
    """Against the formula at 8 bits, on samples that need no resampling filter: a slow sine."""
    waveform = (0.5 * np.sin(2 * np.pi * 200 * np.arange(SAMPLING_RATE) / SAMPLING_RATE)).astype(np.float32)
    decoded = pass_codec(waveform, "mulaw", np.random.default_rng(0))
    inner = slice(1000, -1000)
    noise = decoded[inner] - waveform[inner]
    ratio_db = 10 * np.log10(np.square(waveform[inner]).mean() / np.square(noise).mean())
    assert 36 < ratio_db < 44  # G.711 gives 38 dB in the voice band; the filter back to 16 kHz keeps half the noise


def test_an_unknown_codec_or_a_missing_library_says_what_to_type(monkeypatch):
    verify_codecs(CODECS)
    with pytest.raises(ValueError, match=r"augment\.codecs=amr must be among mulaw, gsm, opus, mp3"):
        verify_codecs(("mulaw", "amr"))
    monkeypatch.setattr("av.codecs_available", {"mp3float", "libmp3lame"})
    with pytest.raises(RuntimeError, match=r"no libopus; use augment\.codecs=\[gsm,mp3\]"):
        verify_codecs(("gsm", "opus", "mp3"))
