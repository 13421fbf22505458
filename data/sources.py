"""Where clips come from: one name, whatever the format, and one table of checked rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from data.fields import FIELDS
from data.folders import find_table, read_folder
from data.hub import DatasetCell, HubSource, open_dataset, pick, read_dataset
from data.kaldi import read_kaldi
from data.manifest import read_manifest
from data.records import BrokenRecord, Record, RowTableBuilder
from data.rows import RowTable
from data.shards import TarIndex
from data.tables import has_audio_bytes, parse_texts, read_delimited, read_parquet

logger = logging.getLogger(__name__)

FORMATS = ("auto", "jsonl", "csv", "tsv", "parquet", "folder", "kaldi", "hub", "shards")


@dataclass(frozen=True)
class Source:
    """One source of clips."""

    path: str
    """A manifest, table, folder or pattern of tar files; with `format=hub` the name of a data set."""
    format: str = "auto"
    config: str | None = None
    """Configuration of a data set on the hub, often the language."""
    split: str = "train"
    """Split of a data set on the hub."""
    revision: str | None = None
    """Commit or tag of a data set on the hub."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our field name to the source's, such as `text: sentence`; those named alike need none."""
    language: str | None = None
    """Of rows that have none of their own."""
    task: str | None = None
    """Of rows that have none of their own."""
    prompt: str | None = None
    """Of rows that have none of their own."""
    replace: Mapping[str, str] = field(default_factory=dict)
    """Pieces of the texts and what they become, such as ` <COMMA>` and `,`; what is empty then is quarantined."""
    folder: str | None = None
    """What relative audio paths begin at; the folder of the manifest if null."""
    root: str | None = None
    """Audio must lie below this folder; null allows any."""
    weight: float = 1.0
    """How often each clip comes in an epoch: 2 is twice, 0.5 is half of them, other ones each time."""
    max_clips: int | None = None
    """Take no more clips than this, evenly from all of them."""
    max_hours: float | None = None
    """Take no more hours than this, evenly from all of them."""
    streaming: bool = False
    """Read a data set or tar shards as they come, and keep nothing on the disk."""
    pack: bool | None = None
    """Join clips of one language and speaker into longer ones; null as the group says for all sources."""
    pack_s: float | None = None
    """Seconds that no joined clip is longer than; null as the group says."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format={self.format} of {self.path} must be one of {', '.join(FORMATS)}")
        unknown = sorted(self.columns.keys() - FIELDS)
        if unknown:
            raise ValueError(f"columns.{unknown[0]} of {self.path} is no field; there are {', '.join(sorted(FIELDS))}")
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} of {self.path} must be above 0; leave the source out instead")
        if (self.max_clips is not None and self.max_clips < 1) or (self.max_hours is not None and self.max_hours <= 0):
            raise ValueError(f"max_clips and max_hours of {self.path} must be above 0")
        if self.streaming and (self.max_clips, self.max_hours) != (None, None):
            raise ValueError(f"max_clips and max_hours of {self.path} need a source that is counted: streaming=false")
        if self.streaming and self.resolved_format() not in ("hub", "shards"):
            raise ValueError(f"streaming=true of {self.path} needs format=hub or tar shards")

    def resolved_format(self) -> str:
        """Return the format, found by the name and by what lies there.

        Raises:
            FileNotFoundError: if there is nothing at the path.
            ValueError: if its kind cannot be told.
        """
        if self.format != "auto":
            return self.format
        path = Path(self.path).expanduser()
        if self.path.endswith(".tar"):
            return "shards"
        if path.is_dir():
            return "kaldi" if (path / "wav.scp").is_file() else "folder"
        if not path.is_file():
            hint = "; for a data set of the hub say format: hub" if self.path.count("/") == 1 else ""
            raise FileNotFoundError(f"no manifest, table or folder at {path}{hint}")
        suffix = path.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
        if suffix in ("jsonl", "json"):
            return "jsonl"
        if suffix in FORMATS:
            return suffix
        raise ValueError(f"the format of {path} cannot be told by its name; say format: one of {', '.join(FORMATS)}")

    def hub(self) -> HubSource:
        """Return it as a data set."""
        kind = self.resolved_format()
        return HubSource(self.path, self.split, None if kind == "hub" else kind, self.config, self.revision)

    def defaults(self) -> dict[str, Any]:
        """Return the fields of rows that have none of their own."""
        return {"language": self.language, "task": self.task, "prompt": self.prompt}


def read_source(source: Source) -> RowTable:
    """Read and check every row of a source; audio is decoded later.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it holds no row at all, or its format cannot be read.
    """
    kind = source.resolved_format()
    if source.streaming:
        raise ValueError(
            f"streaming=true of {source.path} is for training sources only, and not with model=scratch, whose "
            "vocabulary needs all texts; leave it out"
        )
    if kind == "shards":
        table = _read_shards(source)
    elif kind == "hub":
        table = _read_hub(source)
    else:
        table = _read_files(source, kind)
    if not len(table) and not table.rejected:
        raise ValueError(f"{table.path} is empty; a row has at least audio, text and language")
    return table


def _read_files(source: Source, kind: str) -> RowTable:
    path = Path(source.path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no {'manifest' if kind == 'jsonl' else kind} at {path}")
    path = path.resolve()
    root = None if source.root is None else Path(source.root).expanduser()
    if kind == "folder" and (table := find_table(path)) is not None:
        # A table in a folder of audio names its clips `file_name`, as audiofolder of Hugging Face does.
        path, kind = table, table.suffix.removeprefix(".")
    if kind == "parquet" and has_audio_bytes(path):
        return _read_hub(source)
    records: Iterator[Record | BrokenRecord]
    if kind == "jsonl":
        records = read_manifest(path)
    elif kind in ("csv", "tsv"):
        records = read_delimited(path, delimiter="\t" if kind == "tsv" else ",")
    elif kind == "parquet":
        records = read_parquet(path)
    elif kind == "kaldi":
        records = read_kaldi(path)
    else:
        records = read_folder(path)
    folder = path if path.is_dir() else path.parent
    if source.folder is not None:
        folder = Path(source.folder).expanduser().resolve()
    builder = RowTableBuilder(path, folder=folder, root=root, defaults=source.defaults())
    is_text = kind in ("csv", "tsv")
    for record in _replaced(_renamed(records, source.columns), source.replace):
        if is_text and isinstance(record, Record):
            record = Record(record.line, parse_texts(record.fields), record.byte_offset)
        builder.add(record)
    _say(builder)
    return builder.build()


def _say(builder: RowTableBuilder) -> None:
    for remark in builder.remarks():
        logger.warning("%s", remark)


def _renamed(records: Iterable[Record | BrokenRecord], columns: Mapping[str, str]) -> Iterator[Record | BrokenRecord]:
    names = dict(columns)
    for record in records:
        if isinstance(record, Record):
            if "audio" not in names and "audio" not in record.fields and "file_name" in record.fields:
                names["audio"] = "file_name"
            if names:
                record = Record(record.line, pick(record.fields, names), record.byte_offset)
        yield record


def _replaced(records: Iterable[Record | BrokenRecord], replace: Mapping[str, str]) -> Iterable[Record | BrokenRecord]:
    if not replace:
        return records
    return (replace_texts(record, replace) if isinstance(record, Record) else record for record in records)


def replace_texts(record: Record, replace: Mapping[str, str]) -> Record:
    """Return a record with pieces of its text replaced."""
    text = record.fields.get("text")
    if not isinstance(text, str):
        return record
    for old, new in replace.items():
        text = text.replace(old, new)
    return Record(record.line, {**record.fields, "text": text}, record.byte_offset)


def _read_shards(source: Source) -> RowTable:
    pattern = Path(source.path).expanduser()
    paths = sorted(path.resolve() for path in pattern.parent.glob(pattern.name))
    if not paths:
        raise FileNotFoundError(f"no tar file matches {pattern}")
    index = TarIndex(paths)
    builder = RowTableBuilder(pattern, is_archive=True, defaults=source.defaults())
    for record in _replaced(_renamed(index.records(), source.columns), source.replace):
        builder.add(record)
    index.freeze()
    _say(builder)
    return builder.build(open_stored=index.open)


def _read_hub(source: Source) -> RowTable:
    hub = source.hub()
    dataset, column = open_dataset(hub, source.columns, streaming=False)
    assert isinstance(dataset, Dataset)
    builder = RowTableBuilder(hub.name, is_archive=True, defaults=source.defaults())
    for record in _replaced(read_dataset(dataset, column, source.columns), source.replace):
        builder.add(record)
    _say(builder)
    return builder.build(open_stored=partial(DatasetCell, dataset, column, str(hub.name)))
