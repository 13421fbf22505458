"""Rows of one source for a stream of blocks, in rounds without end, from any place that was noted.

Two kinds: a table, whose rows come in another order each round, and a streamed data set, whose shards do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import IterableDataset

from data.dataset import check_rows
from data.hub import audio_bytes, open_dataset, pick
from data.labels import LabelBuilder
from data.reasons import Reason
from data.records import BrokenRecord, Record, RowTableBuilder
from data.rows import RowTable
from data.sources import Source, replace_texts

FEED_STREAM = 7  # first word of the seed; 1 to 6 are those of clips, order, speed, rounds, labels and silence
SHARD_LINES = 10**7  # line 20000017 is row 17 of the third shard, in whatever order the shards come


@dataclass(frozen=True)
class HeldAudio:
    """An encoded clip in memory."""

    content: bytes
    name: str

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.content

    def __str__(self) -> str:
        return self.name


class TableFeed:
    """The rows of a source that is not a stream, in rounds, each in an order of its own."""

    def __init__(self, table: RowTable, *, seed: int, place: int) -> None:
        """Remember the rows; `place` is the source's among all."""
        self.table = table
        self._key = (FEED_STREAM, seed, place)
        self.cycle = 0
        self.index = 0

    def state(self) -> dict[str, Any]:
        """Return where it stands."""
        return {"cycle": self.cycle, "index": self.index}

    def seek(self, state: Mapping[str, Any]) -> None:
        """Go where it stood."""
        self.cycle, self.index = state["cycle"], state["index"]

    def take(self, count: int) -> RowTable:
        """Return the next rows."""
        parts: list[npt.NDArray[np.int64]] = []
        while count > 0:
            order = np.random.default_rng([*self._key, self.cycle]).permutation(len(self.table))
            parts.append(order[self.index : self.index + count])
            count -= len(parts[-1])
            self.index += len(parts[-1])
            if self.index == len(order):
                self.cycle, self.index = self.cycle + 1, 0
        # What was found bad when the table was opened is reported once, then.
        return self.table.replace(self.table.table.take(np.concatenate(parts)), ())


class HubFeed:
    """The rows of a streamed data set, shard by shard, the shards in another order each time."""

    def __init__(self, source: Source, label_builder: LabelBuilder, *, seed: int, place: int) -> None:
        """Open the stream; nothing is read yet."""
        self.source = source
        self.label_builder = label_builder
        self._refused: set[int] = set()
        dataset, self.column = open_dataset(source.hub(), source.columns, streaming=True)
        assert isinstance(dataset, IterableDataset)
        self.dataset = dataset
        self._key = (FEED_STREAM, seed, place)
        self.cycle = 0
        self.shard = 0
        self.row = 0
        self._shard_id = 0
        self._stream: IterableDataset | None = None
        self._examples: Iterator[Mapping[str, Any]] = iter(())
        self._open_shard()

    @property
    def num_shards(self) -> int:
        """Pieces that can come in any order."""
        return max(1, int(self.dataset.num_shards))

    def state(self) -> dict[str, Any]:
        """Return where it stands."""
        assert self._stream is not None
        return {"cycle": self.cycle, "shard": self.shard, "row": self.row, "stream": self._stream.state_dict()}

    def seek(self, state: Mapping[str, Any]) -> None:
        """Go where it stood."""
        self.cycle, self.shard, self.row = state["cycle"], state["shard"], state["row"]
        self._open_shard(state["stream"])

    def take(self, count: int) -> RowTable:
        """Return those of the next rows that can be used, and in `rejected` the others, once each.

        Raises:
            ValueError: if the data set has none at all.
        """
        held: list[HeldAudio] = []
        name = self.source.hub().name
        builder = RowTableBuilder(Path(name), is_archive=True, defaults=self.source.defaults())
        is_empty = False
        while count > 0:
            example = next(self._examples, None)
            if example is None:
                if is_empty and self.shard + 1 == self.num_shards:
                    raise ValueError(f"{name} is empty")
                is_empty = is_empty or self.shard == 0
                self._next_shard()
                continue
            is_empty = False
            self.row += 1
            count -= 1
            line = self._shard_id * SHARD_LINES + self.row
            if line in self._refused:
                continue
            fields = {key: value for key, value in example.items() if key != self.column}
            try:
                content = audio_bytes(example[self.column])
            except OSError as e:  # the cell names a file instead of holding it
                builder.add(BrokenRecord(line, Reason.AUDIO_MISSING, f"{e.filename}: {e.strerror}"))
                continue
            held.append(HeldAudio(content, f"{name} shard {self._shard_id} row {self.row}"))
            fields = {**pick(fields, self.source.columns), "audio": str(held[-1]), "stored": len(held) - 1}
            builder.add(replace_texts(Record(line, fields), self.source.replace))
        table = check_rows(builder.build(open_stored=held.__getitem__), self.label_builder)
        self._refused |= {record.line for record in table.rejected}
        return table

    def _next_shard(self) -> None:
        self.shard, self.row = self.shard + 1, 0
        if self.shard == self.num_shards:
            self.cycle, self.shard = self.cycle + 1, 0
        self._open_shard()

    def _open_shard(self, state: dict[str, Any] | None = None) -> None:
        order = np.random.default_rng([*self._key, self.cycle]).permutation(self.num_shards)
        self._shard_id = int(order[self.shard])
        self._stream = self.dataset.shard(self.num_shards, self._shard_id)
        if state is not None:
            self._stream.load_state_dict(state)
        self._examples = iter(self._stream)


Feed = TableFeed | HubFeed
