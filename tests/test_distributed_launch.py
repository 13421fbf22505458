"""Launch files of several processes start ones that find each other, also where there is no card.

Accelerate's launcher and torchrun's agent are real. Only the workers are forked from this process, which has imported
everything, in place of `python scripts/train.py`.
"""

import os
import socket
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed.run
from accelerate.commands.launch import launch_command, launch_command_parser

from benchmarks.toy_run import ToyRuns, adapt, fork_child, wait_for
from scripts.settings import CONF
from train.checkpoint import load_checkpoint, step_dir

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="processes would start on cards, of which two are needed"),
]


@pytest.fixture
def toys(tmp_path):
    return ToyRuns(tmp_path, "trainer.max_steps=2", "trainer.save_every_steps=0", "schedule.warmup_steps=1")


def _start(toys, name, *arguments):
    """Type `accelerate launch` in a child; return its process id."""

    def launch():
        os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"})
        real = torch.distributed.run.config_from_args

        def forked(args):
            config, _, _ = real(args)
            return replace(config, start_method="fork"), _work, [toys, name]

        torch.distributed.run.config_from_args = forked
        launch_command(launch_command_parser().parse_args([*arguments, "scripts/train.py"]))
        return 0

    return fork_child(toys.folder / f"{name}.out", launch)


def _work(toys, name):
    adapt(toys.folder / name)
    if code := toys.run(name):
        sys.exit(code)


def _file(name):
    return "--config_file", str(CONF / "accelerate" / name)


def _verify_shared(toys, name, shard):
    identity = load_checkpoint(step_dir(toys.folder / name / "checkpoints", 2)).state["identity"]
    assert (identity["processes"], identity["shard"], identity["device"]) == (2, shard, "cpu")


@pytest.mark.parametrize(
    ("file", "shard"),
    [
        ("ddp", "none"),
        ("fsdp2", "zero3"),
        ("fsdp2_zero2", "zero2"),
        ("deepspeed_zero1", "deepspeed_zero1"),
        ("deepspeed_zero2", "deepspeed_zero2"),
    ],
)
def test_two_processes_of_a_launch_file_share_one_run(toys, file, shard):
    if file.startswith("deepspeed"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")
    ending = wait_for(_start(toys, file, *_file(f"{file}.yaml"), "--num_processes", "2"))
    assert ending.code == 0, toys.output(file)
    _verify_shared(toys, file, shard)


def test_two_machines_share_one_run(toys):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    where = ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    where += ["--main_process_port", port, "--rdzv_backend", "c10d"]
    pids = [_start(toys, "machines", *_file("multi_node.yaml"), *where, "--machine_rank", str(i)) for i in range(2)]
    assert [wait_for(pid).code for pid in pids] == [0, 0], toys.output("machines")
    _verify_shared(toys, "machines", "none")
