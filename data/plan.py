"""Which clips form an update, in which order and window.

The plan of an epoch is a function of (seed, epoch) and of nothing else. One update takes clips of one window edge, so a
result never depends on which clips shared its batch, and accumulation only cuts an update into smaller forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from data.features import FRAMES_PER_S
from data.mixture import Mixture
from data.windows import FULL_FRAMES, Windows

ORDER_STREAM = 2  # first word of the seed, unlike that of the clips in `augment`

Speeds = Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.float64]]
"""From an epoch and places of clips to the speed each is played at in it."""


@dataclass(frozen=True)
class Position:
    """Where the data stands: the next update to read."""

    epoch: int = 0
    update: int = 0
    block: int = 0
    """Of a stream; `update` then counts within it."""
    stream: str | None = None
    """JSON: where the block begins in each source of a stream."""


@dataclass(frozen=True)
class BatchSize:
    """How many clips a forward and an update take: a number of clips, or as many as fill some seconds of windows."""

    clips: int
    """Of one forward on one device; the largest number where `audio_s` is given."""
    accumulation_steps: int = 1
    world_size: int = 1
    audio_s: float | None = None
    """Seconds of windows, padding included, in one forward on one device."""

    def __post_init__(self) -> None:
        if min(self.clips, self.accumulation_steps, self.world_size) < 1:
            raise ValueError(f"an update needs at least one clip, found {self}")
        if self.audio_s is not None and self.audio_s <= 0:
            raise ValueError(f"trainer.micro_batch_audio_s={self.audio_s} must be above 0")

    def micro(self, num_frames: int) -> int:
        """Return the clips of one forward, for windows of so many frames."""
        if self.audio_s is None:
            return self.clips
        return max(1, min(self.clips, int(self.audio_s * FRAMES_PER_S) // num_frames))

    def update(self, num_frames: int) -> int:
        """Return the clips of one update, over accumulation and ranks."""
        return self.micro(num_frames) * self.accumulation_steps * self.world_size


@dataclass(frozen=True)
class UpdatePlan:
    """The clips of one optimizer update, over all ranks, and their common window."""

    clips: tuple[int, ...]
    num_frames: int

    def micro_batches(self, size: BatchSize, *, rank: int = 0) -> list[tuple[int, ...]]:
        """Cut the update into a rank's micro-batches.

        Every rank gets the same number of them, so that ranks stay in step; where clips are too few, some are empty.
        """
        num_rounds = -(-len(self.clips) // (size.micro(self.num_frames) * size.world_size))
        parts = np.array_split(np.asarray(self.clips, dtype=np.int64), num_rounds * size.world_size)
        return [tuple(int(i) for i in part) for part in parts[rank :: size.world_size]]


class EpochUpdates(Sequence[UpdatePlan]):
    """The updates of one epoch, each made when it is asked for."""

    def __init__(
        self,
        clips: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        stops: npt.NDArray[np.int64],
        num_frames: npt.NDArray[np.int64],
    ) -> None:
        """Remember the cuts.

        Args:
            clips: (num_draws,) places of clips, updates in one piece each.
            starts: (num_updates,) first clip of each update.
            stops: (num_updates,) end of each update.
            num_frames: (num_updates,) window of each update.
        """
        self.clips = clips
        self.starts = starts
        self.stops = stops
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> UpdatePlan: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[UpdatePlan]: ...
    def __getitem__(self, index: int | slice) -> UpdatePlan | Sequence[UpdatePlan]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        clips = self.clips[self.starts[index] : self.stops[index]]
        return UpdatePlan(tuple(clips.tolist()), int(self.num_frames[index]))


class EpochPlan:
    """The updates of every epoch, as a function of (seed, epoch)."""

    def __init__(
        self,
        durations_s: npt.NDArray[np.float64],
        mixture: Mixture,
        *,
        windows: Windows,
        size: BatchSize,
        seed: int,
        shuffle: bool = True,
        speeds: Speeds | None = None,
    ) -> None:
        """Remember the rule.

        Args:
            durations_s: (num_clips,) length of each clip, in seconds.
            mixture: which clips an epoch takes.
            windows: the window rule.
            size: clips of an update.
            seed: of the order.
            shuffle: False keeps the clips of each window in order.
            speeds: how fast each clip is played, which changes its window; None plays all as they are.

        Raises:
            ValueError: if there are fewer clips than ranks.
        """
        self.durations_s = np.asarray(durations_s, dtype=np.float64)
        if len(self.durations_s) < size.world_size:
            raise ValueError(f"{len(self.durations_s)} clips to train on are too few for {size.world_size} processes")
        windows.frames_of(self.durations_s)  # a clip that fits no window stops here, not at its turn
        self.mixture = mixture
        self.windows = windows
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.speeds = speeds

    def updates(self, epoch: int) -> EpochUpdates:
        """Return the updates of an epoch; every clip occurs as often as the mixture says."""
        rng = np.random.default_rng([ORDER_STREAM, self.seed, epoch])
        drawn = self.mixture.draw(epoch)
        drawn = rng.permutation(drawn) if self.shuffle else np.sort(drawn)
        durations_s = self.durations_s[drawn]
        if self.speeds is not None:
            durations_s = durations_s / self.speeds(epoch, drawn)
        frames = self.windows.frames_of(durations_s)
        pieces: list[npt.NDArray[np.int64]] = []
        lengths: list[npt.NDArray[np.int64]] = []
        edges: list[npt.NDArray[np.int64]] = []
        waiting = np.zeros(0, np.int64)
        for edge in np.unique(frames):
            # The few clips that fill no update of their own window ride in the next larger one: an update of one clip
            # would move the weights as far as one of thirty-two.
            clips = np.concatenate([waiting, drawn[frames == edge]])
            size = self.size.update(int(edge))
            num_updates = len(clips) // size
            pieces.append(clips[: num_updates * size])
            lengths.append(np.full(num_updates, size))
            edges.append(np.full(num_updates, edge))
            waiting = clips[num_updates * size :]
        if len(waiting):
            pieces.append(waiting)
            lengths.append(np.array([len(waiting)]))
            edges.append(np.array([frames.max()]))
        stops = np.cumsum(np.concatenate(lengths))
        starts = np.concatenate([[0], stops[:-1]])
        num_frames = np.concatenate(edges)
        order = rng.permutation(len(stops)) if self.shuffle else np.arange(len(stops))
        num_frames = np.where(rng.random(len(stops)) < self.windows.full_share, FULL_FRAMES, num_frames[order])
        return EpochUpdates(np.concatenate(pieces), starts[order], stops[order], num_frames)
