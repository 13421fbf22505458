"""Checkpoints are written beside the training from a copy, failures are borne twice, and the last one must stand."""

import errno
import os
import threading

import pytest
import torch

import train.saver as module
from train.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from train.saver import CheckpointSaver, available_memory
from train.signals import StorageError


def _build(value):
    return lambda: Checkpoint({"w": value}, {"state": {}, "param_groups": []}, {}, {"note": 1})


def _save(saver, step, value=None, **options):
    value = torch.full((4,), float(step)) if value is None else value
    saver.save(step, _build(value), progress={"attempted": step}, best=None, **options)


@pytest.fixture
def saver(tmp_path):
    return CheckpointSaver(tmp_path / "checkpoints", keep_last=2, in_background=True)


def _names(saver):
    return [path.name for path in list_checkpoints(saver.checkpoints_dir)]


def test_training_may_change_the_weights_while_they_are_written(saver, monkeypatch):
    gate, real = threading.Event(), module.save_checkpoint
    monkeypatch.setattr(module, "save_checkpoint", lambda *a: gate.wait(10) and real(*a))
    weights = torch.zeros(4)
    _save(saver, 1, weights)
    weights += 7  # an update
    assert _names(saver) == []  # it goes on before the checkpoint stands
    gate.set()
    saver.join()
    assert torch.equal(load_checkpoint(saver.checkpoints_dir / "step-000001").model["w"], torch.zeros(4))


def test_the_next_one_waits_for_the_one_before(saver, monkeypatch):
    running, most, real = [], [], module.save_checkpoint

    def slow(*arguments):
        running.append(1)
        most.append(len(running))
        path = real(*arguments)
        running.pop()
        return path

    monkeypatch.setattr(module, "save_checkpoint", slow)
    for step in (1, 2, 3):
        _save(saver, step)
    saver.join()
    assert max(most) == 1
    assert _names(saver) == ["step-000002", "step-000003"]
    cost = saver.take_cost()
    assert cost.num_bytes == 3 * 16
    assert cost.blocked_s > 0 and cost.written_s > 0
    assert saver.take_cost().num_bytes == 0


def test_without_memory_for_a_copy_training_waits_and_the_log_says_so_once(saver, monkeypatch, caplog):
    monkeypatch.setattr(module, "available_memory", lambda: 1000)
    monkeypatch.setattr(Checkpoint, "on_host", lambda _self: pytest.fail("copied"))
    _save(saver, 1)
    _save(saver, 2)
    assert _names(saver) == ["step-000001", "step-000002"]
    assert caplog.text.count("training waits for checkpoints") == 1


def test_the_same_progress_is_written_once(saver):
    _save(saver, 1, must=True)
    stamp = (saver.checkpoints_dir / "step-000001").stat().st_mtime_ns
    _save(saver, 1, must=True)
    assert (saver.checkpoints_dir / "step-000001").stat().st_mtime_ns == stamp


def _full(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_after_failures_the_tries_come_later_and_the_third_is_the_last(saver, monkeypatch, caplog):
    _save(saver, 1, must=True)
    tries = []
    monkeypatch.setattr(module, "save_checkpoint", lambda _dir, step, _c: tries.append(step) or _full())
    for step in range(2, 9):
        if saver.is_exhausted:
            break
        _save(saver, step)
        saver.join()
    assert tries == [2, 3, 5]  # at the next interval, then one is left out
    assert _names(saver) == ["step-000001"]
    assert "failure 3 of 3 in a row" in caplog.text
    said = saver.describe_failure()
    assert str(saver.checkpoints_dir / "step-000005") in said
    assert "16 bytes" in said and "No space left" in said and "goes on from the last" in said


def test_a_success_forgets_the_failures(saver, monkeypatch):
    for step, fails in enumerate((True, True, None, False, True, True), start=1):
        with monkeypatch.context() as patch:
            if fails:
                patch.setattr(module, "save_checkpoint", _full)
            _save(saver, step)
            saver.join()
    assert saver.num_failures == 2
    assert _names(saver) == ["step-000004"]


def test_the_last_checkpoint_of_a_run_must_stand(saver, monkeypatch):
    monkeypatch.setattr(module, "save_checkpoint", _full)
    with pytest.raises(StorageError, match="Make room there"):
        _save(saver, 1, must=True)


def test_a_fault_of_ours_in_the_thread_is_not_swallowed(saver, monkeypatch):
    def broken(*_arguments):
        raise KeyError("a fault")

    monkeypatch.setattr(module, "save_checkpoint", broken)
    _save(saver, 1)
    with pytest.raises(KeyError, match="a fault"):
        saver.join()


def test_too_little_room_is_seen_before_anything_is_written(saver, monkeypatch, caplog):
    monkeypatch.setattr("train.checkpoint.free_bytes", lambda _path: 1000)
    _save(saver, 1)
    saver.join()
    assert "and 1,000 are free" in caplog.text
    assert list(saver.checkpoints_dir.iterdir()) == []


def test_that_later_ones_will_not_fit_is_said_at_the_first(saver, monkeypatch, caplog):
    monkeypatch.setattr(module, "free_bytes", lambda _path: 4 * 16 - 1)  # two are kept
    _save(saver, 1, must=True)
    _save(saver, 2, must=True)
    assert caplog.text.count("lower trainer.keep_checkpoints=2") == 1


def test_the_one_that_was_read_outlives_damaged_newer_ones(saver):
    for step in (1, 5, 6, 7):
        _save(saver, step, must=True)
        if step == 1:
            saver.keep_last = 9
    saver.verified, saver.keep_last = 1, 2
    module.prune_checkpoints(saver.checkpoints_dir, keep_last=2, keep={"verified": saver.verified})
    assert _names(saver) == ["step-000001", "step-000006", "step-000007"]


def test_available_memory_is_below_that_of_the_machine():
    found = available_memory()
    assert found is None or 0 < found <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
