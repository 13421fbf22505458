"""Audio files decoded in processes of their own, within limits of memory and time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from data.audio import Waveform
from data.reasons import Reason
from serve.errors import ServiceError
from serve.settings import ServeSettings

NUM_TRIES = 2  # the process may have ended before it had this file; twice is the file's fault
START_S = 60.0  # that a process may take for its imports
PROJECT = Path(__file__).resolve().parents[1]


class AudioPool:
    """A few decoding processes; whoever comes first gets one."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._idle: asyncio.Queue[_AudioProcess] = asyncio.Queue()
        self._all: list[_AudioProcess] = []
        self._threads = ThreadPoolExecutor(settings.decoders, thread_name_prefix="audio")

    async def start(self) -> None:
        """Start the processes."""
        for _ in range(self._settings.decoders):
            process = _AudioProcess(self._settings)
            self._all.append(process)
            self._idle.put_nowait(process)

    async def stop(self) -> None:
        """End them, whatever they do."""
        for process in self._all:
            process.end()
        self._threads.shutdown(wait=True)

    async def decode(self, path: Path) -> Waveform:
        """Return a recording as a waveform.

        Args:
            path: of a file that is only read.

        Raises:
            ServiceError: 400 if it is no audio, too long, or needs too much time or memory.
        """
        process = await self._idle.get()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, process.decode, path)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            process.kill()  # nobody waits for the rest; the thread sees the end and returns
            with contextlib.suppress(Exception):
                await work
            raise
        finally:
            self._idle.put_nowait(process)


class _AudioProcess:
    """One process, started anew after each end."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._is_killed = False
        self._start()

    def _start(self) -> None:
        self._is_ready = False
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve.audio_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())

    def decode(self, path: Path) -> Waveform:
        """Return the waveform; runs in a thread."""
        for _ in range(NUM_TRIES):
            try:
                return self._ask(path)
            except (EOFError, OSError):
                self._restart()
                if self._is_killed:
                    break
        raise _refused("the audio could not be decoded", "audio_invalid")

    def _ask(self, path: Path) -> Waveform:
        settings = self._settings
        request = {
            "path": str(path),
            "max_duration_s": settings.max_duration_s,
            "memory_mib": settings.decode_memory_mib,
        }
        self._is_killed = False
        if not self._is_ready:  # the time limit is that of the file, not of the imports
            if not self._connection.poll(START_S):
                raise EOFError("it does not start")
            self._connection.recv_bytes()
            self._is_ready = True
        self._connection.send_bytes(json.dumps(request).encode())
        if not self._connection.poll(settings.decode_timeout_s):
            self._restart()
            raise _refused(f"decoding took longer than {settings.decode_timeout_s:g} s", "audio_too_slow")
        answer = json.loads(self._connection.recv_bytes())
        if "num_samples" in answer:
            return np.frombuffer(self._connection.recv_bytes(), dtype=np.float32)
        raise self._refusal(answer)

    def _refusal(self, answer: dict[str, str]) -> ServiceError:
        detail = f" ({answer['detail']})" if answer["detail"] else ""
        if answer["error"] == Reason.AUDIO_TOO_LONG.code:
            return _refused(
                f"the recording is longer than {self._settings.max_duration_s:g} s; cut it into parts", "audio_too_long"
            )
        message = answer["message"]
        if answer["error"] == Reason.AUDIO_TRUNCATED.code:  # the catalogue speaks of manifests, which nobody has here
            message = "the audio is cut, or shorter than its header says"
        return _refused(f"{message}{detail}", "audio_invalid")

    def _restart(self) -> None:
        self.end()
        self._start()

    def kill(self) -> None:
        """End the process: whoever asked is gone."""
        self._is_killed = True
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


def _refused(message: str, code: str) -> ServiceError:
    return ServiceError(message, status=400, code=code, param="file")
