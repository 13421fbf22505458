"""Damaged audio files, made in memory from a seed: 14 formats times 5 kinds of damage."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import av
import numpy as np
import soundfile

from data.audio import SAMPLING_RATE, load_waveform
from data.bitstreams import ogg_checksum

SEED = 20
NUM_ORIGINALS = 6  # of each format: lengths of 0.4 to 2.9 s, one or two channels
RATES = (8_000, 16_000, 22_050, 44_100, 48_000, 24_000)
OPUS_RATES = (8_000, 16_000, 24_000, 48_000, 12_000, 16_000)
DAMAGES = ("bit flips", "truncation", "header lie", "splice", "zero fill")


def _soundfile_encoder(format: str, subtype: str) -> Callable[[np.ndarray, int], bytes]:
    def encode(samples: np.ndarray, rate: int) -> bytes:
        target = io.BytesIO()
        soundfile.write(target, samples, rate, format=format, subtype=subtype)
        return target.getvalue()

    return encode


def _av_encoder(format: str, codec: str, rate: int) -> Callable[[np.ndarray, int], bytes]:
    def encode(samples: np.ndarray, source_rate: int) -> bytes:
        target = io.BytesIO()
        with av.open(target, "w", format=format) as container:
            layout = "stereo" if samples.shape[1] == 2 else "mono"
            stream = container.add_stream(codec, rate=rate)
            stream.layout = layout
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
            frame.sample_rate = source_rate
            resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
            frames = [*resampler.resample(frame), *resampler.resample(None)]
            for packet in [packet for frame in [*frames, None] for packet in stream.encode(frame)]:
                container.mux(packet)
        return target.getvalue()

    return encode


ENCODERS = {
    "wav": _soundfile_encoder("WAV", "PCM_16"),
    "wav float": _soundfile_encoder("WAVEX", "FLOAT"),
    "wav mu-law": _soundfile_encoder("WAV", "ULAW"),
    "rf64": _soundfile_encoder("RF64", "PCM_16"),
    "w64": _soundfile_encoder("W64", "PCM_16"),
    "aiff": _soundfile_encoder("AIFF", "PCM_16"),
    "au": _soundfile_encoder("AU", "PCM_16"),
    "caf": _soundfile_encoder("CAF", "PCM_16"),
    "flac": _soundfile_encoder("FLAC", "PCM_16"),
    "ogg vorbis": _soundfile_encoder("OGG", "VORBIS"),
    "ogg opus": _soundfile_encoder("OGG", "OPUS"),
    "mp3": _soundfile_encoder("MP3", "MPEG_LAYER_III"),
    "m4a": _av_encoder("mp4", "aac", 44_100),
    "webm": _av_encoder("webm", "libopus", 48_000),
}
# Where a header says what a lie would change: a marker, then (bytes from its first one, bytes of the field) each.
HEADER_FIELDS: dict[str, list[tuple[bytes, list[tuple[int, int]]]]] = {
    "wav": [(b"RIFF", [(4, 4)]), (b"fmt ", [(8, 2), (10, 2), (12, 4), (16, 4), (20, 2), (22, 2)]), (b"data", [(4, 4)])],
    "rf64": [
        (b"ds64", [(8, 8), (16, 8), (24, 8)]),
        (b"fmt ", [(8, 2), (10, 2), (12, 4), (20, 2)]),
        (b"data", [(4, 4)]),
    ],
    "w64": [(b"riff", [(16, 8)]), (b"fmt ", [(24, 2), (26, 2), (28, 4), (36, 2)]), (b"data", [(16, 8)])],
    "aiff": [(b"FORM", [(4, 4)]), (b"COMM", [(8, 2), (10, 4), (14, 2), (16, 2), (18, 4)]), (b"SSND", [(4, 4), (8, 4)])],
    "au": [(b".snd", [(4, 4), (8, 4), (12, 4), (16, 4), (20, 4)])],
    "caf": [(b"desc", [(12, 8), (28, 4), (32, 4), (36, 4), (40, 4)]), (b"data", [(4, 8)])],
    "flac": [(b"fLaC", [(8, 2), (10, 2), (18, 3), (20, 1), (22, 4)])],
    "ogg vorbis": [(b"OggS", [(5, 1), (6, 8), (18, 4), (26, 1)]), (b"\x01vorbis", [(7, 4), (11, 1), (12, 4)])],
    "ogg opus": [(b"OggS", [(5, 1), (6, 8), (18, 4), (26, 1)]), (b"OpusHead", [(8, 1), (9, 1), (10, 2), (18, 1)])],
    "mp3": [(b"\xff", [(1, 1), (2, 1)]), (b"Xing", [(4, 4), (8, 4), (12, 4)]), (b"Info", [(4, 4), (8, 4), (12, 4)])],
    "m4a": [
        (b"mdat", [(-4, 4)]),
        (b"moov", [(-4, 4)]),
        (b"mdhd", [(16, 4), (20, 4)]),
        *((id, [(-4, 4), (8, 4), (12, 4)]) for id in (b"stsz", b"stco", b"stsc", b"stts", b"stsd")),
        (b"mp4a", [(20, 2), (28, 4)]),
    ],
    "webm": [
        (b"\x18\x53\x80\x67", [(4, 8)]),
        (b"\x44\x89", [(3, 8)]),
        (b"\xe1", [(0, 3)]),
        (b"\x1f\x43\xb6\x75", [(4, 4)]),
    ],
}


@cache
def originals(format: str) -> tuple[tuple[bytes, float], ...]:
    """Encode the undamaged files of a format; return each with its length as decoded, in seconds."""
    made = []
    for i in range(NUM_ORIGINALS):
        rng = np.random.default_rng([SEED, i])
        rate = OPUS_RATES[i] if format == "ogg opus" else RATES[i]
        num_samples = round((0.4 + 0.5 * i) * rate)
        t = np.arange(num_samples)[:, None] / rate
        samples = 0.3 * np.sin(2 * np.pi * (200 + 60 * i) * t * (1 + 0.1 * np.sin(5 * t)))
        samples = np.tile(samples, (1, 1 + i % 2)) + rng.normal(0, 0.02, (num_samples, 1 + i % 2))
        content = ENCODERS[format](samples.astype(np.float32), rate)
        made.append((content, len(load_waveform(content)) / SAMPLING_RATE))
    return tuple(made)


def damage(format: str, kind: str, number: int) -> tuple[bytes, float]:
    """Make one damaged file; return it and the length of the original in seconds."""
    rng = np.random.default_rng([SEED, list(ENCODERS).index(format), DAMAGES.index(kind), number])
    content, duration_s = originals(format)[int(rng.integers(NUM_ORIGINALS))]
    damaged = bytearray(content)
    start, end = sorted(int(x) for x in rng.integers(0, len(damaged) + 1, 2))
    if kind == "bit flips":
        for position in rng.integers(0, len(damaged), int(2 ** rng.integers(0, 7))):
            damaged[position] ^= 1 << int(rng.integers(8))
    elif kind == "truncation":
        del damaged[int(rng.integers(len(damaged))) :]
    elif kind == "header lie":
        _lie(damaged, format, rng)
    elif kind == "splice":
        other = originals(format)[int(rng.integers(NUM_ORIGINALS))][0]
        damaged[start:end] = other[start : start + int(rng.integers(0, len(damaged)))]
    else:
        damaged[start:end] = bytes(end - start)
    return bytes(damaged), duration_s


def _lie(content: bytearray, format: str, rng: np.random.Generator) -> None:
    fields = HEADER_FIELDS[format.split(" ")[0] if format.startswith("wav") else format]
    places = [(place, field) for marker, listed in fields for place in _find_all(content, marker) for field in listed]
    marker_at, (offset, width) = places[int(rng.integers(len(places)))]
    position = marker_at + offset
    order = "little" if format.split(" ")[0] in ("wav", "rf64", "w64", "ogg") else "big"
    top = (1 << 8 * width) - 1
    stated = int.from_bytes(content[position : position + width], order)
    noise = int.from_bytes(rng.bytes(width))
    lies = (0, 1, top, top >> 1, stated * 2, stated // 2, stated + 1, stated - 1, stated + 1000, noise)
    lie = lies[int(rng.integers(len(lies)))] & top
    content[position : position + width] = lie.to_bytes(width, order)
    if format.startswith("ogg"):
        page_at = content.rfind(b"OggS", 0, position)
        page_end = content.find(b"OggS", page_at + 4)
        page = bytes(content[page_at : page_end if page_end > 0 else len(content)])
        content[page_at + 22 : page_at + 26] = ogg_checksum(page)


def _find_all(content: bytearray, marker: bytes) -> list[int]:
    found = [content.find(marker)]
    while found[-1] >= 0 and len(found) < 8:
        found.append(content.find(marker, found[-1] + 1))
    return [place for place in found if place >= 0]
