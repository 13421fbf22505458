"""Uploads as files of our own, in one private folder, under names of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread


class UploadFolder:
    """The private folder of one service; those of services that were killed go when the next one starts."""

    def __init__(self, parent: Path) -> None:
        """Remember where.

        Args:
            parent: holds one folder for each service that runs.
        """
        self._parent = parent
        self.path = parent / str(os.getpid())

    def open(self) -> None:
        """Make the folder, and remove those whose process is gone."""
        self._parent.mkdir(parents=True, exist_ok=True)
        for folder in self._parent.iterdir():
            if folder.name.isdigit() and (folder == self.path or not Path("/proc", folder.name).exists()):
                shutil.rmtree(folder, ignore_errors=True)
        self.path.mkdir(mode=0o700)

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @asynccontextmanager
    async def keep(self, upload: BinaryIO) -> AsyncIterator[Path]:
        """Copy an upload into the folder for as long as it is worked on.

        Args:
            upload: from its beginning; what the client calls it is never looked at.
        """
        path = self.path / uuid.uuid4().hex
        try:
            await anyio.to_thread.run_sync(_copy, upload, path)
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _copy(upload: BinaryIO, path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(upload, file, 1 << 18)
