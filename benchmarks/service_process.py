"""A service in a process of its own on loopback, and what it holds of the machine: memory, open files, temporaries."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.environment import PROJECT

START_S = 90.0
STOP_S = 60.0
LOOK_S = 0.1


class Service:
    """Started on a free port, and stopped with SIGTERM."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        """Remember how to start.

        Args:
            folder: for log and uploads.
            overrides: as on the command line of `scripts/serve.py`.
        """
        self.folder = folder
        self._overrides = overrides
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]

    def __enter__(self) -> Service:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "scripts/serve.py", f"serve.port={self.port}", f"serve.dir={self.folder}"]
        with (self.folder / "terminal.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self._overrides], cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT
            )
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "terminal.log").read_text()[-2000:])
            try:
                self.health()
            except (OSError, urllib.error.URLError):
                time.sleep(LOOK_S)
            else:
                return self
        raise RuntimeError("the service did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def health(self) -> dict[str, Any]:
        """Return what /health says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
            return dict(json.loads(answer.read()))

    def processes(self) -> list[int]:
        """Return the numbers of the service and all that it started."""
        found, todo = [], [self.process.pid]
        while todo:
            number = todo.pop()
            found.append(number)
            todo += children(number)
        return found

    def memory_mib(self) -> float:
        """Return the memory of all processes, pages that forks share counted once; without mapped files.

        Libraries are left out: their pages are divided among all who map them, and the service would seem to grow
        whenever another program of the same environment ends.
        """
        return sum(map(own_mib, self.processes()))

    def num_open_files(self) -> int:
        """Return how many files and sockets the service itself holds."""
        return len(list(Path("/proc", str(self.process.pid), "fd").iterdir()))

    def uploads(self) -> list[str]:
        """Return what lies in the folder for uploads."""
        return [str(path) for path in (self.folder / "uploads").rglob("*") if path.is_file()]

    def model_processes(self) -> list[int]:
        """Return the numbers of the processes that hold a model: those that a child forked."""
        return [grandchild for child in children(self.process.pid) for grandchild in children(child)]


def children(number: int) -> list[int]:
    """Return the children of a process that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == number and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def own_mib(number: int) -> float:
    """Return the anonymous memory of a process, its share of what forks have in common; 0 if it is gone."""
    try:
        lines = Path("/proc", str(number), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss_Anon:")), 0.0)


class MemoryWatch:
    """The largest memory of a service while something is done to it."""

    def __init__(self, service: Service) -> None:
        self.before_mib = self.peak_mib = service.memory_mib()
        self._service = service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def rise_mib(self) -> float:
        """Of the largest above the first."""
        return round(self.peak_mib - self.before_mib, 1)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak_mib = max(self.peak_mib, self._service.memory_mib())


def kill(number: int) -> None:
    """End a process as a crash would."""
    os.kill(number, signal.SIGKILL)
