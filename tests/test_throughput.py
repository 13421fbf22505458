"""Speeds are what was done over the time that updates took, on a clock that the test turns by hand."""

import dataclasses
import time

import pytest
import torch
from conftest import fake_batch
from torch.utils.flop_counter import FlopCounterMode

from data.batches import PendingFeatures
from train.flops import FlopCount
from train.throughput import Throughput, measure_matmul_rate


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


def _record(throughput, batch, *, num_label_tokens=1, waited_s=0.0):
    throughput.record([batch], num_label_tokens=num_label_tokens, waited_s=waited_s)


def test_figures_are_per_second_of_training(clock):
    throughput = Throughput(torch.device("cpu"))
    for _ in range(2):
        clock(4.0)
        _record(throughput, fake_batch(4, num_frames=500), num_label_tokens=100, waited_s=1.0)
    figures = throughput.report()
    assert figures.pop("train/peak_memory_gib") > 0.01
    assert figures == {
        "train/audio_s_per_s": 40.0 / 8.0,
        "train/windows_per_s": 8 / 8.0,
        "train/label_tokens_per_s": 200 / 8.0,
        "train/update_s": 4.0,
        "train/data_wait_share": 2.0 / 8.0,
    }
    clock(2.0)
    _record(throughput, fake_batch(1, num_frames=500))
    assert throughput.report()["train/audio_s_per_s"] == 2.5  # begun anew


def test_operations_are_counted_from_the_shapes_and_held_against_the_measured_rate(clock, whisper):
    count = FlopCount(whisper)
    throughput = Throughput(torch.device("cpu"), flops=count, matmul_flops_per_s=1e9, num_ranks=2)
    batch = fake_batch(3, num_frames=60)
    needed = count.of(3, 60, batch.labels.shape[1], num_label_tokens=batch.num_label_tokens).needed
    for _ in range(2):
        clock(1.0)
        throughput.record([batch, batch], num_label_tokens=1, waited_s=0.0)
    figures = throughput.report()
    assert figures["train/tflop_per_update"] == pytest.approx(2 * needed / 1e12)
    assert figures["train/mfu"] == pytest.approx(2 * needed / 1.0 / 1e9)
    assert figures["train/windows_per_s"] == 2 * 2 * 3  # both ranks


def test_waveforms_have_the_frames_of_their_window():
    batch = fake_batch(2, num_frames=60)
    pending = PendingFeatures(torch.tensor([1, 1]), torch.zeros(2, 80).bool(), torch.zeros(2, 60).bool())
    waveforms = dataclasses.replace(batch, input_features=torch.zeros(2, 60 * 160), pending=pending)
    assert waveforms.num_frames == batch.num_frames == 60


def test_the_rate_of_matrix_products_is_that_of_a_matrix_product():
    rate = measure_matmul_rate(torch.device("cpu"), torch.float32, size=256, seconds=0.05)
    assert 1e8 < rate < 1e15
    with FlopCounterMode(display=False) as counter:
        torch.ones(256, 256) @ torch.ones(256, 256)
    assert counter.get_total_flops() == 2 * 256**3


def test_nested_pauses_count_once(clock):
    """Validation saves the best weights itself: that time was once taken off twice, and speeds became absurd."""
    throughput = Throughput(torch.device("cpu"))
    clock(4.0)
    _record(throughput, fake_batch(8))
    with throughput.paused():
        clock(10.0)
        with throughput.paused():
            clock(50.0)
        clock(1.0)
    assert throughput.report()["train/audio_s_per_s"] == pytest.approx(2.0)


def test_a_pause_ends_also_by_an_error(clock):
    throughput = Throughput(torch.device("cpu"))

    def save():
        with throughput.paused():
            clock(5.0)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        save()
    clock(1.0)
    _record(throughput, fake_batch(3))
    assert throughput.report()["train/audio_s_per_s"] == pytest.approx(3.0)


def test_the_share_of_validation_is_of_all_the_time(clock):
    """Of everything since the start: updates, checkpoints and validation itself, also after a report."""
    throughput = Throughput(torch.device("cpu"))
    clock(30.0)
    throughput.report()
    with throughput.paused(), throughput.validating():
        clock(5.0)
    with throughput.paused():
        clock(1.0)
    clock(14.0)
    assert throughput.validation_share == pytest.approx(5.0 / 50.0)
