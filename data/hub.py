"""Clips of a Hugging Face data set: memory-mapped, or as a stream; the audio is decoded by us.

The same code reads a data set of the hub by its name and a local folder in the same form (Parquet with audio
bytes). A folder of audio with metadata, and tar shards, have readers of their own, which need no torchcodec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Audio, Dataset, IterableDataset

from data.records import Record

AUDIO_NAMES = ("audio", "wav", "flac", "mp3", "ogg", "opus", "m4a", "webm")  # the latter: members of tar shards


@dataclass(frozen=True)
class HubSource:
    """One split of a data set."""

    path: str
    """Name on the hub, a local folder in the same form, or a pattern of files."""
    split: str
    files: str | None = None
    """`parquet`, where `path` is a pattern of such files."""
    config: str | None = None
    revision: str | None = None
    """Commit or tag; a branch can change under a run."""

    @property
    def name(self) -> Path:
        """What messages and records call it."""
        parts = (self.path,) if self.files else (self.path, self.config, self.split)
        return Path("/".join(filter(None, parts)))


@dataclass(frozen=True)
class DatasetCell:
    """The encoded clip in one cell of a memory-mapped data set."""

    dataset: Dataset
    column: str
    source: str
    """Name of the data set."""
    index: int

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            FileNotFoundError: if the cell names a file that is not there.
        """
        return audio_bytes(self.dataset[self.index][self.column])

    def __str__(self) -> str:
        return f"{self.source} row {self.index + 1}"


def audio_bytes(cell: Mapping[str, Any] | None) -> bytes:
    """Return the encoded clip of an `Audio(decode=False)` cell, from its bytes or from the file it names."""
    if cell is None:
        return b""
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    return Path(str(cell["path"])).read_bytes()


def open_dataset(
    source: HubSource, columns: Mapping[str, str], *, streaming: bool
) -> tuple[Dataset | IterableDataset, str]:
    """Open a split, with audio left encoded: decoding in `datasets` needs torchcodec, and hides what is broken.

    Args:
        source: which split.
        columns: our field name to theirs; only `audio` matters here.
        streaming: read on as it comes instead of mapping it into memory.

    Returns:
        The split, and the name of its audio column.

    Raises:
        ValueError: if it cannot be found or read, or has no such column.
    """
    options: dict[str, Any] = {"split": source.split, "streaming": streaming}
    try:
        if source.files is not None:
            pattern = Path(source.path).expanduser()
            files = sorted(str(path) for path in pattern.parent.glob(pattern.name))
            if not files:
                raise FileNotFoundError(f"no file matches {source.path}")
            found = datasets.load_dataset(source.files, data_files={source.split: files}, **options)
        else:
            found = datasets.load_dataset(source.path, source.config, revision=source.revision, **options)
    except FileNotFoundError as e:
        raise FileNotFoundError(_advice(source, e)) from e
    except (ImportError, OSError, datasets.exceptions.DatasetsError, RuntimeError, ValueError) as e:
        if isinstance(e, ImportError) or isinstance(e.__cause__, ImportError):
            raise ValueError(
                f"{source.name} is a folder of audio files or tar shards, which the datasets library reads with "
                "torchcodec only; give the path of a local copy without format: hub: the folder, or 'folder/*.tar'"
            ) from e
        raise ValueError(_advice(source, e)) from e
    names = list(found.column_names or found.features or [])
    column = columns.get("audio") or next((name for name in AUDIO_NAMES if name in names), None)
    if column is None or column not in names:
        raise ValueError(
            f"{source.name} has no audio column {column or ''}; it has {', '.join(names)}; name it in columns.audio"
        )
    return found.cast_column(column, Audio(decode=False)), column


def _advice(source: HubSource, e: Exception) -> str:
    found = (str(e).splitlines() or [type(e).__name__])[0]
    return (
        f"{source.name} cannot be opened: {found:.300}; without a network, give the folder of a local copy as the path"
    )


def read_dataset(dataset: Dataset, column: str, columns: Mapping[str, str]) -> Iterator[Record]:
    """Read the rows of a memory-mapped split without its audio; `line` counts from 1.

    Args:
        dataset: from `open_dataset`.
        column: its audio column.
        columns: our field name to theirs.
    """
    texts = dataset.remove_columns(column)
    line = 0
    for batch in texts.with_format("arrow").iter(batch_size=4096):
        for fields in batch.to_pylist():
            line += 1
            yield Record(line, {**pick(fields, columns), "audio": f"row {line}", "stored": line - 1})


def pick(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields by our names; those that no column maps keep theirs."""
    picked = {name: value for name, value in fields.items() if name not in columns.values()}
    for ours, theirs in columns.items():
        value: Any = fields
        for part in theirs.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            picked[ours] = value
    return picked
