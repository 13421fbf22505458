"""The plan of an epoch takes what its mixture says, as a function of (seed, epoch); cutting it up loses nothing."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from data.augment import Augmentation
from data.loaders import ClipSpeeds
from data.mixture import every_clip
from data.plan import BatchSize, EpochPlan, Position, UpdatePlan
from data.windows import FULL_FRAMES, Windows, full_windows

EDGES = (1.0, 2.0, 5.0, 30.0)
DURATIONS_S = np.random.default_rng(7).uniform(0.2, 12.0, 203).round(3)


def _plan(*, full_share: float = 0.0, seed: int = 3, size: int = 16, shuffle: bool = True) -> EpochPlan:
    return EpochPlan(
        DURATIONS_S,
        every_clip(len(DURATIONS_S), seed=seed),
        windows=Windows(EDGES, full_share),
        size=BatchSize(size),
        seed=seed,
        shuffle=shuffle,
    )


def _small_plan(durations_s: list[float], size: int = 4) -> EpochPlan:
    mixture = every_clip(len(durations_s))
    return EpochPlan(
        np.array(durations_s), mixture, windows=Windows(EDGES), size=BatchSize(size), seed=0, shuffle=False
    )


@pytest.mark.parametrize("size", [1, 7, 16, 203, 500])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_clip_occurs_exactly_once_an_epoch(size: int, shuffle: bool) -> None:
    for epoch in range(3):
        updates = _plan(size=size, shuffle=shuffle).updates(epoch)
        assert sorted(row for update in updates for row in update.clips) == list(range(len(DURATIONS_S)))
        # Only the last clips, for which nothing is left to join, make an update that is not whole.
        assert Counter(len(update.clips) < size for update in updates)[True] == (len(DURATIONS_S) % size > 0)


def test_an_update_has_one_window_that_holds_its_clips_and_rarely_a_larger_one() -> None:
    windows, size = Windows(EDGES), 16
    own = [windows.num_frames(duration_s) for duration_s in DURATIONS_S]
    num_riding = 0
    for update in _plan(size=size).updates(0):
        assert all(own[row] <= update.num_frames for row in update.clips)
        assert update.num_frames == max(own[row] for row in update.clips)
        num_riding += sum(own[row] < update.num_frames for row in update.clips)
    assert 0 < num_riding < size * (len(EDGES) - 1)


def test_leftovers_ride_in_the_next_larger_window() -> None:
    """Hand-made: 5 clips of 1 s, 3 of 2 s, 1 of 5 s, in updates of 4."""
    durations_s = [0.5] * 5 + [1.5] * 3 + [4.0]
    assert list(_small_plan(durations_s).updates(0)) == [
        UpdatePlan((0, 1, 2, 3), 100),
        UpdatePlan((4, 5, 6, 7), 200),
        UpdatePlan((8,), 500),
    ]


def test_last_leftovers_take_the_window_of_the_longest() -> None:
    assert list(_small_plan([0.5, 0.5, 1.5]).updates(0)) == [UpdatePlan((0, 1, 2), 200)]
    assert list(_small_plan([0.5, 0.5, 0.9]).updates(0)) == [UpdatePlan((0, 1, 2), 100)]


def test_same_seed_and_epoch_same_plan_whatever_went_before() -> None:
    expected = [list(_plan(full_share=0.3).updates(epoch)) for epoch in range(4)]
    np.random.seed(99)
    random.seed(99)
    torch.manual_seed(99)
    plan = _plan(full_share=0.3)
    assert [list(plan.updates(epoch)) for epoch in (3, 1, 0, 2, 1)] == [expected[epoch] for epoch in (3, 1, 0, 2, 1)]


def test_another_epoch_or_seed_is_another_plan() -> None:
    plans = [_plan(seed=seed).updates(epoch) for seed in (3, 4) for epoch in (0, 1)]
    for i, plan in enumerate(plans):
        for other in plans[:i]:
            assert [set(update.clips) for update in plan] != [set(update.clips) for update in other]


def test_windows_come_in_mixed_order() -> None:
    frames = [update.num_frames for update in _plan(size=4).updates(0)]
    assert frames != sorted(frames)
    assert [update.num_frames for update in _plan(size=4, shuffle=False).updates(0)] == sorted(frames)


def test_share_of_full_windows_is_kept_and_moves_no_clip() -> None:
    share, epochs = 0.25, 40
    plan = _plan(full_share=share, size=4)
    bare = _plan(size=4)
    own = full = 0
    for epoch in range(epochs):
        for update, same in zip(plan.updates(epoch), bare.updates(epoch), strict=True):
            assert update.clips == same.clips
            if same.num_frames == FULL_FRAMES:
                assert update.num_frames == FULL_FRAMES
                continue
            assert update.num_frames in (same.num_frames, FULL_FRAMES)
            own += update.num_frames == same.num_frames
            full += update.num_frames == FULL_FRAMES
    total = own + full
    assert total > 500
    # Five standard deviations of a binomial: wrong about once in two million seeds, and the seed is fixed.
    assert abs(full / total - share) < 5 * (share * (1 - share) / total) ** 0.5
    assert all(update.num_frames == FULL_FRAMES for update in _plan(full_share=1.0).updates(0))


@pytest.mark.parametrize("num_rows", [1, 3, 15, 16, 17, 31])
@pytest.mark.parametrize(("micro_batch_size", "world_size"), [(16, 1), (8, 2), (4, 4), (4, 1), (1, 3), (5, 2)])
def test_ranks_share_an_update_without_loss_and_in_step(num_rows: int, micro_batch_size: int, world_size: int) -> None:
    update = UpdatePlan(tuple(range(100, 100 + num_rows)), 200)
    size = BatchSize(micro_batch_size, world_size=world_size)
    of_ranks = [update.micro_batches(size, rank=rank) for rank in range(world_size)]
    assert len({len(parts) for parts in of_ranks}) == 1
    assert len(of_ranks[0]) == -(-num_rows // (micro_batch_size * world_size))
    assert all(len(part) <= micro_batch_size for parts in of_ranks for part in parts)
    rows = [row for parts in of_ranks for part in parts for row in part]
    assert sorted(rows) == list(update.clips)
    assert all(type(row) is int for row in rows)


def test_accumulation_and_ranks_leave_the_clips_of_an_update_as_they_are() -> None:
    """1 x 16, 2 x 8 and 4 x 4 are the same sixteen clips, update by update."""
    for update in _plan(size=16).updates(1):
        wanted = sorted(update.clips)
        for micro_batch_size, world_size in ((16, 1), (8, 1), (4, 1), (8, 2), (4, 2), (4, 4)):
            size = BatchSize(micro_batch_size, 16 // micro_batch_size // world_size, world_size)
            parts = [update.micro_batches(size, rank=rank) for rank in range(world_size)]
            assert sorted(row for part in parts for batch in part for row in batch) == wanted


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="0 clips to train on are too few for 1 processes"):
        _small_plan([])
    with pytest.raises(ValueError, match="at least one clip"):
        _small_plan([1.0], size=0)
    with pytest.raises(ValueError, match="never cut"):
        _small_plan([1.0, 30.5])
    with pytest.raises(ValueError, match="3 clips to train on are too few for 4 processes"):
        EpochPlan(np.ones(3), every_clip(3), windows=full_windows(), size=BatchSize(1, world_size=4), seed=0)
    with pytest.raises(ValueError, match=r"trainer\.micro_batch_audio_s=0"):
        BatchSize(1, audio_s=0.0)


def test_a_position_begins_at_the_beginning() -> None:
    assert Position() == Position(epoch=0, update=0, block=0, stream=None)


def test_an_update_is_found_by_its_place_alone() -> None:
    updates = _plan().updates(0)
    assert list(updates) == [updates[i] for i in range(len(updates))] == list(updates[:])
    assert updates[-1] == updates[len(updates) - 1]
    assert [type(clip) for clip in updates[0].clips] == [int] * 16
    with pytest.raises(IndexError):
        updates[len(updates)]


@pytest.mark.parametrize(("accumulation", "world_size"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("audio_s", [0.5, 7.0, 60.0, 120.0])
def test_seconds_of_windows_limit_a_forward(audio_s: float, accumulation: int, world_size: int) -> None:
    """Hand-counted: as many windows as fill the seconds, never none, and never more clips than allowed."""
    size = BatchSize(40, accumulation, world_size, audio_s)
    plan = EpochPlan(DURATIONS_S, every_clip(203), windows=Windows(EDGES, 0.3), size=size, seed=1)
    seen: Counter[int] = Counter()
    for update in plan.updates(0):
        most = min(40, max(1, int(audio_s * 100) // update.num_frames))
        of_ranks = [update.micro_batches(size, rank=rank) for rank in range(world_size)]
        assert len({len(parts) for parts in of_ranks}) == 1
        for batch in (batch for parts in of_ranks for batch in parts):
            assert len(batch) <= most
            assert len(batch) <= 1 or len(batch) * update.num_frames <= audio_s * 100
        seen.update(clip for parts in of_ranks for batch in parts for clip in batch)
    assert seen == Counter(range(203))


def test_windows_of_thirty_seconds_are_cut_into_more_forwards() -> None:
    """60 s of windows: twelve of 5 s in one forward, and two each where the same twelve are padded to 30 s."""
    size = BatchSize(100, audio_s=60.0)
    durations_s = np.full(12, 4.0)
    for full_share, num_frames, sizes in ((0.0, 500, [12]), (1.0, FULL_FRAMES, [2] * 6)):
        plan = EpochPlan(durations_s, every_clip(12), windows=Windows(EDGES, full_share), size=size, seed=0)
        (update,) = plan.updates(0)
        assert (update.num_frames, len(update.clips)) == (num_frames, 12)
        assert [len(batch) for batch in update.micro_batches(size)] == sizes


def test_a_window_is_that_of_the_clip_as_it_is_played() -> None:
    """1.95 s at nine tenths of its speed is 2.17 s, and no longer fits 2 s; 2.05 s at 1.1 is 1.86 s, and does."""
    augmentation = Augmentation(speed_share=1.0, speeds=(0.9, 1.1))
    durations_s = np.tile([1.95, 2.05, 1.5, 29.0], 50)
    speeds = ClipSpeeds(augmentation, durations_s, 3)
    plan = EpochPlan(durations_s, every_clip(200), windows=Windows(EDGES), size=BatchSize(1), seed=3, speeds=speeds)
    seen = set()
    for epoch in range(2):
        clips = np.arange(200)
        of_clips = speeds(epoch, clips)
        for update in plan.updates(epoch):
            (clip,) = update.clips
            played_s = durations_s[clip] / of_clips[clip]
            seen.add((float(durations_s[clip]), update.num_frames))
            assert update.num_frames == min(e * 100 for e in EDGES if played_s <= e)
    # At 0.9 the longest would outgrow 30 s, and so keep its speed; nothing else keeps its own.
    assert seen == {(1.95, 200), (1.95, 500), (2.05, 200), (2.05, 500), (1.5, 200), (29.0, 3000)}
    assert set(speeds(0, np.arange(3, 200, 4)).tolist()) == {1.0, 1.1}
    assert set(speeds(0, np.arange(0, 200, 4)).tolist()) == {0.9, 1.1}


def test_a_clip_that_comes_three_times_has_three_places() -> None:
    from data.mixture import Group, Mixture

    rare = Group("rare", "en", np.array([0, 1]), 1.0, 6.0, is_replay=False)
    often = Group("often", "en", np.arange(2, 12), 1.0, 10.0, is_replay=False)
    mixture = Mixture([rare, often], seed=0)
    plan = EpochPlan(DURATIONS_S[:12], mixture, windows=Windows(EDGES), size=BatchSize(4), seed=0)
    for epoch in range(3):
        counts = Counter(clip for update in plan.updates(epoch) for clip in update.clips)
        assert counts == {clip: 3 if clip < 2 else 1 for clip in range(12)}
