"""Training from data sets that are read as they come: block by block, each block planned like a small epoch.

A block takes a number of rows from each source. Its clips are shuffled and sorted into windows as those of an epoch
are. Sources start again at their end, with their shards in another order. What a block holds is a function of the seed
and of the blocks before; where it begins in each source is part of the position, so nothing is replayed on resume.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data.ahead import read_ahead
from data.batches import BadRow
from data.dataset import join_tables, open_source
from data.feeds import Feed, HubFeed, TableFeed
from data.loaders import ClipRecipe, ClipSpeeds, UpdateBatches, UpdateDataset
from data.mixture import MixtureSettings, every_clip
from data.packing import Packing, arrange_tables
from data.plan import BatchSize, EpochPlan, Position
from data.reader import ClipReader
from data.reasons import Rejected
from data.sources import Source
from data.windows import Windows

Lines = TypeVar("Lines", int, npt.NDArray[np.int64])
KEY_BITS = 40  # of a row's key: its line below, its source above


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
        packings: Sequence[Packing | None],
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
            packings: one a source, how the rows of a block are joined, None where they are not; () joins none.
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
        self.packings = packings
        self.on_bad = on_bad
        self.max_bad_share = max_bad_share
        self.rank = rank
        self.counts = _share_block(sources, num_replay, mixture.replay_share, block_clips)
        self._refused: list[Rejected] = []
        self.feeds = [self._open_feed(place, source) for place, source in enumerate(sources)]
        self._unreadable: set[int] = set()
        self._num_lines = 0
        self.audio_s = 0.0
        """Seconds of the clips read so far."""
        self._num_bad = 0

    def _open_feed(self, place: int, source: Source) -> Feed:
        seed, label_builder = self.recipe.seed, self.recipe.label_builder
        if source.streaming and source.resolved_format() == "hub":
            return HubFeed(source, label_builder, seed=seed, place=place)
        # Tar shards are found by their headers and read where they lie: as good as a stream, and in any order.
        whole = dataclasses.replace(source, streaming=False)
        table, account = open_source(whole, label_builder, on_bad=self.on_bad, max_bad_share=self.max_bad_share)
        self._refused += account.rejected
        return TableFeed(table, seed=seed, place=place)

    @property
    def refused(self) -> tuple[Rejected, ...]:
        """Lines of the sources that are no streams which were left out when they were opened."""
        return tuple(self._refused)

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
        """Never read the rows with these keys again: they were found bad before the run was taken up again."""
        self._unreadable = set(rows)

    def open(self, start: Position, *, num_workers: int | None, pin_memory: bool) -> Iterator[UpdateBatches]:
        """Read updates without end, in a thread that reads ahead; `num_workers` has no meaning for a stream."""
        updates = self._updates(start)
        return read_ahead(found.pin_memory() for found in updates) if pin_memory else read_ahead(updates)

    def _updates(self, start: Position) -> Iterator[UpdateBatches]:
        position = start
        if position.stream is not None:
            for feed, state in zip(self.feeds, json.loads(position.stream), strict=True):
                feed.seek(state)
        while True:
            state, epoch = self._state(), min(feed.cycle for feed in self.feeds)
            block, rejected = self._read_block()
            after = Position(min(feed.cycle for feed in self.feeds), 0, position.block + 1, self._state())
            num_updates = 0 if block is None else len(block.updates_of(position.block))
            for i in range(position.update, num_updates):
                assert block is not None
                following = after if i + 1 == num_updates else Position(epoch, i + 1, position.block, state)
                # The block's number stands for the epoch, so that each block is shuffled and augmented in its own way.
                batches = block[Position(position.block, i)].micro_batches
                self._unreadable |= {bad.key for batch in batches for bad in batch.rejected}
                found = tuple(rejected) if i == 0 else ()
                yield UpdateBatches(batches, Position(epoch, i, position.block, state), following, found)
            position = after

    def _state(self) -> str:
        return json.dumps([feed.state() for feed in self.feeds])

    def _read_block(self) -> tuple[UpdateDataset | None, list[BadRow]]:
        tables = [feed.take(count) for feed, count in zip(self.feeds, self.counts, strict=True)]
        rejected = [
            BadRow(_key(place, record.line), record) for place, table in enumerate(tables) for record in table.rejected
        ]
        self._num_lines += sum(self.counts)
        self._num_bad += len(rejected)
        self._verify_share(rejected)
        tables = arrange_tables(tables, self.packings)
        clips = join_tables(tables, self.recipe.label_builder, packings=self.packings)
        self.audio_s += clips.audio_s
        if len(clips) == 0:
            return None, rejected
        keys = np.concatenate(
            [_key(place, table.column("line").astype(np.int64)) for place, table in enumerate(tables)]
        )
        augmentation, seed = self.recipe.augmentation, self.recipe.seed
        plan = EpochPlan(
            clips.durations_s,
            every_clip(len(clips), seed=seed),
            windows=self.windows,
            size=self.size,
            seed=seed,
            speeds=ClipSpeeds(augmentation, clips.durations_s, seed) if augmentation.speed_share > 0.0 else None,
        )
        reader = ClipReader(clips.rows, cache_gib=0.0)
        # They stay in the plan: what one rank could not read, or a run not before it was taken up again, must not
        # change the make-up of a block for the others.
        reader.leave_out(np.flatnonzero(np.isin(keys, list(self._unreadable))).tolist())
        return UpdateDataset(clips, plan, reader, self.recipe, rank=self.rank, keys=keys), rejected

    def _verify_share(self, rejected: Sequence[BadRow]) -> None:
        """Stop here, not in the loop: a stream of nothing but bad rows never gives an update."""
        share = self._num_bad / max(1, self._num_lines)
        if rejected and (self.on_bad == "strict" or (self.on_bad == "quarantine" and share > self.max_bad_share)):
            raise ValueError(
                f"{self._num_bad} of {self._num_lines} streamed rows cannot be used, more than "
                f"dataset.max_bad_share={self.max_bad_share:g} or dataset.on_bad=strict allow; the latest: "
                f"{rejected[-1].record}"
            )


def _key(place: int, line: Lines) -> Lines:
    return (place << KEY_BITS) + line


def _share_block(sources: Sequence[Source], num_replay: int, replay_share: float, block_clips: int) -> list[int]:
    """Return how many rows of each source a block takes: by weight, replay by its share, each at least one."""
    num_train = len(sources) - num_replay
    counts: list[int] = []
    for part, share in ((sources[:num_train], 1.0 - replay_share), (sources[num_train:], replay_share)):
        total = sum(source.weight for source in part)
        counts += [max(1, round(block_clips * share * source.weight / total)) for source in part]
    return counts
