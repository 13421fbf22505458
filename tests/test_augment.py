"""Augmentation is a function of (seed, epoch, row) alone, stays within its limits, and never changes its input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tone

from data.augment import Augmentation, augment_waveform, clip_rng, mask_features, mask_tokens
from data.labels import Labels

STRONG = Augmentation(
    gain_db=6.0, num_frequency_masks=2, max_frequency_share=0.25, num_time_masks=2, max_time_share=0.15
)


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
    assert nothing.is_nothing
    assert augment_waveform(waveform, nothing, clip_rng(0, 0, 0)) is waveform
    assert mask_features(log_mel, nothing, clip_rng(0, 0, 0), num_heard=50) is log_mel


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


@pytest.mark.parametrize("name", ["max_frequency_share", "max_time_share", "token_mask_share"])
def test_a_share_outside_0_to_1_is_refused(name):
    with pytest.raises(ValueError, match=name):
        Augmentation(**{name: 1.5})
