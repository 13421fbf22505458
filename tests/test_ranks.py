"""What processes agree on, seen from one; who is lost, from marks; and hashes that see every changed bit.

With two real processes: `tests/test_faults.py`.
"""

import pytest
import torch

from train.heartbeat import DEAD_S, SLOW_S, Heartbeat, Mark, find_lost
from train.ranks import Ranks, is_exchange_failure, weight_hashes


def test_one_process_agrees_with_itself():
    ranks = Ranks()
    assert (ranks.rank, ranks.world_size) == (0, 1)
    assert ranks.largest(143) == 143
    assert ranks.gather("x") == ["x"]
    assert ranks.join([1, 2]) == [1, 2]
    ranks.wait()
    ranks.verify_same_weights(iter(()), step=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_hash_sees_every_single_bit(dtype):
    tensor = torch.randn(6, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = {tuple(weight_hashes([tensor]))}
    raw = tensor.view(torch.uint8)
    for i in range(raw.numel()):
        for bit in range(8):
            raw[i] ^= 1 << bit
            seen.add(tuple(weight_hashes([tensor])))
            raw[i] ^= 1 << bit
    assert len(seen) == 1 + 8 * raw.numel()


def test_a_hash_sees_places_also_across_its_chunks(monkeypatch):
    monkeypatch.setattr("train.ranks.CHUNK", 4)
    tensor = torch.arange(11.0)
    seen = {weight_hashes([tensor])[0]}
    for i in range(11):
        for j in range(i):
            swapped = tensor.clone()
            swapped[i], swapped[j] = tensor[j], tensor[i]
            seen.add(weight_hashes([swapped])[0])
    assert len(seen) == 1 + 55


def _mark(step, phase, *, moved=0.0, beaten=0.0):
    return Mark(beats=1, step=step, phase=phase, beaten_at=beaten, moved_at=moved)


def test_who_gives_no_sign_of_life_is_dead():
    own = _mark(5, "update", moved=100.0)
    assert find_lost(own, {1: _mark(5, "update", beaten=100.0)}, now=100.0 + DEAD_S, timeout_s=9e9) is None
    lost = find_lost(own, {1: _mark(5, "update", beaten=100.0)}, now=101.0 + DEAD_S, timeout_s=9e9)
    assert lost == "rank 1 is dead or stopped: no sign of life for 31 s (last: step 5, update)"


@pytest.mark.parametrize(
    ("own", "other", "waited", "is_lost"),
    [
        ((5, "update"), (5, "data"), 46, True),
        ((5, "update"), (5, "data"), 44, False),
        ((5, "update"), (4, "update"), 46, True),
        ((5, "data"), (5, "update"), 46, False),  # it is ahead: we are the one that is waited for
        ((5, "update"), (5, "update"), 9000, False),  # cannot be told apart
        ((5, "end"), (4, "checkpoint"), 46, False),  # may take long
        ((5, "end"), (4, "checkpoint"), SLOW_S + 1, True),
    ],
)
def test_who_lags_behind_those_that_wait_hangs(own, other, waited, is_lost):
    now = 1000.0 + waited
    lost = find_lost(_mark(*own, moved=1000.0), {1: _mark(*other, moved=990.0, beaten=now)}, now=now, timeout_s=45.0)
    assert (lost is not None) == is_lost
    if is_lost:
        assert "rank 1 hangs: it stands at step" in lost


def test_alone_there_is_no_thread():
    heartbeat = Heartbeat(0, 1, timeout_s=1.0)
    heartbeat.at("update", step=3)
    heartbeat.wait_for_verdict()
    heartbeat.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer", True),
        ("NCCL communicator was aborted", True),
        ("CUDA out of memory", False),
    ],
)
def test_which_errors_come_from_an_exchange(text, expected):
    assert is_exchange_failure(RuntimeError(text)) is expected
