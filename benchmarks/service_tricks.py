"""What people send who mean harm: each is refused, costs little memory, and reaches no other file."""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.environment import PROJECT
from benchmarks.service_clients import Answer, Client, build_request
from benchmarks.service_process import MemoryWatch, Service

CORPUS = PROJECT / "data" / "demo" / "corpus" / "clinic" / "audio"
MAX_RISE_MIB = 300.0
BOMB_S = 2400
NUM_PARTS = 1_000_000
BOUNDARY = "b"


def flac_bomb(path: Path) -> tuple[bytes, float]:
    """Return a FLAC file that unpacks to 40 minutes of eight channels, and how many times its size that is."""
    silence = np.zeros((48_000 * 60, 8), dtype=np.int16)
    with soundfile.SoundFile(path, "w", 48_000, 8, subtype="PCM_16", format="FLAC") as file:
        for _ in range(BOMB_S // 60):
            file.write(silence)
    packed = path.read_bytes()
    return packed, BOMB_S * 48_000 * 8 * 2 / len(packed)


def lying_wav() -> bytes:
    """Return a WAV file whose header promises 4 GB of samples, before 1 KB of them."""
    header = (
        b"RIFF" + struct.pack("<I", 0xFFFFFFF0) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    )
    return header + b"data" + struct.pack("<I", 0xFFFFFF00) + b"\x01\x02" * 512


def wide_wav() -> bytes:
    """Return a WAV file of 65,535 channels."""
    header = b"RIFF" + struct.pack("<I", 36 + 131_070) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 65_535, 16_000, 2_097_120_000 & 0xFFFFFFFF, 65_534, 16)
    return header + b"data" + struct.pack("<I", 131_070) + bytes(131_070)


def many_parts(max_bytes: int) -> bytes:
    """Return a form of a million parts, or of as many as fit."""
    part = f'--{BOUNDARY}\r\nContent-Disposition:form-data;name="a"\r\n\r\n\r\n'.encode()
    body = part * min(NUM_PARTS, max_bytes // len(part)) + f"--{BOUNDARY}--\r\n".encode()
    return _request(body)


def many_headers() -> bytes:
    """Return a form whose one part has a header of megabytes."""
    body = f"--{BOUNDARY}\r\n".encode() + b"X-A: b\r\n" * 500_000
    return _request(body + f'Content-Disposition: form-data; name="a"\r\n\r\n\r\n--{BOUNDARY}--\r\n'.encode())


def _request(body: bytes, *, length: int | None = None) -> bytes:
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length or len(body)}\r\n"
    return head.encode() + f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode() + body


async def measure_tricks(service: Service, arguments: argparse.Namespace) -> dict[str, Any]:
    """Send each, watch memory and files, and see that a good clip is understood afterwards."""
    clip = sorted(CORPUS.glob("en-*-test-*.ogg"))[0].read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bomb, times = await asyncio.to_thread(flac_bomb, folder / "bomb.flac")
        secret = folder / "secret.wav"
        soundfile.write(secret, np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
        requests = {
            f"flac_{times:.0f}x": build_request(bomb, name="bomb.flac"),
            "lying_wav": build_request(lying_wav(), name="a.wav"),
            "channels_65535": build_request(wide_wav(), name="a.wav"),
            "parts_1000000": many_parts(1 << 30),
            "parts_that_fit_25_mb": many_parts(24_900_000),
            "part_headers": many_headers(),
            "upload_26_mb": build_request(bytes(26_000_000)),
            "playlist_m3u8": build_request(f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode(), name="a.wav"),
            "concat_script": build_request(f"ffconcat version 1.0\nfile {secret}\n".encode(), name="a.ogg"),
            "sdp": build_request(b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n", name="a.wav"),
            "svg": build_request(b'<svg xmlns="http://www.w3.org/2000/svg"/>', name="a.mp3"),
            "url": _request(
                f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"\r\n\r\nhttp://127.0.0.1/\r\n'
                f"--{BOUNDARY}--\r\n".encode()
            ),
        }
        accessed_ns = secret.stat().st_atime_ns
        found: dict[str, Any] = {"asked": {"rise_mib": MAX_RISE_MIB}, "tricks": {}}
        for trick, request in requests.items():
            found["tricks"][trick] = await _try(service, request)
            print(trick, found["tricks"][trick], flush=True)
        bombs = build_request(bomb, name="bomb.flac")
        with MemoryWatch(service) as watch:
            answers = await asyncio.gather(*(Client(service.port).ask(bombs) for _ in range(8)))
        found["eight_bombs_at_once"] = {"statuses": [a.status for a in answers], "rise_mib": watch.rise_mib}
        found["path_in_name"] = await _path_in_name(service, clip, folder)
        found["secret_was_read"] = secret.stat().st_atime_ns != accessed_ns
    found["afterwards"] = (await Client(service.port).ask(build_request(clip))).status
    found["uploads_left"] = service.uploads()
    statuses = [trick["status"] for trick in found["tricks"].values()] + found["eight_bombs_at_once"]["statuses"]
    rises = [trick["rise_mib"] for trick in found["tricks"].values()] + [found["eight_bombs_at_once"]["rise_mib"]]
    found["rise_mib"] = max(rises)
    found["is_met"] = (
        all(400 <= status < 500 for status in statuses)
        and max(rises) <= MAX_RISE_MIB
        and not found["secret_was_read"]
        and found["path_in_name"]["is_safe"]
        and found["afterwards"] == 200
        and not found["uploads_left"]
    )
    return found


async def _try(service: Service, request: bytes) -> dict[str, Any]:
    with MemoryWatch(service) as watch:
        begin = time.perf_counter()
        answer = await Client(service.port).ask(request)
        elapsed_s = time.perf_counter() - begin
    return {
        "status": answer.status,
        "says": _message(answer),
        "elapsed_s": round(elapsed_s, 2),
        "rise_mib": watch.rise_mib,
    }


def _message(answer: Answer) -> str:
    import json

    try:
        return str(json.loads(answer.body)["error"]["message"])[:120]
    except (ValueError, KeyError):
        return answer.body[:80].decode("utf-8", "replace")


async def _path_in_name(service: Service, clip: bytes, folder: Path) -> dict[str, Any]:
    """A good clip under names that are paths: it is understood, and nothing is written there."""
    target = folder / "written.wav"
    names = [str(target), os.path.relpath(target, PROJECT), "..\\..\\x.wav", 'a\\"; name=\\"b', "x" * 4000]
    before = sorted(PROJECT.iterdir())
    statuses = [(await Client(service.port).ask(build_request(clip, name=name))).status for name in names]
    is_safe = not target.exists() and sorted(PROJECT.iterdir()) == before
    return {"statuses": statuses, "is_safe": is_safe}
