"""DeepSpeed's ZeRO over two processes (gloo): the update of one process, agreed skips, checkpoints without a trace."""

import pytest
import torch

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")

from benchmarks import fault_shards
from benchmarks.toy_run import ToyRuns, newest_step
from train.checkpoint import load_checkpoint, step_dir, verify_checkpoint
from train.sharding import resolve_shard

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "one_thread")


@pytest.fixture(scope="module")
def one_thread():
    """A child that is forked while threads of torch are busy would wait for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("mode", "shard", "tolerance"),
    [("fp32", "deepspeed_zero1", 1e-6), ("fp32", "deepspeed_zero2", 1e-6), ("fp16", "deepspeed_zero2", 2e-3)],
)
def test_an_update_is_that_of_one_process(tmp_path, mode, shard, tolerance):
    found = fault_shards.compare_updates(tmp_path, mode, shard)
    assert found["norm"] <= tolerance
    assert found["weights"] <= tolerance


def test_bad_clips_of_one_process_are_left_out_of_a_new_sum(tmp_path):
    assert fault_shards.leave_out_bad_clips(tmp_path, "deepspeed_zero2")


@pytest.mark.parametrize(("mode", "shard"), [("fp32", "deepspeed_zero1"), ("fp16", "deepspeed_zero2")])
def test_an_infinity_on_one_process_is_skipped_by_both(tmp_path, mode, shard):
    assert fault_shards.plant_infinity(tmp_path, mode, shard)


@pytest.fixture(scope="module")
def toys(tmp_path_factory, one_thread):
    return ToyRuns(tmp_path_factory.mktemp("zero"), validation=True)


def test_a_killed_run_started_again_goes_on_to_the_same_bits(toys):
    found = fault_shards.interrupt(toys, "deepspeed_zero2")
    assert found["codes"][1] == 137 and found["codes"][0] != 0
    assert found["again"] == [0, 0]
    assert found["resumed"] and found["equal"]


def test_the_checkpoint_is_that_of_any_run_and_the_export_has_its_weights(toys):
    """Runs behind `test_a_killed_run_...`, whose uninterrupted run it looks at."""
    from safetensors.torch import load_file

    run_dir = toys.folder / "deepspeed_zero2-whole"
    path = step_dir(run_dir / "checkpoints", newest_step(run_dir))
    assert verify_checkpoint(path) == (
        "average.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    )
    checkpoint = load_checkpoint(path)
    exported = load_file(run_dir / "export" / "model.safetensors")
    assert checkpoint.average
    assert all(torch.equal(exported[name], tensor.half()) for name, tensor in checkpoint.average.items())
    moments = checkpoint.optimizer["state"].values()
    assert sorted(entry["exp_avg"].shape for entry in moments) == sorted(w.shape for w in checkpoint.model.values())


def test_it_trains_as_plain_processes_do(toys):
    """AdamW by number is the same on flat pieces, so that the two runs differ by the rounding of their sums alone."""
    assert fault_shards.run_two(toys, "ddp", shard="none") == [0, 0]
    ends = []
    for name in ("ddp", "deepspeed_zero2-whole"):
        run_dir = toys.folder / name
        ends.append(load_checkpoint(step_dir(run_dir / "checkpoints", newest_step(run_dir))))
    for group in (lambda c: c.model, lambda c: c.average):
        for name, tensor in group(ends[0]).items():
            torch.testing.assert_close(group(ends[1])[name], tensor, rtol=0, atol=1e-4)
    assert ends[0].state["progress"] == ends[1].state["progress"]


def test_a_full_disk_is_borne_by_all(toys):
    found = fault_shards.fill_disk_of_one(toys, "deepspeed_zero2")
    assert found == {"codes": [0, 0], "named": True, "rests": [], "equal": True}


def test_one_process_may_go_on_and_is_marked(toys):
    found = fault_shards.go_on_alone(toys, "deepspeed_zero2")
    assert found["refused"]
    assert found["code"] == 0
    assert [text.split(": ", 1)[1] for text in found["inexact"]] == [
        "the number of processes (2, now 1) changed",
        "trainer.shard (deepspeed_zero2, now none) changed",
    ]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero_stage: 3 .*fsdp2.yaml"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device .*take more cards"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "offload_param_device .*fsdp2.yaml"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "deepspeed_config_file .*zero_stage"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "gradient_clipping .*optimizer.max_grad_norm="),
    ],
)
def test_what_has_not_been_tried_is_refused(environment, said):
    with pytest.raises(ValueError, match=said):
        resolve_shard("auto", {"ACCELERATE_USE_DEEPSPEED": "true", **environment}, num_processes=2)
