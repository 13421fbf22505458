"""The plan of an epoch takes every clip once and depends on (seed, epoch) alone; cutting it up loses nothing."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from data.batches import EpochPlan, Position, SpeechBatch, UpdatePlan, collate
from data.labels import IGNORE_INDEX, Labels
from data.windows import FULL_FRAMES, Windows

EDGES = (1.0, 2.0, 5.0, 30.0)
DURATIONS_S = np.random.default_rng(7).uniform(0.2, 12.0, 203).round(3).tolist()


def _plan(*, full_share: float = 0.0, seed: int = 3, size: int = 16, shuffle: bool = True) -> EpochPlan:
    windows = Windows(EDGES, full_share)
    return EpochPlan(DURATIONS_S, windows=windows, global_batch_size=size, seed=seed, shuffle=shuffle)


@pytest.mark.parametrize("size", [1, 7, 16, 203, 500])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_clip_occurs_exactly_once_an_epoch(size: int, shuffle: bool) -> None:
    for epoch in range(3):
        updates = _plan(size=size, shuffle=shuffle).updates(epoch)
        assert sorted(row for update in updates for row in update.rows) == list(range(len(DURATIONS_S)))
        # Only the last clips, for which nothing is left to join, make an update that is not whole.
        assert Counter(len(update.rows) < size for update in updates)[True] == (len(DURATIONS_S) % size > 0)


def test_an_update_has_one_window_that_holds_its_clips_and_rarely_a_larger_one() -> None:
    windows, size = Windows(EDGES), 16
    own = [windows.num_frames(duration_s) for duration_s in DURATIONS_S]
    num_riding = 0
    for update in _plan(size=size).updates(0):
        assert all(own[row] <= update.num_frames for row in update.rows)
        assert update.num_frames == max(own[row] for row in update.rows)
        num_riding += sum(own[row] < update.num_frames for row in update.rows)
    assert 0 < num_riding < size * (len(EDGES) - 1)


def test_leftovers_ride_in_the_next_larger_window() -> None:
    """Hand-made: 5 clips of 1 s, 3 of 2 s, 1 of 5 s, in updates of 4."""
    durations_s = [0.5] * 5 + [1.5] * 3 + [4.0]
    plan = EpochPlan(durations_s, windows=Windows(EDGES), global_batch_size=4, seed=0, shuffle=False)
    assert plan.updates(0) == [
        UpdatePlan((0, 1, 2, 3), 100),
        UpdatePlan((4, 5, 6, 7), 200),
        UpdatePlan((8,), 500),
    ]


def test_last_leftovers_take_the_window_of_the_longest() -> None:
    plan = EpochPlan([0.5, 0.5, 1.5], windows=Windows(EDGES), global_batch_size=4, seed=0, shuffle=False)
    assert plan.updates(0) == [UpdatePlan((0, 1, 2), 200)]
    plan = EpochPlan([0.5, 0.5, 0.9], windows=Windows(EDGES), global_batch_size=4, seed=0, shuffle=False)
    assert plan.updates(0) == [UpdatePlan((0, 1, 2), 100)]


def test_same_seed_and_epoch_same_plan_whatever_went_before() -> None:
    expected = [_plan(full_share=0.3).updates(epoch) for epoch in range(4)]
    np.random.seed(99)
    random.seed(99)
    torch.manual_seed(99)
    plan = _plan(full_share=0.3)
    assert [plan.updates(epoch) for epoch in (3, 1, 0, 2, 1)] == [expected[epoch] for epoch in (3, 1, 0, 2, 1)]


def test_another_epoch_or_seed_is_another_plan() -> None:
    plans = [_plan(seed=seed).updates(epoch) for seed in (3, 4) for epoch in (0, 1)]
    for i, plan in enumerate(plans):
        for other in plans[:i]:
            assert [set(update.rows) for update in plan] != [set(update.rows) for update in other]


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
            assert update.rows == same.rows
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
    of_ranks = [
        update.micro_batches(micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(parts) for parts in of_ranks}) == 1
    assert len(of_ranks[0]) == -(-num_rows // (micro_batch_size * world_size))
    assert all(len(part) <= micro_batch_size for parts in of_ranks for part in parts)
    rows = [row for parts in of_ranks for part in parts for row in part]
    assert sorted(rows) == list(update.rows)
    assert all(type(row) is int for row in rows)


def test_accumulation_and_ranks_leave_the_clips_of_an_update_as_they_are() -> None:
    """1 x 16, 2 x 8 and 4 x 4 are the same sixteen clips, update by update."""
    for update in _plan(size=16).updates(1):
        wanted = sorted(update.rows)
        for micro_batch_size, world_size in ((16, 1), (8, 1), (4, 1), (8, 2), (4, 2), (4, 4)):
            parts = [
                update.micro_batches(micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            assert sorted(row for part in parts for batch in part for row in batch) == wanted


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no clip"):
        EpochPlan([], windows=Windows(EDGES), global_batch_size=1, seed=0)
    with pytest.raises(ValueError, match="at least one clip"):
        EpochPlan([1.0], windows=Windows(EDGES), global_batch_size=0, seed=0)
    with pytest.raises(ValueError, match="never cut"):
        EpochPlan([1.0, 30.5], windows=Windows(EDGES), global_batch_size=1, seed=0)


def test_positions_are_ordered() -> None:
    assert Position(0, 9) < Position(1, 0) < Position(1, 1)
    assert Position() == Position(0, 0)


PAD = 99


@pytest.fixture
def batch() -> SpeechBatch:
    labels = [
        Labels((1, 2, 3), (IGNORE_INDEX, 3, 4)),
        Labels((1,), (7,)),
        Labels((1, 2, 3, 4, 5), (2, 3, 4, 5, 6)),
    ]
    features = [torch.full((2, 4), float(i)) for i in range(3)]
    return collate(features, labels, rows=(10, 20, 30), audio_s=1.5, pad_id=PAD)


def test_collate_pads_to_the_longest_of_the_batch(batch: SpeechBatch) -> None:
    x = IGNORE_INDEX
    assert batch.decoder_input_ids.tolist() == [[1, 2, 3, PAD, PAD], [1, PAD, PAD, PAD, PAD], [1, 2, 3, 4, 5]]
    assert batch.labels.tolist() == [[x, 3, 4, x, x], [7, x, x, x, x], [2, 3, 4, 5, 6]]
    assert batch.decoder_input_ids.dtype == batch.labels.dtype == torch.long
    assert batch.input_features.shape == (3, 2, 4)
    assert batch.num_label_tokens == 8 == int((batch.labels != IGNORE_INDEX).sum())
    assert (batch.rows, batch.audio_s, batch.rejected) == ((10, 20, 30), 1.5, ())


def test_padding_never_reaches_the_loss(whisper: torch.nn.Module) -> None:
    """Two clips alone and the same two in one batch: same logits where there is a label, same summed loss."""
    torch.manual_seed(1)
    labels = [Labels((5, 6, 7, 8, 9), (6, 7, 8, 9, 10)), Labels((5, 6), (6, 7))]
    features = [torch.randn(80, 100), torch.randn(80, 100)]
    encoded = whisper.eval()

    def summed_loss(chosen: list[int]) -> torch.Tensor:
        made = collate([features[i] for i in chosen], [labels[i] for i in chosen], rows=chosen, audio_s=0.0, pad_id=PAD)
        logits = encoded(made.input_features, decoder_input_ids=made.decoder_input_ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), made.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )

    with torch.no_grad():
        torch.testing.assert_close(summed_loss([0, 1]), summed_loss([0]) + summed_loss([1]))


def test_select_keeps_the_given_clips(batch: SpeechBatch) -> None:
    kept = batch.select([2, 0])
    assert kept.rows == (30, 10)
    assert torch.equal(kept.input_features, batch.input_features[[2, 0]])
    assert torch.equal(kept.labels, batch.labels[[2, 0]])
    assert torch.equal(kept.decoder_input_ids, batch.decoder_input_ids[[2, 0]])
    assert kept.num_label_tokens == 7
    assert batch.select([]).num_label_tokens == 0
    assert batch.select([]).rows == ()
    assert batch.num_label_tokens == 8


def test_to_moves_every_tensor_and_keeps_the_facts(batch: SpeechBatch) -> None:
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in (moved.input_features, moved.decoder_input_ids, moved.labels)} == {"meta"}
    assert moved.num_label_tokens == 8  # counted on the host: asking never waits for a device
    assert moved.rows == batch.rows
