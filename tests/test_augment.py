"""Augmentation is a function of (seed, epoch, row) alone, stays within its limits, and never changes its input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone
from torch.utils.data import DataLoader, Dataset

from data.audio import SAMPLING_RATE
from data.augment import (
    NO_RECORDINGS,
    Augmentation,
    Recordings,
    augment_waveform,
    clip_rng,
    draw_speeds,
    open_recordings,
)
from data.labels import Labels
from data.masks import draw_mask, hide, mask_tokens
from data.room import make_room
from scripts.settings import build, compose_config, to_plain

STRONG = Augmentation(
    gain_db=6.0, num_frequency_masks=2, max_frequency_share=0.25, num_time_masks=2, max_time_share=0.15
)
EVERYTHING = Augmentation(
    speed_share=0.5,
    room_share=0.5,
    noise_share=0.5,
    clipping_share=0.3,
    codec_share=0.5,
    gain_db=6.0,
)
KINDS = {
    "room": Augmentation(room_share=1.0),
    "noise": Augmentation(noise_share=1.0),
    "clipping": Augmentation(clipping_share=1.0),
    "codec": Augmentation(codec_share=1.0),
    "gain": Augmentation(gain_db=6.0),
}


@pytest.fixture
def recorded(write_clip, tmp_path: Path) -> Augmentation:
    """Every kind of change, with noises and rooms from files, some of which are decoded at each use."""
    for i in range(4):
        write_clip(f"noise/{i}.wav", 0.4 + 0.5 * i, seed=i, hz=100.0 * (i + 1))
        path = tmp_path / "rooms" / f"{i}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.5 * make_room(0.2 + 0.1 * i, 6.0, np.random.default_rng(i)), SAMPLING_RATE)
    return dataclasses.replace(
        EVERYTHING,
        noise=(str(tmp_path / "noise"),),
        rooms=(str(tmp_path / "rooms"),),
        sounds_gib=30_000 / 2**30,
    )


class Changed(Dataset[np.ndarray]):
    """Made clips, changed: what a loader does with each row of an epoch."""

    def __init__(self, augmentation: Augmentation, recordings: Recordings, num_rows: int = 24) -> None:
        self.augmentation = augmentation
        self.recordings = recordings
        self.rows = np.arange(num_rows)
        self.durations_s = 0.2 + 0.01 * self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        subset = self.rows[row : row + 1]
        durations_s = self.durations_s[row : row + 1]
        (speed,) = draw_speeds(self.augmentation, seed=5, epoch=1, rows=subset, durations_s=durations_s)
        waveform = tone(float(self.durations_s[row]), seed=row)
        rng = clip_rng(5, 1, row)
        return augment_waveform(waveform, self.augmentation, rng, speed=speed, recordings=self.recordings)


def mask_features(log_mel, augmentation, rng, *, num_heard):
    """Draw a mask and lay it over one clip."""
    num_mel_bins, num_frames = log_mel.shape
    mask = draw_mask(augmentation, rng, num_mel_bins=num_mel_bins, num_frames=num_frames, num_heard=num_heard)
    return hide(log_mel[None], mask.bins[None], mask.frames[None], torch.tensor([num_heard]))[0]


def _first(batch: list[np.ndarray]) -> np.ndarray:
    return batch[0]


@pytest.mark.parametrize(("num_workers", "start"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_and_order_change_no_sample(num_workers: int, start: str, recorded: Augmentation):
    clips = Changed(recorded, open_recordings(recorded))
    expected = [clips[row] for row in range(len(clips))]
    order = np.random.default_rng(num_workers).permutation(len(clips)).tolist()
    loader = DataLoader(clips, sampler=order, num_workers=num_workers, multiprocessing_context=start, collate_fn=_first)
    for row, found in zip(order, loader, strict=True):
        np.testing.assert_array_equal(found, expected[row])
    reopened = Changed(recorded, open_recordings(recorded))
    np.testing.assert_array_equal(reopened[7], expected[7])


def test_the_memory_for_recordings_changes_no_sample(recorded: Augmentation):
    for sounds_gib in (0.0, 1.0):
        other = Changed(recorded, open_recordings(dataclasses.replace(recorded, sounds_gib=sounds_gib)))
        clips = Changed(recorded, open_recordings(recorded))
        for row in range(len(clips)):
            np.testing.assert_array_equal(other[row], clips[row])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_a_clip_by_draws_of_its_own(kind: str):
    """A clip to which nothing else happens is changed the same way, whether or not others are switched on."""
    waveform = tone(0.4)
    alone = [augment_waveform(waveform, KINDS[kind], clip_rng(0, 0, row)) for row in range(8)]
    assert not any(np.array_equal(changed, waveform) for changed in alone)
    assert len({changed.tobytes() for changed in alone}) > 1
    field = "gain_db" if kind == "gain" else f"{kind}_share"
    rarely = {f"{other}_share": 1e-9 for other in KINDS if other != "gain"}
    among = dataclasses.replace(Augmentation(**rarely), **{field: getattr(KINDS[kind], field)})
    for row, changed in enumerate(alone):
        np.testing.assert_array_equal(augment_waveform(waveform, among, clip_rng(0, 0, row)), changed)


@pytest.mark.parametrize("kind", ["room", "noise", "clipping", "codec"])
def test_a_share_is_one_of_the_clips(kind: str):
    third = Augmentation(**{f"{kind}_share": 1 / 3})
    waveform = tone(0.1)
    num_changed = sum(augment_waveform(waveform, third, clip_rng(0, 0, row)) is not waveform for row in range(600))
    assert num_changed == pytest.approx(200, abs=45)  # 3.9 standard deviations


def test_whatever_comes_in_what_goes_out_is_finite_and_within_full_scale(recorded: Augmentation):
    recordings = open_recordings(recorded)
    always = dataclasses.replace(
        recorded,
        speed_share=1.0,
        room_share=1.0,
        noise_share=1.0,
        clipping_share=0.5,
        codec_share=1.0,
        snr_db=(-20, 100),
    )
    rng = np.random.default_rng(0)
    for row in range(60):
        num_samples = int(rng.integers(1600, 16_000))
        waveform = {
            0: lambda n: rng.uniform(-1, 1, n),
            1: np.zeros,
            2: np.ones,
            3: lambda n: np.sign(rng.normal(size=n)),
            4: lambda n: rng.normal(0, 1e-7, n),
            5: lambda n: np.eye(1, n, int(rng.integers(n)))[0],
        }[row % 6](num_samples).astype(np.float32)
        kept = waveform.copy()
        speed = (0.9, 1.0, 1.1)[row % 3]
        changed = augment_waveform(waveform, always, clip_rng(0, 0, row), speed=speed, recordings=recordings)
        assert changed.dtype == np.float32
        assert changed.shape == (round(num_samples / speed),)
        assert np.isfinite(changed).all()
        assert np.abs(changed).max() <= 1.0
        np.testing.assert_array_equal(waveform, kept)


def test_recordings_that_were_not_opened_are_never_replaced_by_made_ones():
    for given in (Augmentation(noise=("x",), noise_share=1.0), Augmentation(rooms=("x",), room_share=1.0)):
        with pytest.raises(AssertionError, match="was not opened"):
            augment_waveform(tone(0.2), given, clip_rng(0, 0, 0))
    assert open_recordings(EVERYTHING) == NO_RECORDINGS


def test_speeds_belong_to_the_row_and_are_drawn_in_the_stated_shares():
    speeding = Augmentation(speed_share=0.6, speeds=(0.9, 1.1, 1.2))
    rows = np.arange(30_000)
    speeds = draw_speeds(speeding, seed=3, epoch=2, rows=rows, durations_s=np.full(len(rows), 5.0))
    some = np.random.default_rng(0).permutation(rows)[:1000]
    found = draw_speeds(speeding, seed=3, epoch=2, rows=some, durations_s=np.full(len(some), 5.0))
    np.testing.assert_array_equal(found, speeds[some])
    for speed, share in ((1.0, 0.4), (0.9, 0.2), (1.1, 0.2), (1.2, 0.2)):
        assert (speeds == speed).mean() == pytest.approx(share, abs=0.012)
    other = draw_speeds(speeding, seed=3, epoch=3, rows=rows, durations_s=np.full(len(rows), 5.0))
    assert (other != speeds).mean() == pytest.approx(1 - 0.4**2 - 3 * 0.2**2, abs=0.02)
    assert (draw_speeds(Augmentation(), seed=3, epoch=2, rows=rows, durations_s=np.full(len(rows), 5.0)) == 1.0).all()
    always = Augmentation(speed_share=1.0, speeds=(0.9, 1.1))
    assert set(draw_speeds(always, seed=0, epoch=0, rows=rows, durations_s=np.full(len(rows), 5.0))) == {0.9, 1.1}


def test_a_clip_that_would_outgrow_30_s_keeps_its_speed():
    slow = Augmentation(speed_share=1.0, speeds=(0.9,))
    durations_s = np.array([5.0, 26.99, 27.0, 27.001, 30.0])
    speeds = draw_speeds(slow, seed=0, epoch=0, rows=np.arange(5), durations_s=durations_s)
    assert speeds.tolist() == [0.9, 0.9, 0.9, 1.0, 1.0]


@pytest.mark.parametrize("preset", ["none", "light", "strong"])
def test_presets_hold_every_key_and_none_leaves_every_clip_alone(preset: str):
    group = to_plain(compose_config("train", [f"augment={preset}"]))["augment"]
    assert group.keys() == {field.name for field in dataclasses.fields(Augmentation)}
    augmentation = build(Augmentation, group, path="augment")
    assert augmentation.changes_waveform is (preset != "none")
    rows = np.arange(200)
    speeds = draw_speeds(augmentation, seed=0, epoch=0, rows=rows, durations_s=np.full(len(rows), 5.0))
    assert (speeds != 1.0).any() == (preset != "none")
    waveform = tone(0.2)
    changed = [augment_waveform(waveform, augmentation, clip_rng(0, 0, row)) is not waveform for row in range(20)]
    assert any(changed) == (preset != "none")


def test_the_same_clip_in_the_same_epoch_is_changed_the_same_way():
    log_mel = torch.randn(80, 200)
    first, again = (mask_features(log_mel, STRONG, clip_rng(7, 3, 11), num_heard=150) for _ in range(2))
    other = mask_features(log_mel, STRONG, clip_rng(7, 4, 11), num_heard=150)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_streams_of_clips_and_of_the_order_differ():
    assert clip_rng(5, 2, 0).random() != np.random.default_rng([2, 5, 2]).random()
    assert clip_rng(5, 2, 0).random() != clip_rng(5, 2, 1).random()


def test_nothing_is_done_by_default():
    waveform, log_mel = tone(0.5), torch.randn(80, 60)
    nothing = Augmentation()
    assert not nothing.changes_waveform
    assert augment_waveform(waveform, nothing, clip_rng(0, 0, 0)) is waveform
    assert torch.equal(mask_features(log_mel, nothing, clip_rng(0, 0, 0), num_heard=50), log_mel)


def test_gain_stays_within_its_decibels_and_never_clips():
    waveform = tone(0.5)
    gains = []
    for row in range(200):
        louder = augment_waveform(waveform, STRONG, clip_rng(0, 0, row))
        assert louder.dtype == np.float32
        gains.append(20 * np.log10(np.abs(louder).max() / np.abs(waveform).max()))
    assert -6.01 < min(gains) < -5
    assert 5 < max(gains) < 6.01
    loud = waveform / np.abs(waveform).max()
    peaks = [np.abs(augment_waveform(loud, STRONG, clip_rng(0, 0, row))).max() for row in range(50)]
    assert max(peaks) <= 1.0 + 1e-6


def test_masks_hide_no_more_than_they_may_and_leave_the_padding():
    log_mel = torch.randn(80, 200)
    kept = log_mel.clone()
    for row in range(100):
        masked = mask_features(log_mel, STRONG, clip_rng(0, 0, row), num_heard=150)
        changed = masked != log_mel
        assert not changed[:, 150:].any()
        whole_bins = int(changed[:, :150].all(1).sum())
        whole_frames = int(changed[:, :150].all(0).sum())
        assert whole_bins <= 2 * 20
        assert whole_frames <= 2 * 22
    assert torch.equal(log_mel, kept)


def test_hidden_tokens_are_text_only_and_labels_stay():
    end_id = 100
    labels = Labels((101, 102, 103, 104, *range(50)), (102, 103, 104, *range(50), end_id))
    half = Augmentation(token_mask_share=0.5)
    num_hidden = []
    for row in range(200):
        masked = mask_tokens(labels, half, clip_rng(0, 0, row), mask_id=end_id)
        assert masked.labels == labels.labels
        assert masked.decoder_input_ids[:4] == labels.decoder_input_ids[:4]
        pairs = zip(masked.decoder_input_ids[4:], labels.decoder_input_ids[4:], strict=True)
        hidden = [new == end_id for new, old in pairs if new != old]
        assert all(hidden)
        num_hidden.append(len(hidden))
    assert np.mean(num_hidden) == pytest.approx(25, abs=1.5)
    assert mask_tokens(labels, Augmentation(), clip_rng(0, 0, 0), mask_id=end_id) is labels


@pytest.mark.parametrize(
    "name",
    [
        *("speed_share", "room_share", "noise_share", "clipping_share", "codec_share"),
        *("max_frequency_share", "max_time_share", "token_mask_share"),
    ],
)
def test_a_share_outside_0_to_1_is_refused(name: str):
    for value in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"augment\.{name}=.* must lie in 0 to 1"):
            Augmentation(**{name: value})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"speeds": ()}, r"augment\.speeds=\[\] must be factors"),
        ({"speeds": (0.9, 0.0)}, r"augment\.speeds=\[0\.9, 0\.0\] must be factors in 0\.5 to 2"),
        ({"snr_db": (20.0, 5.0)}, r"augment\.snr_db=\[20\.0, 5\.0\] must rise"),
        ({"rt60_s": (0.0, 0.5)}, r"augment\.rt60_s=\[0\.0, 0\.5\] must rise, in 0\.05 to 5 s"),
        ({"gain_db": -3.0}, r"augment\.gain_db=-3\.0 must lie in 0 to 60"),
        ({"noise": ("x",)}, r"augment\.noise is never heard .*add augment\.noise_share=0\.5"),
        ({"rooms": ("x",)}, r"augment\.rooms is never heard .*add augment\.room_share=0\.5"),
        ({"codecs": ("amr",), "codec_share": 0.1}, r"augment\.codecs=amr must be among"),
        ({"codecs": (), "codec_share": 0.1}, r"augment\.codecs=\[\]"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(wrong: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Augmentation(**wrong)
