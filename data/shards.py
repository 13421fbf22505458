"""Clips of tar shards in WebDataset form, found once by their headers and then read where they lie.

`datasets` can stream such shards, but to map them into memory it copies every clip to the disk, and wants torchcodec.

Source: the WebDataset convention: members of one sample share a name up to the first dot; what follows says their kind.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.audio import AudioError
from data.folders import AUDIO_SUFFIXES
from data.reasons import Reason
from data.records import BrokenRecord, Record, stamp_of

MAX_TEXT_BYTES = 2**24  # of a text or JSON member; larger ones are no transcript


@dataclass(frozen=True)
class TarMember:
    """An encoded clip inside a tar."""

    path: Path
    offset: int
    """Bytes from the start of the tar."""
    size: int
    name: str
    stamp: int
    """Of the tar, when it was indexed."""

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            AudioError: if the tar is another by now, and something else may lie in this place.
        """
        with self.path.open("rb") as file:
            if stamp_of(os.fstat(file.fileno())) != self.stamp:
                raise AudioError(Reason.AUDIO_CHANGED, str(self))
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


class TarIndex:
    """Where the clips lie, in columns."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Remember the shards; they are read by `records`."""
        self.paths = tuple(paths)
        self._names: list[str] = []
        self._places: list[tuple[int, int, int]] = []
        self._stamps = [stamp_of(path.stat()) for path in paths]

    def open(self, index: int) -> TarMember:
        """Return a clip by its place."""
        shard, offset, size = self._places[index]
        return TarMember(self.paths[shard], offset, size, self._names[index], self._stamps[shard])

    def freeze(self) -> None:
        """Turn the places into an array, which forked loaders share."""
        self._places = np.array(self._places, dtype=np.int64).reshape(-1, 3)  # type: ignore[assignment]

    def records(self) -> Iterator[Record | BrokenRecord]:
        """Read the headers and texts of all shards; `line` counts the samples from 1."""
        line = 0
        for shard, path in enumerate(self.paths):
            try:
                with tarfile.open(path, "r:") as tar:
                    for key, members in _samples(tar):
                        line += 1
                        yield self._record(tar, shard, key, members, line)
            except (tarfile.TarError, OSError, EOFError) as e:
                line += 1
                yield BrokenRecord(line, Reason.AUDIO_CORRUPT, f"{path} ends here: {e}")

    def _record(
        self, tar: tarfile.TarFile, shard: int, key: str, members: dict[str, tarfile.TarInfo], line: int
    ) -> Record | BrokenRecord:
        fields: dict[str, Any] = {}
        clip: tarfile.TarInfo | None = None
        for kind, member in members.items():
            if f".{kind}".lower() in AUDIO_SUFFIXES:
                clip = member
            elif kind in ("json", "txt", "text", "lang", "language"):
                try:
                    text = _read(tar, member).decode("utf-8")
                    fields |= json.loads(text) if kind == "json" else {_FIELDS[kind]: text.strip()}
                except UnicodeDecodeError as e:
                    return BrokenRecord(line, Reason.LINE_ENCODING, f"{member.name}, byte {e.start}")
                except (ValueError, TypeError) as e:
                    return BrokenRecord(line, Reason.LINE_JSON, f"{member.name}: {e}")
        if clip is None:
            return BrokenRecord(line, Reason.AUDIO_MISSING, f"{self.paths[shard]} has no audio for {key}")
        self._names.append(clip.name)
        self._places.append((shard, clip.offset_data, clip.size))
        fields.setdefault("id", f"{self.paths[shard].stem}/{key}")
        return Record(line, {**fields, "audio": clip.name, "stored": len(self._places) - 1})


_FIELDS = {"txt": "text", "text": "text", "lang": "language", "language": "language"}


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Gather neighbouring members of one name."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in tar:
        if not member.isfile():
            continue
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        if members and f"{folder}/{stem}" != key:
            yield key.lstrip("/"), members
            members = {}
        key = f"{folder}/{stem}"
        members[kind] = member
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps the headers of all, a kilobyte each
    if members:
        yield key.lstrip("/"), members


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"{member.size} bytes are no transcript")
    file = tar.extractfile(member)
    assert file is not None, "only regular members are gathered"
    return file.read()
