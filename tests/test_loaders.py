"""What the loader gives is a function of (seed, epoch, clip): neither the workers nor the start can change it."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone

from data.augment import NO_RECORDINGS, Augmentation, augment_waveform, clip_rng
from data.batches import SpeechBatch
from data.dataset import Clips, open_clips
from data.features import LogMel
from data.label_modes import LabelSettings
from data.labels import IGNORE_INDEX, LabelBuilder
from data.loaders import ClipRecipe, ClipSpeeds, UpdateBatches, UpdateDataset
from data.mixture import MixtureSettings, build_mixture, every_clip
from data.packing import Packing
from data.plan import BatchSize, EpochPlan, Position
from data.reader import ClipReader
from data.reasons import Rejected
from data.settings import DatasetSettings
from data.sources import Source
from data.windows import Windows
from data.workers import open_updates
from train.quarantine import append_quarantine

PAD = 7
BEGINNING = Position(0, 0)
PLAIN = LabelSettings()
STRONG = Augmentation(gain_db=6.0, num_frequency_masks=2, max_frequency_share=0.3, num_time_masks=2, max_time_share=0.2)


@pytest.fixture
def builder(tokenizer) -> LabelBuilder:
    return LabelBuilder(tokenizer, max_positions=448)


def _open(*paths: Path, builder: LabelBuilder, packing: Packing | None = None, **options: object) -> Clips:
    sources = [Source(str(path)) for path in paths]
    options["packings"] = [packing] * len(paths)
    return open_clips(sources, builder, **{"on_bad": "strict", "max_bad_share": 0.0, **options})  # type: ignore[arg-type]


@pytest.fixture
def clips(corpus: Path, builder: LabelBuilder) -> Clips:
    return _open(corpus, builder=builder)


@pytest.fixture
def make(builder: LabelBuilder) -> Callable[..., UpdateDataset]:
    """Make a data set of clips; updates of four clips, in micro-batches of two."""

    def make_dataset(
        clips: Clips,
        *,
        augmentation: Augmentation = STRONG,
        labels: LabelSettings = PLAIN,
        cache_gib: float = 30_000 / 2**30,  # room for some clips and not for others
        micro_batch_size: int = 2,
        size: int = 4,
        full_share: float = 0.0,
        audio_s: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> UpdateDataset:
        has_speeds = augmentation.speed_share > 0
        plan = EpochPlan(
            clips.durations_s,
            every_clip(len(clips), seed=5),
            windows=Windows((1.0, 2.0, 30.0), full_share),
            size=BatchSize(micro_batch_size, size // micro_batch_size // world_size, world_size, audio_s),
            seed=5,
            speeds=ClipSpeeds(augmentation, clips.durations_s, 5) if has_speeds else None,
        )
        recipe = ClipRecipe(builder, labels, LogMel(80), augmentation, NO_RECORDINGS, pad_id=PAD, seed=5)
        return UpdateDataset(clips, plan, ClipReader(clips.rows, cache_gib=cache_gib), recipe, rank=rank)

    return make_dataset


def _read(dataset: UpdateDataset, count: int, *, start: Position = BEGINNING, workers: int = 0) -> list[UpdateBatches]:
    updates = open_updates(dataset, start=start, num_workers=workers, pin_memory=False)
    found = list(itertools.islice(updates, count))
    if workers == 0:
        updates.close()  # type: ignore[attr-defined]  # nothing is read ahead any more
    return found


def _assert_same(found: list[UpdateBatches], expected: list[UpdateBatches]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.position, a.next_position, a.rejected) == (b.position, b.next_position, b.rejected)
        assert len(a.micro_batches) == len(b.micro_batches)
        for x, y in zip(a.micro_batches, b.micro_batches, strict=True):
            assert (x.clips, x.members, x.audio_s, x.num_label_tokens) == (
                y.clips,
                y.members,
                y.audio_s,
                y.num_label_tokens,
            )
            assert torch.equal(x.input_features, y.input_features)
            assert torch.equal(x.decoder_input_ids, y.decoder_input_ids)
            assert torch.equal(x.labels, y.labels)


def _by_clip(updates: list[UpdateBatches]) -> dict[tuple[int, int], torch.Tensor]:
    """Return the features of each (epoch, clip)."""
    return {
        (update.position.epoch, row): batch.input_features[i]
        for update in updates
        for batch in update.micro_batches
        for i, row in enumerate(batch.clips)
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_changes_nothing_over_two_epochs(
    workers: int, clips: Clips, make: Callable[..., UpdateDataset]
) -> None:
    num_updates = len(make(clips).updates_of(0)) + len(make(clips).updates_of(1))
    assert num_updates == 6
    random.seed(workers)
    torch.manual_seed(workers)
    _assert_same(_read(make(clips), num_updates, workers=workers), _read(make(clips), num_updates))


def test_each_epoch_reads_every_clip_once(clips: Clips, make: Callable[..., UpdateDataset]) -> None:
    updates = _read(make(clips), 6)
    assert sorted(_by_clip(updates)) == [(epoch, row) for epoch in range(2) for row in range(10)]
    assert [update.position for update in updates] == [Position(e, u) for e in range(2) for u in range(3)]
    assert [update.next_position for update in updates[:-1]] == [update.position for update in updates[1:]]
    assert sum(batch.audio_s for u in updates[:3] for batch in u.micro_batches) == pytest.approx(clips.audio_s)


def test_starting_anywhere_gives_the_rest_of_the_whole_run(clips: Clips, make: Callable[..., UpdateDataset]) -> None:
    whole = _read(make(clips, full_share=0.3), 6)
    for i, update in enumerate(whole):
        _assert_same(_read(make(clips, full_share=0.3), 6 - i, start=update.position), whole[i:])
    for update, following in itertools.pairwise(whole):
        assert update.next_position == following.position


def test_augmentation_depends_on_seed_epoch_and_clip_alone(clips: Clips, make: Callable[..., UpdateDataset]) -> None:
    """Other micro-batches, ranks and readings before: a clip is changed the same way in the same epoch."""
    expected = _by_clip(_read(make(clips), 6))
    for other in (
        make(clips, micro_batch_size=1),
        make(clips, micro_batch_size=4),
        make(clips, micro_batch_size=2, rank=1, world_size=2),
    ):
        found = _by_clip(_read(other, 6))
        assert found
        for key, features in found.items():
            assert torch.equal(features, expected[key]), key


def test_augmentation_differs_between_epochs_clips_and_seeds(clips: Clips, make: Callable[..., UpdateDataset]) -> None:
    features = _by_clip(_read(make(clips), 6))
    plain = _by_clip(_read(make(clips, augmentation=Augmentation()), 6))
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


def test_features_and_labels_are_those_of_the_clips(clips: Clips, make: Callable[..., UpdateDataset]) -> None:
    dataset = make(clips, augmentation=Augmentation(), cache_gib=0)
    expected_labels = [dataset.recipe.label_builder.build(row) for row in clips.rows]
    for update in _read(dataset, 3):
        for batch in update.micro_batches:
            for i, row in enumerate(batch.clips):
                waveform = dataset.reader.read(row)
                expected = dataset.recipe.log_mel(waveform, num_frames=batch.input_features.shape[-1])
                assert torch.equal(batch.input_features[i], expected)
                wanted = expected_labels[row]
                length = len(wanted.labels)
                assert batch.labels[i, :length].tolist() == list(wanted.labels)
                assert batch.decoder_input_ids[i, :length].tolist() == list(wanted.decoder_input_ids)
                assert (batch.labels[i, length:] == IGNORE_INDEX).all()
                assert (batch.decoder_input_ids[i, length:] == PAD).all()
        assert update.num_label_tokens == sum(
            expected_labels[row].num_label_tokens for batch in update.micro_batches for row in batch.clips
        )


def test_ranks_read_the_same_update_between_them(clips: Clips, make: Callable[..., UpdateDataset]) -> None:
    alone = _read(make(clips), 6)
    of_ranks = [_read(make(clips, rank=rank, world_size=2), 6) for rank in range(2)]
    for whole, *parts in zip(alone, *of_ranks, strict=True):
        assert len({part.position for part in parts} | {whole.position}) == 1
        assert len({len(part.micro_batches) for part in parts}) == 1
        rows = sorted(row for part in parts for batch in part.micro_batches for row in batch.clips)
        assert rows == sorted(row for batch in whole.micro_batches for row in batch.clips)
        assert sum(part.num_label_tokens for part in parts) == whole.num_label_tokens


def test_a_rank_without_clips_gets_a_batch_without_loss(clips: Clips, make: Callable[..., UpdateDataset]) -> None:
    """Three clips for two ranks, in updates of two: the last update has none for the second."""
    few = replace(clips, bounds=clips.bounds[:4], durations_s=clips.durations_s[:3])
    dataset = make(few, size=2, micro_batch_size=1, rank=1, world_size=2)
    sizes = [len(update.clips) for update in dataset.updates_of(0)]
    assert sorted(sizes) == [1, 2]
    update = _read(dataset, 2)[sizes.index(1)]
    (batch,) = update.micro_batches
    assert (batch.clips, batch.num_label_tokens, update.num_label_tokens, batch.audio_s) == ((), 0, 0, 0.0)
    assert batch.input_features.shape == (1, 80, 100)
    assert (batch.labels == IGNORE_INDEX).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_fails_is_reported_and_not_replaced(
    workers: int, clips: Clips, make: Callable[..., UpdateDataset]
) -> None:
    clips.rows[3].audio.write_bytes(b"no longer audio")
    expected = _by_clip(_read(make(clips), 6))
    updates = _read(make(clips), 6, workers=workers)
    assert (0, 3) not in _by_clip(updates)
    assert sorted(row for epoch, row in _by_clip(updates) if epoch == 0) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    records = [bad.record for update in updates[:3] for bad in update.rejected]
    assert [(record.id, record.code, record.line) for record in records] == [("c3", "M11", 4)]
    for key, features in _by_clip(updates).items():
        assert torch.equal(features, expected[key])


def test_a_micro_batch_that_fails_whole_keeps_its_place(clips: Clips, make: Callable[..., UpdateDataset]) -> None:
    for row in list(clips.rows):
        row.audio.write_bytes(b"no longer audio")
    updates = _read(make(clips), 3)
    batches: list[SpeechBatch] = [batch for update in updates for batch in update.micro_batches]
    assert sum(len(batch.rejected) for batch in batches) == 10
    assert sum(batch.num_label_tokens for batch in batches) == 0
    assert all(batch.clips == () and batch.audio_s == 0.0 for batch in batches)


def test_a_clip_longer_than_its_window_is_reported_and_never_cut(
    write_clip: Callable[..., Path],
    write_manifest: Callable[..., Path],
    builder: LabelBuilder,
    make: Callable[..., UpdateDataset],
) -> None:
    """0.96 s stated, 1.04 s found: within the tolerance of the decoder, but not of the 1 s window."""
    write_clip("clip.wav", 1.04)
    write_clip("good.wav", 0.9)
    row = {"text": "x", "language": "en"}
    manifest = write_manifest([{**row, "audio": "clip.wav", "duration_s": 0.96}, {**row, "audio": "good.wav"}])
    (update,) = _read(make(_open(manifest, builder=builder)), 1)
    assert [(bad.key, bad.record.code, bad.record.line) for bad in update.rejected] == [(0, "M08", 1)]
    assert "1.04 s found, 0.96 s stated" in update.rejected[0].record.message
    assert [batch.clips for batch in update.micro_batches] == [(1,)]


@pytest.mark.parametrize("workers", [0, 1])
def test_opening_and_reading_leave_the_random_state_of_the_process_alone(
    workers: int, clips: Clips, make: Callable[..., UpdateDataset]
) -> None:
    """Dropout after a resume must not depend on how often the loader was opened, or on what it read."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    _read(make(clips), 3, workers=workers)
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
        "byte_offset": None,
        "duration_s": None,
    }


