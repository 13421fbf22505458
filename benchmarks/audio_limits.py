"""Small files that unpack to hours, and headers that claim gigabytes: what refusing them costs in time and memory.

    python -m benchmarks.audio_limits

Each file is read in a fresh process; the rise is from the process's peak before the call to its peak after it.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.damage import ENCODERS
from data.audio import AudioError, load_waveform
from data.probe import probe_duration_s

MAX_RISE_MIB = 300
RATE = 16_000


def silence(format: str, subtype: str, duration_s: int, *, rate: int = RATE, num_channels: int = 1) -> bytes:
    """Encode silence second by second, which costs no memory."""
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", rate, num_channels, subtype, format=format) as file:
        for _ in range(duration_s):
            file.write(np.zeros((rate, num_channels), np.int16))
    return target.getvalue()


def claim(format: str, marker: bytes, offset: int, value: bytes) -> bytes:
    """Encode a second of noise and write `value` over what its header says."""
    content = bytearray(ENCODERS[format](np.random.default_rng(0).normal(0, 0.1, (RATE, 1)).astype(np.float32), RATE))
    place = content.index(marker) + offset
    content[place : place + len(value)] = value
    return bytes(content)


FILES: dict[str, Callable[[], bytes]] = {
    "flac, 600 s of silence at 48 kHz": lambda: silence("FLAC", "PCM_16", 600, rate=48_000),
    "flac, 60 s of silence at 192 kHz in 8 channels": lambda: silence(
        "FLAC", "PCM_16", 60, rate=192_000, num_channels=8
    ),
    "ogg opus, 3600 s of silence": lambda: silence("OGG", "OPUS", 3600),
    "ogg opus, 100 streams of 60 s in a chain": lambda: b"".join(silence("OGG", "OPUS", 60) for _ in range(100)),
    "ogg vorbis, 600 s of silence": lambda: silence("OGG", "VORBIS", 600),
    "mp3, 600 s of silence": lambda: silence("MP3", "MPEG_LAYER_III", 600),
    "mp3, 600 s without a count of frames": lambda: (
        silence("MP3", "MPEG_LAYER_III", 600).replace(b"Xing", b"none", 1).replace(b"Info", b"none", 1)
    ),
    "m4a, 600 s of silence": lambda: ENCODERS["m4a"](np.zeros((600 * RATE, 1), np.float32), RATE),
    "webm, 600 s of silence": lambda: ENCODERS["webm"](np.zeros((600 * RATE, 1), np.float32), RATE),
    "wav, claims 4 GB": lambda: claim("wav", b"data", 4, struct.pack("<I", 0xFFFFFF00)),
    "wav, of unknown size": lambda: claim("wav", b"data", 4, struct.pack("<I", 0xFFFFFFFF)),
    "rf64, claims 2**62 bytes": lambda: claim("rf64", b"ds64", 16, struct.pack("<Q", 2**62)),
    "w64, claims 2**62 bytes": lambda: claim("w64", b"data", 16, struct.pack("<Q", 2**62)),
    "caf, claims 2**62 bytes": lambda: claim("caf", b"data", 4, struct.pack(">q", 2**62)),
    "aiff, claims 2**32 frames": lambda: claim("aiff", b"COMM", 10, struct.pack(">I", 2**32 - 1)),
    "au, claims 4 GB": lambda: claim("au", b".snd", 8, struct.pack(">I", 0xFFFFFF00)),
    "flac, claims 2**32 samples": lambda: claim("flac", b"fLaC", 22, struct.pack(">I", 2**32 - 1)),
    "wav, 3 s of stereo": lambda: silence("WAV", "PCM_16", 3, num_channels=2),
}


def read(path: Path, *, is_probe: bool) -> dict[str, Any]:
    """Read or probe one file; return what came of it, seconds and the rise of the peak in MiB."""
    before = _peak_mib()
    started = time.perf_counter()
    try:
        result = f"{probe_duration_s(path):.2f} s" if is_probe else f"accepted, shape {load_waveform(path).shape}"
    except AudioError as e:
        result = e.reason.code
    seconds = time.perf_counter() - started
    return {"result": result, "seconds": round(seconds, 3), "rise_mib": round(_peak_mib() - before, 1)}


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Measure and write `results/audio_limits.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read or arguments.probe:
        print(json.dumps(read(arguments.read or arguments.probe, is_probe=arguments.probe is not None)))
        return
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        for name, make in FILES.items():
            path.write_bytes(make())
            table[name] = {"bytes": path.stat().st_size}
            for verb in ("read", "probe"):
                command = [sys.executable, "-m", "benchmarks.audio_limits", f"--{verb}", str(path)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                table[name][verb] = json.loads(done.stdout)
            print(name, table[name])
    rise_mib = max(entry[verb]["rise_mib"] for entry in table.values() for verb in ("read", "probe"))
    from benchmarks.environment import write_result  # here, so that the readers do without torch

    write_result("audio_limits", {"max_rise_mib": rise_mib, "limit_mib": MAX_RISE_MIB, "files": table})


if __name__ == "__main__":
    main()
