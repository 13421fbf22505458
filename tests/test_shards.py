"""Weights cut over two processes (FSDP2 over gloo, real FP16 autocast): the same update, and checkpoints in pieces."""

import json

import pytest
import torch

from benchmarks import fault_shards
from benchmarks.toy_run import ToyRuns, newest_step
from scripts.settings import compose_config
from scripts.train import build_settings
from train.checkpoint import load_checkpoint, step_dir
from train.sharding import resolve_shard, verify_shardable

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "one_thread")


@pytest.fixture(scope="module")
def one_thread():
    """A child that is forked while threads of torch are busy would wait for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("mode", "tolerance"), [("fp32", 1e-6), ("fp16", 2e-3)])
def test_an_update_is_that_of_one_process(tmp_path, mode, tolerance):
    found = fault_shards.compare_updates(tmp_path, mode, "zero3")
    assert found["norm"] <= tolerance
    assert found["weights"] <= max(tolerance, 1e-6)


def test_bad_clips_of_one_process_hold_nobody_up(tmp_path):
    assert fault_shards.leave_out_bad_clips(tmp_path, "zero3")


@pytest.fixture(scope="module")
def toys(tmp_path_factory, one_thread):
    return ToyRuns(tmp_path_factory.mktemp("shards"), validation=True)


def test_a_killed_run_started_again_goes_on_to_the_same_bits_though_it_says_overwrite(toys):
    found = fault_shards.interrupt(toys, "zero3")
    assert found["codes"][1] == 137 and found["codes"][0] != 0
    assert found["again"] == [0, 0]
    assert found["resumed"] and found["equal"]


def test_the_export_is_one_whole_file_of_the_last_shards(toys):
    """Runs behind `test_a_killed_run_...`, whose uninterrupted run it looks at."""
    from safetensors.torch import load_file

    run_dir = toys.folder / "zero3-whole"
    path = step_dir(run_dir / "checkpoints", newest_step(run_dir))
    manifest = json.loads((path / "manifest.json").read_text())
    assert sum(name.startswith("shards/shard-") for name in manifest["files"]) == 2
    assert not list(path.rglob("*.metadata")) and not list(path.rglob("*.distcp"))  # DCP's own files are pickled
    checkpoint = load_checkpoint(path)
    exported = load_file(run_dir / "export" / "model.safetensors")
    shipped = checkpoint.average  # the toy runs keep a moving average
    assert shipped and all(torch.equal(exported[name], tensor.half()) for name, tensor in shipped.items())
    moments = checkpoint.optimizer["state"].values()
    assert sorted(entry["exp_avg"].shape for entry in moments) == sorted(w.shape for w in checkpoint.model.values())


def test_a_full_disk_on_one_machine_is_borne_by_all(toys):
    found = fault_shards.fill_disk_of_one(toys, "zero3")
    assert found == {"codes": [0, 0], "named": True, "rests": [], "equal": True}


def test_another_number_of_processes_is_refused_then_allowed_and_marked(toys):
    found = fault_shards.go_on_alone(toys, "zero3")
    assert found["refused"]
    assert found["code"] == 0
    assert [text.split(": ", 1)[1] for text in found["inexact"]] == [
        "the number of processes (2, now 1) changed",
        "trainer.shard (zero3, now none) changed",
    ]


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        ("auto", {}, "none"),
        ("auto", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}, "zero3"),
        ("auto", {"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"}, "zero2"),
        ("zero2", {"ACCELERATE_USE_FSDP": "true"}, "zero2"),
        ("none", {"ACCELERATE_USE_FSDP": "true"}, "none"),
    ],
)
def test_the_launch_file_decides_and_accelerate_does_not_see_it(asked, environment, expected):
    environment = {"OTHER": "1", **environment}
    assert resolve_shard(asked, environment, num_processes=2) == expected
    assert environment == {"OTHER": "1"}


def test_one_process_has_nothing_to_share():
    assert resolve_shard("zero3", {}, num_processes=1) == "none"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM takes"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "use fsdp_version: 2"),
    ],
)
def test_engines_that_own_the_step_are_refused(environment, said):
    with pytest.raises(ValueError, match=said):
        resolve_shard("auto", environment, num_processes=2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["finetune=lora"], "use --config_file conf/accelerate/ddp.yaml"),
        (["optimizer=adamw_8bit"], "use optimizer=adamw"),
        (["optimizer=adafactor"], "use optimizer=adamw"),
        (["precision=bf16_pure"], "use precision=bf16"),
        (["trainer.ema_decay=0.9", "trainer.ema_device=cpu"], "use trainer.ema_device=auto"),
        (["trainer.compile=true"], "use trainer.compile=false"),
    ],
)
def test_what_does_not_work_on_shards_is_refused(overrides, said):
    settings = build_settings(compose_config("train", ["model=small", *overrides]))
    with pytest.raises(ValueError, match=said):
        verify_shardable(settings, "zero3")
    verify_shardable(settings, "none")


def test_what_works_on_shards_is_let_through():
    for overrides in (["finetune=full"], ["finetune=frozen_encoder", "trainer.ema_decay=0.9"]):
        verify_shardable(build_settings(compose_config("train", ["model=small", *overrides])), "zero2")
