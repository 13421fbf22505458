"""DeepSpeed's ZeRO over two processes: checkpoints without a trace of it; what launch files may not ask for."""

import pytest
import torch

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")

from benchmarks.fault_shard_runs import run_whole
from benchmarks.toy_run import newest_step
from train.checkpoint import load_checkpoint, step_dir, verify_checkpoint
from train.sharding import resolve_shard

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "one_thread")


def test_the_checkpoint_is_that_of_any_run_and_the_export_has_its_weights(two_processes):
    from safetensors.torch import load_file

    run_dir = two_processes.folder / run_whole(two_processes, "deepspeed_zero2")
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


def test_it_trains_as_plain_processes_do(two_processes):
    """AdamW by number is the same on flat pieces, so that the two runs differ by the rounding of their sums alone."""
    ends = []
    for shard in ("none", "deepspeed_zero2"):
        run_dir = two_processes.folder / run_whole(two_processes, shard)
        ends.append(load_checkpoint(step_dir(run_dir / "checkpoints", newest_step(run_dir))))
    for group in (lambda c: c.model, lambda c: c.average):
        for name, tensor in group(ends[0]).items():
            torch.testing.assert_close(group(ends[1])[name], tensor, rtol=0, atol=1e-4)
    assert ends[0].state["progress"] == ends[1].state["progress"]


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
