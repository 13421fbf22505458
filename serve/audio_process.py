"""A process that decodes audio files, one after the other, and can do nothing else.

Decoders are the part of a service that strangers' bytes reach first. They run here, with little memory and few rights;
the service ends this process when it takes too long, and starts another. It speaks JSON and samples, never pickles.

    python -m serve.audio_process FD
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data.audio import AudioError, load_waveform

NICE = 5  # the process that answers /health goes first
MAX_OPEN_FILES = 64


def main() -> None:
    """Answer requests until the other end is closed."""
    # Ctrl-C reaches the whole group; the service says when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    os.nice(NICE)
    connection.send_bytes(b"ready")
    memory_mib: int | None = None
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        if memory_mib is None:
            memory_mib = int(request["memory_mib"])
            _limit(memory_mib)
        answer, samples = _decode(Path(request["path"]), float(request["max_duration_s"]))
        connection.send_bytes(json.dumps(answer).encode())
        if samples is not None:
            connection.send_bytes(samples)


def _decode(path: Path, max_duration_s: float) -> tuple[dict[str, Any], bytes | memoryview | None]:
    try:
        waveform = load_waveform(path, max_duration_s=max_duration_s, name="the upload")
    except AudioError as e:
        return {
            "error": e.reason.code,
            "message": e.reason.message,
            "detail": e.detail.removeprefix("the upload: "),
        }, None
    except MemoryError:
        return {"error": "memory", "message": "decoding needs more memory than is allowed", "detail": ""}, None
    return {"num_samples": len(waveform)}, waveform.data.cast("B")


def _limit(memory_mib: int) -> None:
    """Take away what decoding does not need; memory counts from what is mapped now, which is mostly libraries."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it never writes a file
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))


if __name__ == "__main__":
    main()
