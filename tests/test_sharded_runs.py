"""What holds however two processes share the work (gloo; FSDP2, DeepSpeed; real FP16 autocast).

The update of one process, agreed skips, and runs that are killed, out of disk, or gone on with by one process alone.
"""

import pytest

from benchmarks import fault_shard_runs, fault_shards

try:
    import deepspeed  # here, since each child would import it anew
except ImportError:
    deepspeed = None

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "one_thread")
NEEDS_DEEPSPEED = pytest.mark.skipif(
    deepspeed is None, reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'"
)


def _by(engine, *values):
    return pytest.param(engine, *values, marks=NEEDS_DEEPSPEED if engine.startswith("deepspeed") else ())


by_engine = pytest.mark.parametrize("shard", [_by("zero3"), _by("deepspeed_zero2")])


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    """The folder in which the update of one process is reckoned once."""
    return tmp_path_factory.mktemp("updates")


@pytest.mark.parametrize(
    ("shard", "mode", "tolerance"),
    [
        _by("zero3", "fp32", 1e-6),
        _by("zero3", "fp16", 2e-3),
        _by("deepspeed_zero1", "fp32", 1e-6),
        _by("deepspeed_zero2", "fp32", 1e-6),
        _by("deepspeed_zero2", "fp16", 2e-3),
    ],
)
def test_an_update_is_that_of_one_process(updates, shard, mode, tolerance):
    found = fault_shards.compare_updates(updates, mode, shard)
    assert found["norm"] <= tolerance
    assert found["weights"] <= tolerance


@by_engine
def test_bad_clips_of_one_process_are_left_out_and_hold_nobody_up(tmp_path, shard):
    assert fault_shards.leave_out_bad_clips(tmp_path, shard)


@pytest.mark.parametrize(
    ("shard", "mode"), [_by("zero3", "fp16"), _by("deepspeed_zero1", "fp32"), _by("deepspeed_zero2", "fp16")]
)
def test_an_infinity_on_one_process_is_skipped_by_both(tmp_path, shard, mode):
    assert fault_shards.plant_infinity(tmp_path, mode, shard)


@by_engine
def test_a_killed_run_started_again_goes_on_to_the_same_bits_though_it_says_overwrite(two_processes, shard):
    found = fault_shard_runs.interrupt(two_processes, shard)
    assert found["codes"][1] == 137 and found["codes"][0] != 0
    assert found["again"] == [0, 0]
    assert found["resumed"] and found["equal"]


@by_engine
def test_a_full_disk_on_one_machine_is_borne_by_all(two_processes, shard):
    found = fault_shard_runs.fill_disk_of_one(two_processes, shard)
    assert found == {"codes": [0, 0], "named": True, "rests": [], "equal": True}


@by_engine
def test_another_number_of_processes_is_refused_then_allowed_and_marked(two_processes, shard):
    found = fault_shard_runs.go_on_alone(two_processes, shard)
    assert found["refused"]
    assert found["code"] == 0
    assert [text.split(": ", 1)[1] for text in found["inexact"]] == [
        "the number of processes (2, now 1) changed",
        f"trainer.shard ({shard}, now none) changed",
    ]
