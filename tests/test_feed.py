"""The feed: on a CPU it only measures; on CUDA (a fake one here) it reads one update ahead and never loses an error."""

import time

import pytest
import torch
from conftest import fake_batch

from data.loaders import UpdateBatches
from data.plan import Position
from train import feed as module
from train.feed import Feed


def _updates(num, *, fails_at=None):
    for i in range(num):
        if i == fails_at:
            raise ValueError("clip 7 is broken")
        yield UpdateBatches((fake_batch(2, seed=i),), Position(0, i), Position(0, i + 1))


class _FakeCuda:
    """Streams and events that only write down what was asked of them; time on the device is read from `clock`."""

    def __init__(self):
        self.log = []
        self.clock = 0.0
        outer = self

        class Event:
            def __init__(self, *, enable_timing):
                assert enable_timing

            def record(self):
                outer.log.append("mark")
                self.at = outer.clock

            def query(self):
                return True

            def elapsed_time(self, other):
                return (other.at - self.at) * 1000

        class Stream:
            def __init__(self, device=None):
                pass

            def wait_stream(self, other):
                outer.log.append("wait for copy")

            def __enter__(self):
                outer.log.append("copy")

            def __exit__(self, *_):
                pass

        self.Event, self.Stream = Event, Stream
        self.stream = lambda stream: stream
        self.current_stream = lambda device: Stream()


@pytest.fixture
def cuda(monkeypatch):
    fake = _FakeCuda()
    monkeypatch.setattr(module.torch, "cuda", fake)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: fake.log.append("kept"))
    monkeypatch.setattr("data.batches.SpeechBatch.to", lambda self, device: self)
    return fake


def test_on_a_cpu_nothing_is_read_ahead_and_waiting_is_measured():
    read = []

    def slow():
        for batches in _updates(3):
            time.sleep(0.01)
            read.append(batches.position.update)
            yield batches

    feed = Feed(slow(), torch.device("cpu"))
    assert feed.next().position.update == 0
    feed.read_ahead()
    assert read == [0]
    assert 0.01 <= feed.take_waited_s() < 1.0
    assert feed.take_waited_s() == 0.0
    with pytest.raises(StopIteration):
        [feed.next() for _ in range(3)]


def test_on_cuda_the_next_update_is_copied_while_the_present_one_computes(cuda):
    read = []

    def updates():
        for batches in _updates(4):
            cuda.clock += 0.25  # the device stands idle for as long
            read.append(batches.position.update)
            yield batches

    feed = Feed(updates(), torch.device("cuda"))
    assert feed.next().position.update == 0
    feed.take_waited_s()
    feed.read_ahead()
    feed.read_ahead()  # one ahead, no more
    assert read == [0, 1]
    assert cuda.log == ["copy", "wait for copy", "kept", "kept", "kept", "mark", "copy", "mark"]
    assert feed.take_waited_s() == pytest.approx(0.25)
    assert [feed.next().position.update for _ in range(2)] == [1, 2]


def test_what_goes_wrong_ahead_is_raised_in_its_turn(cuda):
    feed = Feed(_updates(3, fails_at=1), torch.device("cuda"))
    feed.next()
    feed.read_ahead()
    with pytest.raises(ValueError, match="clip 7 is broken"):
        feed.next()
