"""What the loader gives is a function of (seed, epoch, clip): neither the workers nor the start can change it."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.augment import Augmentation, augment_waveform, clip_rng
from data.batches import EpochPlan, Position, SpeechBatch
from data.dataset import ClipReader, Clips, open_clips
from data.features import LogMel
from data.labels import IGNORE_INDEX, LabelBuilder
from data.loaders import UpdateBatches, UpdateDataset, append_quarantine, open_updates
from data.reasons import Rejected
from data.windows import Windows

PAD = 7
BEGINNING = Position(0, 0)
STRONG = Augmentation(gain_db=6.0, num_frequency_masks=2, max_frequency_share=0.3, num_time_masks=2, max_time_share=0.2)


@pytest.fixture
def clips(corpus: Path, tokenizer) -> Clips:
    return open_clips([corpus], LabelBuilder(tokenizer, max_positions=448), strict=True, max_bad_share=0.0)


def _dataset(
    clips: Clips,
    *,
    augmentation: Augmentation = STRONG,
    cache_gib: float = 30_000 / 2**30,  # room for some clips and not for others
    micro_batch_size: int = 2,
    size: int = 4,
    full_share: float = 0.0,
    **ranks: int,
) -> UpdateDataset:
    windows = Windows((1.0, 2.0, 30.0), full_share)
    return UpdateDataset(
        ClipReader(clips, cache_gib=cache_gib),
        EpochPlan(clips.durations_s, windows=windows, global_batch_size=size, seed=5),
        log_mel=LogMel(80),
        augmentation=augmentation,
        micro_batch_size=micro_batch_size,
        pad_id=PAD,
        seed=5,
        **ranks,
    )


def _read(dataset: UpdateDataset, count: int, *, start: Position = BEGINNING, workers: int = 0) -> list[UpdateBatches]:
    updates = open_updates(dataset, start=start, num_workers=workers, pin_memory=False)
    return list(itertools.islice(updates, count))


def _assert_same(found: list[UpdateBatches], expected: list[UpdateBatches]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.position, a.next_position, a.rejected) == (b.position, b.next_position, b.rejected)
        assert len(a.micro_batches) == len(b.micro_batches)
        for x, y in zip(a.micro_batches, b.micro_batches, strict=True):
            assert (x.rows, x.audio_s, x.num_label_tokens) == (y.rows, y.audio_s, y.num_label_tokens)
            assert torch.equal(x.input_features, y.input_features)
            assert torch.equal(x.decoder_input_ids, y.decoder_input_ids)
            assert torch.equal(x.labels, y.labels)


def _by_row(updates: list[UpdateBatches]) -> dict[tuple[int, int], torch.Tensor]:
    """Return the features of each (epoch, row)."""
    return {
        (update.position.epoch, row): batch.input_features[i]
        for update in updates
        for batch in update.micro_batches
        for i, row in enumerate(batch.rows)
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_changes_nothing_over_two_epochs(workers: int, clips: Clips) -> None:
    num_updates = len(_dataset(clips).updates_of(0)) + len(_dataset(clips).updates_of(1))
    assert num_updates == 6
    random.seed(workers)
    torch.manual_seed(workers)
    _assert_same(_read(_dataset(clips), num_updates, workers=workers), _read(_dataset(clips), num_updates))


def test_each_epoch_reads_every_clip_once(clips: Clips) -> None:
    updates = _read(_dataset(clips), 6)
    assert sorted(_by_row(updates)) == [(epoch, row) for epoch in range(2) for row in range(10)]
    assert [update.position for update in updates] == [Position(e, u) for e in range(2) for u in range(3)]
    assert [update.next_position for update in updates[:-1]] == [update.position for update in updates[1:]]
    assert sum(batch.audio_s for u in updates[:3] for batch in u.micro_batches) == pytest.approx(clips.audio_s)


def test_starting_anywhere_gives_the_rest_of_the_whole_run(clips: Clips) -> None:
    whole = _read(_dataset(clips, full_share=0.3), 6)
    for i, update in enumerate(whole):
        _assert_same(_read(_dataset(clips, full_share=0.3), 6 - i, start=update.position), whole[i:])
    for update, following in itertools.pairwise(whole):
        assert update.next_position == following.position


def test_augmentation_depends_on_seed_epoch_and_clip_alone(clips: Clips) -> None:
    """Other micro-batches, ranks and readings before: a clip is changed the same way in the same epoch."""
    expected = _by_row(_read(_dataset(clips), 6))
    for other in (
        _dataset(clips, micro_batch_size=1),
        _dataset(clips, micro_batch_size=4),
        _dataset(clips, rank=1, world_size=2),
    ):
        found = _by_row(_read(other, 6))
        assert found
        for key, features in found.items():
            assert torch.equal(features, expected[key]), key


def test_augmentation_differs_between_epochs_clips_and_seeds(clips: Clips) -> None:
    features = _by_row(_read(_dataset(clips), 6))
    plain = _by_row(_read(_dataset(clips, augmentation=Augmentation()), 6))
    for row in range(10):
        assert not torch.equal(features[0, row], plain[0, row])
        shared = min(features[0, row].shape[-1], features[1, row].shape[-1])
        assert not torch.equal(features[0, row][:, :shared], features[1, row][:, :shared])
        shared = min(plain[0, row].shape[-1], plain[1, row].shape[-1])
        assert torch.equal(plain[0, row][:, :shared], plain[1, row][:, :shared])
    draws = {tuple(clip_rng(*key).random(2)) for key in itertools.product((5, 6), (0, 1), range(3))}
    assert len(draws) == 12


def test_gain_stays_within_full_scale_and_the_stated_range() -> None:
    waveform = np.float32([0.1, -0.4, 0.2])
    gains = [
        augment_waveform(waveform, Augmentation(gain_db=6.0), clip_rng(0, epoch, 0))[1] / waveform[1]
        for epoch in range(200)
    ]
    assert 10 ** (-6 / 20) <= min(gains) < 0.6
    assert 1.8 < max(gains) <= 10 ** (6 / 20)
    loud = np.float32([0.9, -1.0])
    for epoch in range(50):
        assert np.abs(augment_waveform(loud, Augmentation(gain_db=6.0), clip_rng(0, epoch, 0))).max() <= 1.0


def test_features_and_labels_are_those_of_the_clips(clips: Clips) -> None:
    dataset = _dataset(clips, augmentation=Augmentation(), cache_gib=0)
    for update in _read(dataset, 3):
        for batch in update.micro_batches:
            for i, row in enumerate(batch.rows):
                waveform = dataset.reader.read(row)
                expected = dataset.log_mel(waveform, num_frames=batch.input_features.shape[-1])
                assert torch.equal(batch.input_features[i], expected)
                wanted = clips.labels[row]
                length = len(wanted.labels)
                assert batch.labels[i, :length].tolist() == list(wanted.labels)
                assert batch.decoder_input_ids[i, :length].tolist() == list(wanted.decoder_input_ids)
                assert (batch.labels[i, length:] == IGNORE_INDEX).all()
                assert (batch.decoder_input_ids[i, length:] == PAD).all()
        assert update.num_label_tokens == sum(
            clips.labels[row].num_label_tokens for batch in update.micro_batches for row in batch.rows
        )


def test_ranks_read_the_same_update_between_them(clips: Clips) -> None:
    alone = _read(_dataset(clips), 6)
    of_ranks = [_read(_dataset(clips, rank=rank, world_size=2), 6) for rank in range(2)]
    for whole, *parts in zip(alone, *of_ranks, strict=True):
        assert len({part.position for part in parts} | {whole.position}) == 1
        assert len({len(part.micro_batches) for part in parts}) == 1
        rows = sorted(row for part in parts for batch in part.micro_batches for row in batch.rows)
        assert rows == sorted(row for batch in whole.micro_batches for row in batch.rows)
        assert sum(part.num_label_tokens for part in parts) == whole.num_label_tokens


def test_a_rank_without_clips_gets_a_batch_without_loss(clips: Clips) -> None:
    few = replace(clips, rows=clips.rows[:1], labels=clips.labels[:1], durations_s=clips.durations_s[:1])
    update = _read(_dataset(few, rank=1, world_size=2), 1)[0]
    (batch,) = update.micro_batches
    assert (batch.rows, batch.num_label_tokens, update.num_label_tokens, batch.audio_s) == ((), 0, 0, 0.0)
    assert batch.input_features.shape == (1, 80, 100)
    assert (batch.labels == IGNORE_INDEX).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_fails_is_reported_and_not_replaced(workers: int, clips: Clips) -> None:
    clips.rows[3].audio.write_bytes(b"no longer audio")
    expected = _by_row(_read(_dataset(clips), 6))
    updates = _read(_dataset(clips), 6, workers=workers)
    assert (0, 3) not in _by_row(updates)
    assert sorted(row for epoch, row in _by_row(updates) if epoch == 0) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    records = [record for update in updates[:3] for record in update.rejected]
    assert [(record.id, record.code, record.line) for record in records] == [("c3", "A04", 4)]
    for key, features in _by_row(updates).items():
        assert torch.equal(features, expected[key])


def test_a_micro_batch_that_fails_whole_keeps_its_place(clips: Clips) -> None:
    for row in clips.rows:
        row.audio.write_bytes(b"no longer audio")
    updates = _read(_dataset(clips), 3)
    batches: list[SpeechBatch] = [batch for update in updates for batch in update.micro_batches]
    assert sum(len(batch.rejected) for batch in batches) == 10
    assert sum(batch.num_label_tokens for batch in batches) == 0
    assert all(batch.rows == () and batch.audio_s == 0.0 for batch in batches)


def test_a_clip_longer_than_its_window_is_reported_and_never_cut(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path], tokenizer
) -> None:
    """0.96 s stated, 1.04 s found: within the tolerance of the decoder, but not of the 1 s window."""
    write_clip("clip.wav", 1.04)
    write_clip("good.wav", 0.9)
    row = {"text": "x", "language": "en"}
    manifest = write_manifest([{**row, "audio": "clip.wav", "duration_s": 0.96}, {**row, "audio": "good.wav"}])
    clips = open_clips([manifest], LabelBuilder(tokenizer, max_positions=448), strict=True, max_bad_share=0.0)
    (update,) = _read(_dataset(clips), 1)
    assert [(record.code, record.line) for record in update.rejected] == [("M08", 1)]
    assert "1.04 s found, 0.96 s in the manifest" in update.rejected[0].message
    assert [batch.rows for batch in update.micro_batches] == [(1,)]


@pytest.mark.parametrize("workers", [0, 1])
def test_opening_and_reading_leave_the_random_state_of_the_process_alone(workers: int, clips: Clips) -> None:
    """Dropout after a resume must not depend on how often the loader was opened, or on what it read."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    _read(_dataset(clips), 3, workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_quarantine_file_is_json_lines_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    append_quarantine(path, ())
    assert not path.exists()
    record = Rejected("m.jsonl", 3, "ид", "音.wav", "A04", "broken")
    append_quarantine(path, (record,))
    append_quarantine(path, (record, replace(record, line=4)))
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [r["line"] for r in records] == [3, 3, 4]
    assert records[0] == {
        "manifest": "m.jsonl",
        "line": 3,
        "id": "ид",
        "audio": "音.wav",
        "code": "A04",
        "message": "broken",
    }
