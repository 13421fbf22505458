"""The table of faults in small: real runs that are killed, stopped, damaged, out of disk, and bereft of their peer."""

import os
import time

import pytest

import train.saver
from benchmarks import fault_files, fault_kills, fault_overflow, fault_ranks, fault_resume, faults
from benchmarks.toy_run import INTERVAL, ToyRuns, newest_step, sample_ids, wait_for

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "one_thread")


def test_killed_at_any_moment_a_run_ends_in_the_same_bits(tmp_path):
    found = fault_kills.kill_runs(tmp_path / "kills", num_random=2, num_in_writes=2, workers=2)
    assert found["cases"] == found["equal"] == found["newest_readable"] == found["without_rest"] == 4
    assert found["killed_in_a_write"] == 2


@pytest.mark.parametrize(("in_background", "most"), [(True, 2 * INTERVAL), (False, INTERVAL)])
def test_however_slow_the_disk_no_more_is_lost_than_the_docs_say(tmp_path, in_background, most):
    """The second checkpoint is never done; training goes on as far as it may, and is then killed."""
    toys = ToyRuns(tmp_path, f"trainer.save_in_background={str(in_background).lower()}")

    def prepare():
        real = train.saver.save_checkpoint

        def write(folder, step, checkpoint):
            if step > INTERVAL:
                time.sleep(60.0)
            return real(folder, step, checkpoint)

        train.saver.save_checkpoint = write

    run_dir = tmp_path / "run"
    pid = toys.start("run", prepare=prepare)
    deadline = time.monotonic() + 30.0
    while len(sample_ids(run_dir)) < INTERVAL + most and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # an update takes 0.05 s: it would go on if it could
    os.kill(pid, 9)
    wait_for(pid)
    assert newest_step(run_dir) == INTERVAL
    assert len(sample_ids(run_dir)) - newest_step(run_dir) == most


def test_stopped_in_an_update_a_validation_and_a_write_it_goes_on_equally(tmp_path):
    found = fault_kills.stop_runs(tmp_path / "stops", num_cases=4, workers=2)
    assert found["equal"] == 4
    assert found["code_143"] + found["ended_before_the_signal_was_heard"] == 4
    assert found["validation"] == 1 and found["code_143"] >= 1


def test_resume_and_what_is_left_out(tmp_path):
    found = fault_resume.resume_everywhere(tmp_path / "resume", steps=[7], workers=1)
    assert found["equal"] == 1
    assert found["overflows_at"]  # of themselves, in real FP16
    parts = ["torch generator", "random states"]
    left_out = fault_resume.leave_out(tmp_path / "resume", parts=parts, workers=2)
    assert left_out == {"torch generator": "log differs from update 8", "random states": "noticed"}


def test_a_full_disk_changes_nothing_but_the_log(tmp_path):
    found = fault_files.fill_disk(tmp_path / "disk", num_points=2, workers=2)
    assert found["previous_intact"] == found["without_rest"] == found["path_and_bytes_named"] == 2
    assert found["went_on_and_ended_equal"] == 2
    for full in found["full_for_ever"].values():
        assert full["code"] == 75
        assert full["intact"] and full["rests"] == 0


@pytest.mark.parametrize("kind", fault_overflow.kinds())
def test_planted_overflows(kind):
    found = fault_overflow.plant_overflows(kind, num_planted=2)
    assert found["skipped"] == 2
    assert not any(found["disagreements"].values())


def test_two_processes_agree(tmp_path):
    assert max(fault_ranks.compare_gradients(tmp_path).values()) <= 1e-6
    assert all(fault_ranks.plant_on_one(tmp_path).values())


def test_a_dead_process_is_named_and_the_run_goes_on(tmp_path):
    found = fault_ranks.lose_one(tmp_path / "lost", kinds=("rank 1 killed",), rank_timeout_s=5.0, dead_s=4.0)
    assert found["without_a_fault"] == [0, 0]
    lost = found["rank 1 killed"]
    assert (lost["code"], lost["named"], lost["then_equal"]) == (70, True, True)
    assert lost["seconds"] < 60


def test_the_table_names_every_section():
    assert set(faults.SECTIONS) == {
        "kills",
        "resume",
        "damage",
        "disk",
        "stops",
        "overflow",
        "ranks",
        "shards",
        "secrets",
        "cost",
    }
