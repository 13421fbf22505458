"""Speeds are what was done over the time that updates took, on a clock that the test turns by hand."""

import time

import pytest
import torch

from train.throughput import Throughput


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


def test_figures_are_per_second_of_training(clock):
    throughput = Throughput(torch.device("cpu"))
    for _ in range(2):
        with throughput.waiting():
            clock(1.0)
        clock(3.0)
        throughput.record(audio_s=20.0, num_label_tokens=100)
    figures = throughput.report()
    assert figures.pop("train/peak_memory_gib") > 0.01
    assert figures == {
        "train/audio_s_per_s": 40.0 / 8.0,
        "train/label_tokens_per_s": 200 / 8.0,
        "train/update_s": 4.0,
        "train/data_wait_share": 2.0 / 8.0,
    }
    clock(2.0)
    throughput.record(audio_s=5.0, num_label_tokens=1)
    assert throughput.report()["train/audio_s_per_s"] == 2.5  # begun anew


def test_nested_pauses_count_once(clock):
    """Validation saves the best weights itself: that time was once taken off twice, and speeds became absurd."""
    throughput = Throughput(torch.device("cpu"))
    clock(4.0)
    throughput.record(audio_s=8.0, num_label_tokens=1)
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
    throughput.record(audio_s=3.0, num_label_tokens=1)
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
