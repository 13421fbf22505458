"""Codecs: a clip as it comes out of a telephone line or a file of low bit rate, at its own length and place."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from data.audio import SAMPLING_RATE, Waveform
from data.level import fit_full_scale

TELEPHONE_RATE = 8_000  # Hz
GSM_BLOCK = 320  # samples in a block of the WAV file, two frames of 20 ms
INT16_FULL_SCALE = 32767.0


@dataclass(frozen=True)
class LowRateCodec:
    """A codec of FFmpeg's libraries, and the bit rates that are drawn."""

    encoder: str
    decoder: str
    sample_format: str
    kbits_per_s: tuple[int, ...]
    """Each that the encoder knows at 16 kHz and that is heard as such."""
    options: tuple[tuple[str, str], ...] = ()


TELEPHONE = {"mulaw": "ULAW", "gsm": "GSM610"}
"""Names of libsndfile: G.711 at 64 kbit/s, and GSM 06.10 full rate at 13 kbit/s."""

LOW_RATE = {
    # Half the effort takes two thirds of the time, and loses far less of the sound than the next lower bit rate does:
    # Opus complexity 5 of 10; LAME quality 7, where 0 is the best and 9 the worst.
    "opus": LowRateCodec("libopus", "libopus", "s16", (6, 8, 12, 16, 24), (("compression_level", "5"),)),
    "mp3": LowRateCodec("libmp3lame", "mp3float", "s16p", (8, 16, 24, 32), (("compression_level", "7"),)),
}
CODECS = (*TELEPHONE, *LOW_RATE)


def verify_codecs(names: tuple[str, ...]) -> None:
    """Check that the libraries of this machine have the codecs.

    Raises:
        ValueError: for a name that is none of `CODECS`.
        RuntimeError: for one that FFmpeg's libraries here were built without.
    """
    for name in names:
        if name not in CODECS:
            raise ValueError(f"augment.codecs={name} must be among {', '.join(CODECS)}")
        if name in LOW_RATE and not {LOW_RATE[name].encoder, LOW_RATE[name].decoder} <= av.codecs_available:
            others = ",".join(other for other in names if other != name)
            raise RuntimeError(f"PyAV here has no {LOW_RATE[name].encoder}; use augment.codecs=[{others}]")


def pass_codec(waveform: Waveform, name: str, rng: np.random.Generator) -> Waveform:
    """Encode a clip and decode it again.

    Args:
        waveform: (num_samples,) float32 at 16 kHz, in [-1, 1].
        name: one of `CODECS`.
        rng: draws the bit rate, where the codec has more than one.

    Returns:
        (num_samples,) float32 at 16 kHz, in [-1, 1], without the codec's delay.
    """
    if name in TELEPHONE:
        decoded = _pass_telephone(waveform, TELEPHONE[name])
    else:
        codec = LOW_RATE[name]
        decoded = _pass_low_rate(waveform, codec, int(rng.choice(codec.kbits_per_s)))
    return fit_full_scale(decoded)


def _pass_telephone(waveform: Waveform, subtype: str) -> Waveform:
    narrow = soxr.resample(waveform, SAMPLING_RATE, TELEPHONE_RATE, quality="HQ")
    padded = np.pad(narrow, (0, -len(narrow) % GSM_BLOCK))
    file = io.BytesIO()
    soundfile.write(file, np.clip(padded, -1.0, 1.0), TELEPHONE_RATE, format="WAV", subtype=subtype)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return _fit_length(soxr.resample(decoded, TELEPHONE_RATE, SAMPLING_RATE, quality="HQ"), len(waveform))


def _pass_low_rate(waveform: Waveform, codec: LowRateCodec, kbits_per_s: int) -> Waveform:
    encoder = av.CodecContext.create(codec.encoder, "w")
    encoder.sample_rate = SAMPLING_RATE
    encoder.layout = "mono"
    encoder.format = codec.sample_format
    encoder.bit_rate = 1000 * kbits_per_s
    encoder.options = dict(codec.options)
    encoder.open()
    decoder = av.CodecContext.create(codec.decoder, "r")
    decoder.sample_rate = SAMPLING_RATE
    decoder.layout = "mono"
    decoder.extradata = encoder.extradata  # tells the decoder the delay, which it drops from the beginning

    # Whole frames, and some more to push the last samples through both delays.
    frame_size = encoder.frame_size
    padding = -len(waveform) % frame_size + 4 * frame_size
    samples = np.pad(np.round(np.clip(waveform, -1.0, 1.0) * INT16_FULL_SCALE).astype(np.int16), (0, padding))
    packets = []
    for start in range(0, len(samples), frame_size):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + frame_size], codec.sample_format, "mono")
        frame.sample_rate = SAMPLING_RATE
        frame.pts = start
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    decoded = np.concatenate([_to_float(frame.to_ndarray()[0]) for frame in frames])
    if frames[0].sample_rate != SAMPLING_RATE:  # Opus always comes out at 48 kHz
        decoded = soxr.resample(decoded, frames[0].sample_rate, SAMPLING_RATE, quality="HQ")
    return _fit_length(decoded, len(waveform))


def _to_float(samples: npt.NDArray[np.int16] | Waveform) -> Waveform:
    scale = np.float32(INT16_FULL_SCALE) if samples.dtype == np.int16 else np.float32(1.0)
    return samples.astype(np.float32) / scale


def _fit_length(decoded: Waveform, num_samples: int) -> Waveform:
    assert len(decoded) >= num_samples - 1, "the codec lost more than the rounding of a resampler"
    return np.pad(decoded[:num_samples], (0, max(0, num_samples - len(decoded))))