# Packs, recordings and speeds, from a manifest to the tensors of a batch.


def _write_numbers(path: Path, start: int, count: int) -> None:
    soundfile.write(path, np.arange(start, start + count).astype(np.int16), 16_000)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, np.ndarray]]:
    """What the features were made of: the frames of the window, and the samples as 16-bit numbers."""
    calls: list[tuple[int, np.ndarray]] = []
    real = LogMel.__call__

    def listen(self: LogMel, waveform: np.ndarray, *, num_frames: int) -> torch.Tensor:
        calls.append((num_frames, np.round(waveform * 32768).astype(np.int64)))
        return real(self, waveform, num_frames=num_frames)

    monkeypatch.setattr(LogMel, "__call__", listen)
    return calls


def _said(batch: SpeechBatch, i: int) -> list[int]:
    """Return the label tokens of a clip, without those that carry no loss."""
    return [int(label) for label in batch.labels[i] if label != IGNORE_INDEX]


def _tokens(builder: LabelBuilder, *parts: str | float) -> list[int]:
    """Return texts as their tokens, and numbers as timestamps in seconds."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += [int(token) for token in builder.tokenizer(f" {part}", add_special_tokens=False)["input_ids"]]
        else:
            ids.append(builder.timestamp_begin + round(part / 0.02))
    return ids


@pytest.fixture
def packable(tmp_path: Path, write_manifest: Callable[..., Path]) -> Path:
    """Four clips of English, one of Chinese between, one of another speaker; 0.6 s each."""
    kinds = [("en", "a"), ("en", "a"), ("zh", "b"), ("en", "a"), ("en", "a"), ("en", "c")]
    rows = []
    for i, (language, speaker) in enumerate(kinds):
        _write_numbers(tmp_path / f"{i}.wav", 1 + 10_000 * (i % 3), 9_600)
        rows.append({"id": f"p{i}", "audio": f"{i}.wav", "text": f"t{i}", "language": language, "speaker": speaker})
    return write_manifest(rows)


@pytest.mark.parametrize("timestamp_share", [0.0, 1.0])
def test_a_pack_is_one_clip_of_all_its_members(
    timestamp_share: float,
    packable: Path,
    builder: LabelBuilder,
    make: Callable[..., UpdateDataset],
    heard: list[tuple[int, np.ndarray]],
) -> None:
    clips = _open(packable, builder=builder, packing=Packing())
    assert [list(clips.members(i)) for i in range(len(clips))] == [[0, 1], [2], [3, 4], [5]]
    assert clips.durations_s.tolist() == pytest.approx([1.2, 0.6, 1.2, 0.6])
    assert [list(clips.members(clip)) for clip in range(4)] == [[0, 1], [2], [3, 4], [5]]
    assert clips.languages.tolist() == ["en", "zh", "en", "en"]
    dataset = make(
        clips, augmentation=Augmentation(), labels=LabelSettings(timestamp_share=timestamp_share), cache_gib=0.0
    )
    (update,) = _read(dataset, 1)
    found: dict[int, list[int]] = {}
    for batch in update.micro_batches:
        for i, clip in enumerate(batch.clips):
            found[clip] = _said(batch, i)
            assert [row.id for row in batch.members[i]] == [f"p{row}" for row in clips.members(clip)]
    prefix = [builder.tokenizer.convert_tokens_to_ids(t) for t in ("<|en|>", "<|transcribe|>")]
    if timestamp_share:
        expected = [*prefix, *_tokens(builder, 0.0, "t3", 0.6, 0.6, "t4", 1.2), builder.end_id]
    else:
        expected = [*prefix, builder.no_timestamps_id, *_tokens(builder, "t3 t4"), builder.end_id]
    assert found[2] == expected
    # A clip alone has no segments, and so no times to write.
    assert found[3] == [*prefix, builder.no_timestamps_id, *_tokens(builder, "t5"), builder.end_id]
    whole = {tuple(samples.tolist()) for _, samples in heard}
    files = [soundfile.read(packable.parent / f"{i}.wav", dtype="int16")[0].tolist() for i in range(6)]
    assert whole == {tuple(files[0] + files[1]), tuple(files[2]), tuple(files[3] + files[4]), tuple(files[5])}


def test_a_bad_member_of_a_pack_is_left_out_alone(
    packable: Path, builder: LabelBuilder, make: Callable[..., UpdateDataset], heard: list[tuple[int, np.ndarray]]
) -> None:
    clips = _open(packable, builder=builder, packing=Packing())
    (packable.parent / "3.wav").write_bytes(b"no longer audio")
    (packable.parent / "2.wav").write_bytes(b"no longer audio")
    dataset = make(clips, augmentation=Augmentation(), cache_gib=0.0)
    (update,) = _read(dataset, 1)
    assert sorted((bad.key, bad.record.id, bad.record.code) for bad in update.rejected) == [
        (2, "p2", "M11"),
        (3, "p3", "M11"),
    ]
    members = {
        clip: [row.id for row in of_clip]
        for batch in update.micro_batches
        for clip, of_clip in zip(batch.clips, batch.members, strict=True)
    }
    assert members == {0: ["p0", "p1"], 2: ["p4"], 3: ["p5"]}
    del heard[3:]  # of updates that were read ahead
    assert sorted(len(samples) for _, samples in heard) == [9_600, 9_600, 19_200]
    # Taken up again, they are left out without another word.
    again = make(clips, augmentation=Augmentation(), cache_gib=0.0)
    again.leave_out([2, 3])
    (resumed,) = _read(again, 1)
    assert resumed.rejected == ()
    assert resumed.num_label_tokens == update.num_label_tokens


def test_packs_lose_no_second_and_mix_nothing(corpus: Path, builder: LabelBuilder) -> None:
    alone, packed = _open(corpus, builder=builder), _open(corpus, builder=builder, packing=Packing())
    assert packed.audio_s == pytest.approx(alone.audio_s)
    assert packed.bounds[0] == 0 and packed.bounds[-1] == len(packed.rows) == len(alone)
    assert (np.diff(packed.bounds) > 0).all()


def test_clips_of_a_speaker_are_joined_though_others_lie_between_with_pauses_up_to_the_limit(
    packable: Path, builder: LabelBuilder, make: Callable[..., UpdateDataset], heard: list[tuple[int, np.ndarray]]
) -> None:
    packing = Packing(max_duration_s=2.1, order="speaker", gaps_s=(0.1, 0.3))
    clips = _open(packable, builder=builder, packing=packing)
    # Three clips and two of the longest pauses are 2.4 s; p0, p1, p3, p4 of one speaker stand where the first stood.
    assert [[row.id for row in (clips.rows[i] for i in clips.members(clip))] for clip in range(len(clips))] == [
        ["p0", "p1"],
        ["p3", "p4"],
        ["p2"],
        ["p5"],
    ]
    assert ((clips.gaps_s >= 0.1) & (clips.gaps_s <= 0.3)).all()
    assert clips.durations_s == pytest.approx([1.2 + clips.gaps_s[0], 1.2 + clips.gaps_s[1], 0.6, 0.6])
    labels = LabelSettings(timestamp_share=1.0)
    (update,) = _read(make(clips, augmentation=Augmentation(), labels=labels, cache_gib=0.0), 1)
    said = {c: _said(batch, i) for batch in update.micro_batches for i, c in enumerate(batch.clips)}
    times = [(token - builder.timestamp_begin) * 0.02 for token in said[1] if token >= builder.timestamp_begin]
    begin_s = 0.6 + float(clips.gaps_s[1])
    assert times == pytest.approx([0.0, 0.6, begin_s, begin_s + 0.6], abs=0.011)
    for _, samples in heard:
        if len(samples) > 9_600:
            (gap_s,) = (gap for gap in clips.gaps_s[:2] if len(samples) == round((1.2 + gap) * 16_000))
            pause = samples[9_600 : 9_600 + round(gap_s * 16_000)]
            assert 0 < np.abs(pause).max() <= 32  # soft, and not digital silence


def test_the_length_of_a_sources_packs_is_checked_and_nought_is_not_the_groups(packable: Path) -> None:
    settings = DatasetSettings("joined", train=(Source(str(packable), pack=True, pack_s=0.0),))
    with pytest.raises(ValueError, match="pack_s=0 must be above 0"):
        settings.packings(settings.sources("train"))


def test_a_source_can_be_joined_alone(packable: Path, builder: LabelBuilder) -> None:
    entries = (str(packable), Source(str(packable), pack=True), Source(str(packable), pack=True, pack_s=1.3))
    settings = DatasetSettings("joined", train=entries, pack_order="speaker")
    sources = settings.sources("train")
    packings = settings.packings(sources)
    clips = open_clips(sources, builder, on_bad="strict", max_bad_share=0.0, packings=packings)
    assert np.diff(clips.bounds).tolist() == [1] * 6 + [4, 1, 1] + [2, 2, 1, 1]
    assert clips.source_of.tolist() == [0] * 6 + [1] * 3 + [2] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_duration_s": 31.0}, "pack_s=31 must be above 0 and at most 30"),
        ({"order": "random"}, "dataset.pack_order=random must be one of manifest, speaker"),
        ({"gaps_s": (1.0, 0.5)}, r"dataset.pack_gaps_s=\[1, 0.5\] must be least and greatest seconds"),
    ],
)
def test_a_packing_that_cannot_be_says_what_can(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packing(**options)


LEVEL = 500  # of the first second, as a 16-bit number; the second is twice as high
SEGMENTS = [(0.0, 12.0, "a"), (12.0, 28.0, "b"), (29.0, 41.0, "c"), (41.0, 44.0, "d"), (44.5, 60.0, "e")]


@pytest.fixture
def recording(tmp_path: Path, write_manifest: Callable[..., Path]) -> Path:
    """A minute in which each second has a level of its own; the segment at 29 s straddles the border of the window."""
    samples = np.repeat(LEVEL * np.arange(1, 61), 16_000).astype(np.int16)
    soundfile.write(tmp_path / "talk.wav", samples, 16_000)
    segments = [{"start": start, "end": end, "text": text} for start, end, text in SEGMENTS]
    row = {"id": "talk", "audio": "talk.wav", "text": "all of it", "language": "en", "segments": segments}
    return write_manifest([row])


@pytest.mark.parametrize("timestamp_share", [0.0, 1.0])
def test_a_recording_becomes_windows_and_no_second_is_lost(
    timestamp_share: float,
    recording: Path,
    builder: LabelBuilder,
    make: Callable[..., UpdateDataset],
    heard: list[tuple[int, np.ndarray]],
) -> None:
    clips = _open(recording, builder=builder, packing=Packing())  # windows stay alone even where clips are packed
    assert [row.id for row in clips.rows] == ["talk#0000", "talk#0001", "talk#0002"]
    assert {row.line for row in clips.rows} == {1}
    settings = LabelSettings(timestamp_share=timestamp_share, prompt_share=1.0)
    dataset = make(clips, augmentation=Augmentation(), labels=settings, cache_gib=0.0)
    said: dict[int, list[int]] = {}
    seconds: dict[int, int] = {}
    for update in _read(dataset, len(dataset.updates_of(0))):
        for batch in update.micro_batches:
            for i, clip in enumerate(batch.clips):
                said[clip] = _said(batch, i)
                assert batch.input_features.shape[-1] == 3000
    for _, samples in heard:
        levels, counts = np.unique(samples // LEVEL, return_counts=True)
        seconds[int(levels[0])] = int(counts.sum())
        assert (np.diff(samples) >= 0).all()
    all_levels = np.concatenate([samples // LEVEL for _, samples in heard])
    assert set(all_levels.tolist()) == set(range(1, 61))  # each second of the minute, whatever the labels
    if timestamp_share:
        # The first two are heard to their ends, and end with the start of the segment that goes on behind them.
        assert seconds == {1: 30 * 16_000, 30: 30 * 16_000, 45: 248_000}
        assert said[0][2:] == [*_tokens(builder, 0.0, "a", 12.0, 12.0, "b", 28.0, 29.0), builder.end_id]
        assert said[1][2:] == [*_tokens(builder, 0.0, "c", 12.0, 12.0, "d", 15.0, 15.5), builder.end_id]
    else:
        # Without times nothing could say that a segment begins, so the audio ends where it does.
        assert seconds == {1: 29 * 16_000, 30: 248_000, 45: 248_000}
        assert said[0][2:] == [builder.no_timestamps_id, *_tokens(builder, "a b"), builder.end_id]
        assert said[1][2:] == [builder.no_timestamps_id, *_tokens(builder, "c d"), builder.end_id]
    words = [token for clip in range(3) for token in said[clip] if token < builder.end_id]
    parts = list("abcde") if timestamp_share else ["a b", "c d", "e"]
    assert words == [token for part in parts for token in _tokens(builder, part)]


def test_a_clip_that_is_slowed_down_gets_the_window_it_needs(
    tmp_path: Path,
    write_manifest: Callable[..., Path],
    builder: LabelBuilder,
    make: Callable[..., UpdateDataset],
    heard: list[tuple[int, np.ndarray]],
) -> None:
    """0.95 s fits a window of 1 s, and at 0.9 of its speed it does not; 1.05 s does at 1.1."""
    rows = []
    for i in range(24):
        duration_s = 0.95 if i % 2 else 1.05
        soundfile.write(tmp_path / f"{i}.wav", tone(duration_s, seed=i), 16_000)
        rows.append({"id": str(i), "audio": f"{i}.wav", "text": "x", "language": "en"})
    clips = _open(write_manifest(rows), builder=builder)
    augmentation = Augmentation(speed_share=1.0, speeds=(0.9, 1.1))
    dataset = make(clips, augmentation=augmentation, size=2, cache_gib=0.0)
    updates = _read(dataset, len(dataset.updates_of(0)))
    assert not any(update.rejected for update in updates)
    del heard[24:]  # of updates that were read ahead
    assert len(heard) == 24
    assert all(len(samples) <= num_frames * 160 for num_frames, samples in heard)
    lengths = {len(samples) for _, samples in heard}
    assert lengths == {round(d * 16_000 / s) for d in (0.95, 1.05) for s in (0.9, 1.1)}
    heard_s = sum(batch.audio_s for update in updates for batch in update.micro_batches)
    assert heard_s == pytest.approx(sum(len(samples) for _, samples in heard) / 16_000)
    parallel = _read(make(clips, augmentation=augmentation, size=2, cache_gib=0.0), len(updates), workers=2)
    _assert_same(parallel, updates)


def test_times_of_a_clip_at_another_speed_are_those_that_are_heard(
    recording: Path, builder: LabelBuilder, make: Callable[..., UpdateDataset]
) -> None:
    """At 1.1 a segment of 12 s ends at 10.91 s; windows of 30 s and more would outgrow theirs at 0.9."""
    clips = _open(recording, builder=builder)
    augmentation = Augmentation(speed_share=1.0, speeds=(1.1,))
    dataset = make(clips, augmentation=augmentation, labels=LabelSettings(timestamp_share=1.0), cache_gib=0.0)
    said = {
        clip: _said(batch, i)
        for update in _read(dataset, len(dataset.updates_of(0)))
        for batch in update.micro_batches
        for i, clip in enumerate(batch.clips)
    }
    times = [(token - builder.timestamp_begin) * 0.02 for token in said[0] if token >= builder.timestamp_begin]
    assert times == pytest.approx([t / 1.1 for t in (0, 12, 12, 28, 29)], abs=0.0101)


@pytest.mark.parametrize("audio_s", [2.0, 60.0])
def test_ranks_stay_in_step_with_batches_by_seconds(
    audio_s: float, clips: Clips, make: Callable[..., UpdateDataset]
) -> None:
    options = {"audio_s": audio_s, "micro_batch_size": 4, "full_share": 0.5, "augmentation": Augmentation()}
    of_ranks = [_read(make(clips, size=8, rank=rank, world_size=2, **options), 8) for rank in range(2)]
    for first, second in zip(*of_ranks, strict=True):
        assert first.position == second.position
        assert [b.input_features.shape[-1] for b in first.micro_batches] == [
            b.input_features.shape[-1] for b in second.micro_batches
        ]
        for batch in (*first.micro_batches, *second.micro_batches):
            num_clips, _, num_frames = batch.input_features.shape
            assert num_clips == 1 or num_clips * num_frames <= audio_s * 100
    for epoch in range(of_ranks[0][-1].position.epoch):
        updates = [update for updates in of_ranks for update in updates if update.position.epoch == epoch]
        read = [clip for update in updates for batch in update.micro_batches for clip in batch.clips]
        assert sorted(read) == list(range(10))


def test_a_mixture_with_packs_labels_and_speeds_starts_anywhere(corpus: Path, builder: LabelBuilder) -> None:
    """Everything at once: two workers, and every position of two epochs."""
    clips = _open(corpus, builder=builder, packing=Packing())
    augmentation = replace(STRONG, speed_share=0.7, noise_share=0.5, token_mask_share=0.2)
    mixture = build_mixture(
        clips.durations_s,
        clips.languages,
        clips.source_of,
        clips.no_speech,
        names=["corpus"],
        weights=[1.3],
        is_replay=[False],
        settings=MixtureSettings(temperature=2.0),
        seed=5,
    )

    def open_dataset() -> UpdateDataset:
        plan = EpochPlan(
            clips.durations_s,
            mixture,
            windows=Windows((1.0, 2.0, 30.0), 0.2),
            size=BatchSize(2, 2, audio_s=8.0),
            seed=5,
            speeds=ClipSpeeds(augmentation, clips.durations_s, 5),
        )
        settings = LabelSettings(timestamp_share=0.5, prompt_share=0.5)
        recipe = ClipRecipe(builder, settings, LogMel(80), augmentation, NO_RECORDINGS, pad_id=PAD, seed=5)
        return UpdateDataset(clips, plan, ClipReader(clips.rows, cache_gib=0.01), recipe)

    dataset = open_dataset()
    count = len(dataset.updates_of(0)) + len(dataset.updates_of(1))
    whole = _read(dataset, count)
    for workers in (1, 2):
        _assert_same(_read(open_dataset(), count, workers=workers), whole)
    for i in range(1, count):
        _assert_same(_read(open_dataset(), count - i, start=whole[i].position), whole[i:])
