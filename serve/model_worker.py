"""The service's side of a model process: batches go out, texts come back, and one that ends is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from serve.batch import Answer, Batch
from serve.warming import Facts, Load

PROJECT = Path(__file__).resolve().parents[1]
START_S = 60.0  # that a process may take for its imports

logger = logging.getLogger(__name__)


class WorkerEndedError(RuntimeError):
    """The process ended, or was stuck, while it had a batch."""


class ModelNursery:
    """Starts model processes as forks of one that has imported everything; a new one of that if it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def begin(self) -> None:
        """Start the imports; what needs a process waits for them."""
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve.model_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        ours.settimeout(START_S)
        self._control = ours
        self._is_ready = False

    def fork(self) -> tuple[Connection, int]:
        """Return the connection to a new process, and its number; runs in a thread.

        Raises:
            RuntimeError: if none can be started.
        """
        with self._lock:
            for _ in range(2):
                if self._control is None or self._process is None or self._process.poll() is not None:
                    self.begin()
                try:
                    return self._fork()
                except OSError as e:
                    logger.warning("the process that starts workers ended (%s)", e)
                    self.end()
            raise RuntimeError("no model process can be started; see the log above")

    def _fork(self) -> tuple[Connection, int]:
        assert self._control is not None
        if not self._is_ready:
            if self._control.recv(1) != b"r":
                raise OSError("it ended while it started")
            self._is_ready = True
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        answer = self._control.recv(4)
        if len(answer) < 4:
            ours.close()
            raise OSError("it ended")
        return Connection(ours.detach()), int.from_bytes(answer, "little")

    def end(self) -> None:
        """End the process; its forks end with it."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class ModelWorker:
    """One model process."""

    def __init__(self, nursery: ModelNursery, load: Load, *, batch_timeout_s: float) -> None:
        self.load = load
        self.process_id: int | None = None
        """None while there is none."""
        self._nursery = nursery
        self._timeout_s = batch_timeout_s
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def start(self, *, tests: bool) -> Facts:
        """Load the model.

        Raises:
            RuntimeError: with the reason why it cannot be loaded.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._start, tests)

    async def decode(self, batch: Batch) -> Answer:
        """Return what a batch says.

        Raises:
            WorkerEndedError: if the process ended; `start` brings a new one.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._decode, batch)

    def end(self) -> None:
        """End the process."""
        self._kill()
        self._thread.shutdown(wait=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _start(self, tests: bool) -> Facts:
        if self._connection is not None:
            self._connection.close()
        self._connection, self.process_id = self._nursery.fork()
        try:
            self._connection.send(Load(**{**vars(self.load), "tests": tests}))
            found = self._connection.recv()
        except (EOFError, OSError) as e:
            self.process_id = None
            raise RuntimeError("the model process ended while it loaded; is there enough memory?") from e
        if isinstance(found, Facts):
            return found
        self.process_id = None
        raise RuntimeError(str(found))

    def _decode(self, batch: Batch) -> Answer:
        assert self._connection is not None
        try:
            self._connection.send(batch)
            if not self._connection.poll(self._timeout_s):
                self._kill()
                raise WorkerEndedError(f"a batch took longer than {self._timeout_s:g} s")
            found = self._connection.recv()
        except (EOFError, OSError) as e:
            self.process_id = None
            raise WorkerEndedError("the model process ended") from e
        if isinstance(found, Answer):
            return found
        self.process_id = None
        raise WorkerEndedError(str(found))

    def _kill(self) -> None:
        if self.process_id is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process_id, signal.SIGKILL)
            self.process_id = None
