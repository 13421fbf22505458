"""Weights cut over two processes by FSDP2: a checkpoint in pieces, one artefact; what launch files may ask for."""

import json

import pytest
import torch

from benchmarks.fault_shard_runs import run_whole
from benchmarks.toy_run import newest_step
from scripts.settings import compose_config
from scripts.train import build_settings
from train.checkpoint import load_checkpoint, step_dir
from train.sharding import resolve_shard, verify_shardable

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "one_thread")


def test_the_export_is_one_whole_file_of_the_last_shards(two_processes):
    from safetensors.torch import load_file

    run_dir = two_processes.folder / run_whole(two_processes, "zero3")
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
