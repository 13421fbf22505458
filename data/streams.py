"""Training from data sets that are read as they come: block by block, each block planned like a small epoch.

A block takes a number of rows from each source. Its clips are shuffled and sorted into windows as those of an epoch
are. Sources start again at their end, with their shards in another order. What a block holds is a function of the seed
and of the blocks before; where it begins in each source is part of the position, so nothing is replayed on resume.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import IterableDataset

from data.batches import BadRow
from data.dataset import check_rows, join_tables
from data.hub import audio_bytes, open_dataset, pick
from data.ingest import Ingest, admit
from data.loaders import ClipRecipe, ClipSpeeds, UpdateBatches, UpdateDataset
from data.mixture import Group, Mixture, MixtureSettings
from data.plan import BatchSize, EpochPlan, Position
from data.reader import ClipReader
from data.records import Record, RowTableBuilder
from data.rows import RowTable
from data.sources import Source, read_source, replace_texts
from data.windows import Windows

FEED_STREAM = 7  # first word of the seed; 1 to 6 are those of clips, order, speed, rounds, labels and silence
KEY_BITS = 40  # of a row's key: its line below, its source above
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

    def __init__(self, source: Source, *, seed: int, place: int) -> None:
        """Open the stream; nothing is read yet."""
        self.source = source
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

    def take(self, count: int, *, left_out: Container[int] = ()) -> RowTable:
        """Return the next rows but for those whose line is left out.

        Raises:
            ValueError: if the data set has none at all.
        """
        held: list[HeldAudio] = []
        name = self.source.hub().name
        builder = RowTableBuilder(Path(name), defaults=self.source.defaults())
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
            if line in left_out:
                continue
            fields = {key: value for key, value in example.items() if key != self.column}
            held.append(HeldAudio(audio_bytes(example[self.column]), f"{name} shard {self._shard_id} row {self.row}"))
            fields = {**pick(fields, self.source.columns), "audio": str(held[-1]), "stored": len(held) - 1}
            builder.add(replace_texts(Record(line, fields), self.source.replace))
        return builder.build(open_stored=held.__getitem__)

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


class StreamDataset:
    """Updates of training data from sources of which at least one is a stream."""

    def __init__(
        self,
        sources: Sequence[Source],
        recipe: ClipRecipe,
        *,
        num_replay: int,
        mixture: MixtureSettings,
        windows: Windows,
        size: BatchSize,
        block_clips: int,
        pack: bool,
        on_bad: str,
        max_bad_share: float,
        rank: int = 0,
    ) -> None:
        """Open the sources.

        Args:
            sources: what is mixed, by their weights; the last `num_replay` ones are for replay.
            recipe: what a clip becomes.
            num_replay: number of replay sources.
            mixture: gives the share of replay; a temperature needs sources whose hours are known.
            windows: the window rule.
            size: clips of an update.
            block_clips: rows that are held at a time.
            pack: join neighbours within a block.
            on_bad: see `admit`.
            max_bad_share: see `admit`; over all that was read so far.
            rank: of this process. Every rank reads the whole stream, and decodes its own part.

        Raises:
            ValueError: for a mixture that a stream cannot follow, or a source that cannot be read.
        """
        if mixture.temperature != 1.0:
            raise ValueError("dataset.temperature= needs hours that are known; leave it at 1 with streaming=true")
        if (num_replay > 0) != (mixture.replay_share > 0.0):
            raise ValueError("dataset.replay= and dataset.replay_share= go together")
        self.sources = tuple(sources)
        self.recipe = recipe
        self.windows = windows
        self.size = size
        self.pack = pack
        self.on_bad = on_bad
        self.max_bad_share = max_bad_share
        self.rank = rank
        self.counts = _share_block(sources, num_replay, mixture.replay_share, block_clips)
        self.feeds: list[Feed] = [
            HubFeed(source, seed=recipe.seed, place=i)
            if source.streaming and source.resolved_format() == "hub"
            else TableFeed(self._open_table(source), seed=recipe.seed, place=i)
            for i, source in enumerate(sources)
        ]
        self._left_out: set[int] = set()
        self._num_lines = 0
        self._num_bad = 0

    def _open_table(self, source: Source) -> RowTable:
        # Tar shards are found by their headers and read where they lie: as good as a stream, and in any order.
        table = read_source(dataclasses.replace(source, streaming=False))
        checked = check_rows(table, self.recipe.label_builder)
        admit(Ingest.of(table, checked), on_bad=self.on_bad, max_bad_share=self.max_bad_share)
        return checked

    @property
    def num_rows(self) -> int:
        """Rows read so far."""
        return self._num_lines

    def describe(self) -> list[str]:
        """Return what a block takes as lines of text."""
        return [
            f"a block takes {count} rows of {source.path}" + (" (stream)" if source.streaming else "")
            for source, count in zip(self.sources, self.counts, strict=True)
        ]

    def leave_out(self, rows: Iterable[int]) -> None:
        """Never use the rows with these keys: they were found bad before the run was taken up again."""
        self._left_out = set(rows)

    def open(self, start: Position, *, num_workers: int | None, pin_memory: bool) -> Iterator[UpdateBatches]:
        """Read updates without end, in a thread that reads ahead; `num_workers` has no meaning for a stream."""
        ahead: queue.Queue[UpdateBatches | BaseException] = queue.Queue(maxsize=2)
        stop = threading.Event()
        thread = threading.Thread(target=self._read_ahead, args=(start, pin_memory, ahead, stop), daemon=True)
        thread.start()
        try:
            while True:
                found = ahead.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            stop.set()

    def _read_ahead(
        self,
        start: Position,
        pin_memory: bool,
        ahead: queue.Queue[UpdateBatches | BaseException],
        stop: threading.Event,
    ) -> None:
        try:
            for found in self._updates(start):
                item = found.pin_memory() if pin_memory else found
                while not stop.is_set():
                    try:
                        ahead.put(item, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
        except Exception as e:  # belongs to whoever waits for the next update
            ahead.put(e)

    def _updates(self, start: Position) -> Iterator[UpdateBatches]:
        position = start
        if position.stream is not None:
            for feed, state in zip(self.feeds, json.loads(position.stream), strict=True):
                feed.seek(state)
        while True:
            state, epoch = self._state(), min(feed.cycle for feed in self.feeds)
            block, rejected = self._read_block(position.block)
            after = Position(min(feed.cycle for feed in self.feeds), 0, position.block + 1, self._state())
            num_updates = 0 if block is None else len(block.updates_of(position.block))
            for i in range(position.update, num_updates):
                assert block is not None
                following = after if i + 1 == num_updates else Position(epoch, i + 1, position.block, state)
                # The block's number stands for the epoch, so that each block is shuffled and augmented in its own way.
                batches = block[Position(position.block, i)].micro_batches
                found = tuple(rejected) if i == 0 else ()
                yield UpdateBatches(batches, Position(epoch, i, position.block, state), following, found)
            position = after

    def _state(self) -> str:
        return json.dumps([feed.state() for feed in self.feeds])

    def _read_block(self, number: int) -> tuple[UpdateDataset | None, list[BadRow]]:
        tables: list[RowTable] = []
        keys: list[npt.NDArray[np.int64]] = []
        rejected: list[BadRow] = []
        for place, (feed, count) in enumerate(zip(self.feeds, self.counts, strict=True)):
            left_out = {key - (place << KEY_BITS) for key in self._left_out}
            if isinstance(feed, HubFeed):
                table = check_rows(feed.take(count, left_out=left_out), self.recipe.label_builder)
                rejected += [BadRow((place << KEY_BITS) + record.line, record) for record in table.rejected]
            else:
                table = feed.take(count)
                wanted = ~np.isin(table.column("line"), list(left_out))
                table = table.replace(table.table.filter(pa.array(wanted)), ())
            tables.append(table)
            keys.append((place << KEY_BITS) + table.column("line").astype(np.int64))
            self._num_lines += count
        self._left_out |= {bad.key for bad in rejected}
        self._num_bad += len(rejected)
        self._verify_share(rejected)
        clips = join_tables(tables, self.recipe.label_builder, pack=self.pack)
        if len(clips) == 0:
            return None, rejected
        # A block is small, so it is mixed as it was counted out: each row once.
        every = Group("", "", np.arange(len(clips)), clips.audio_s / 3600, float(len(clips)), is_replay=False)
        augmentation, seed = self.recipe.augmentation, self.recipe.seed
        plan = EpochPlan(
            clips.durations_s,
            Mixture([every], seed=seed),
            windows=self.windows,
            size=self.size,
            seed=seed,
            speeds=ClipSpeeds(augmentation, clips.durations_s, seed) if augmentation.speed_share > 0.0 else None,
        )
        reader = ClipReader(clips.rows, cache_gib=0.0)
        return UpdateDataset(clips, plan, reader, self.recipe, rank=self.rank, keys=np.concatenate(keys)), rejected

    def _verify_share(self, rejected: Sequence[BadRow]) -> None:
        share = self._num_bad / max(1, self._num_lines)
        if rejected and (self.on_bad == "strict" or (self.on_bad == "quarantine" and share > self.max_bad_share)):
            raise ValueError(
                f"{self._num_bad} of {self._num_lines} streamed rows cannot be used, more than "
                f"dataset.max_bad_share={self.max_bad_share:g} or dataset.on_bad=strict allow; the latest: "
                f"{rejected[-1].record}"
            )


def _share_block(sources: Sequence[Source], num_replay: int, replay_share: float, block_clips: int) -> list[int]:
    """Return how many rows of each source a block takes: by weight, replay by its share, each at least one."""
    num_train = len(sources) - num_replay
    counts: list[int] = []
    for part, share in ((sources[:num_train], 1.0 - replay_share), (sources[num_train:], replay_share)):
        total = sum(source.weight for source in part)
        counts += [max(1, round(block_clips * share * source.weight / total)) for source in part]
    return counts
