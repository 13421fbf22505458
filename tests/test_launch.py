"""Every launch file is taken by the tool that it is for: Accelerate, SLURM, W&B, Hydra's launcher for SLURM."""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from scripts.settings import CONF, compose_config
from scripts.train import build_settings
from train.sharding import resolve_shard

FILES = sorted(path.name for path in CONF.glob("accelerate/*.yaml"))
SHARDS = {
    "fsdp2.yaml": "zero3",
    "fsdp2_zero2.yaml": "zero2",
    "deepspeed_zero1.yaml": "deepspeed_zero1",
    "deepspeed_zero2.yaml": "deepspeed_zero2",
}


def _launch(monkeypatch, name, *arguments):
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda *_: False)
    command = ["--config_file", str(CONF / "accelerate" / name), *arguments, "scripts/train.py", "model=small"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    return args, defaults


def test_there_is_a_file_for_each_way():
    assert FILES == [
        "ddp.yaml",
        "deepspeed_zero1.yaml",
        "deepspeed_zero2.yaml",
        "fsdp2.yaml",
        "fsdp2_zero2.yaml",
        "multi_node.yaml",
        "one_gpu.yaml",
    ]


@pytest.mark.parametrize("name", FILES)
def test_accelerate_takes_the_file(monkeypatch, name):
    assert load_config_from_file(str(CONF / "accelerate" / name)).mixed_precision == "no"  # precision= decides
    args, defaults = _launch(monkeypatch, name)
    if name == "one_gpu.yaml":
        command, environment = prepare_simple_launcher_cmd_env(args)
        assert command[-2:] == ["scripts/train.py", "model=small"]
        assert not args.multi_gpu
    elif args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)  # as the launcher does
        command, environment = prepare_deepspeed_cmd_env(args)
        assert command is None and environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    else:
        environment = prepare_multi_gpu_env(args)
        assert args.multi_gpu or args.use_fsdp
        assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    environment = {key: value for key, value in environment.items() if key.startswith(("ACCELERATE", "FSDP"))}
    assert resolve_shard("auto", environment, num_processes=4) == SHARDS.get(name, "none")


@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp2.yaml"])
def test_the_number_of_cards_is_typed(monkeypatch, name):
    args, _ = _launch(monkeypatch, name, "--num_processes", "8")
    prepare_multi_gpu_env(args)
    assert args.nproc_per_node == "8"


def test_machines_meet_at_a_rendezvous(monkeypatch):
    arguments = ["--num_machines", "2", "--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    args, _ = _launch(monkeypatch, "multi_node.yaml", *arguments, "--max_restarts", "3", "--rdzv_backend", "c10d")
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.rdzv_backend) == ("2", "8", "c10d")
    assert (args.rdzv_endpoint, args.node_rank, args.max_restarts) == ("10.0.0.1:29400", 1, 3)


def test_the_slurm_launcher_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "train", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True
        ).hydra.launcher
    assert config._target_.endswith("SlurmLauncher")
    assert (config.partition, config.gpus_per_node, config.signal_delay_s) == ("gpu", 1, 180)


SRUN = """#!/bin/bash
echo "$@" > "$LOG/srun-arguments"
while [ "${1#--}" != "$1" ]; do shift; done
SLURM_PROCID=1 SLURM_LOCALID=1 "$@"
"""
TRAIN = """#!/bin/bash
env | grep -E '^(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR)=' | sort > "$LOG/environment"
printf '%s\\n' "$@" > "$LOG/arguments"
exit "$CODE"
"""


def _sbatch(tmp_path, code, *arguments, tasks=2, **environment):
    for name, text in {
        "srun": SRUN,
        "python": TRAIN,
        "scontrol": '#!/bin/bash\n[ "$1" = show ] && echo node7 || echo "$@" > "$LOG/requeue"\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    known = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path),
        "CODE": str(code),
        "MEZZAVOCE_PYTHON": str(tmp_path / "python"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "node7",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NNODES": "1",
    }
    command = ["bash", str(CONF / "slurm" / "train.sbatch"), *arguments]
    done = subprocess.run(command, env={**known, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return (tmp_path / "requeue").is_file()


@pytest.mark.parametrize(
    ("code", "again"), [(0, False), (2, False), (70, True), (75, True), (124, True), (137, True), (138, True)]
)
def test_a_job_goes_back_into_the_queue_where_that_helps(tmp_path, code, again):
    assert _sbatch(tmp_path, code, "model=small") is again


def test_a_job_does_not_go_round_for_ever(tmp_path):
    assert not _sbatch(tmp_path, 138, SLURM_RESTART_COUNT="50")


def test_each_task_knows_its_rank_and_the_arguments_arrive_whole(tmp_path):
    _sbatch(tmp_path, 0, "model=small", "dataset.train=[{path: my clips/, language: de}]")
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "scripts/train.py",
        "model=small",
        "dataset.train=[{path: my clips/, language: de}]",
    ]
    assert (tmp_path / "environment").read_text().split() == [
        "LOCAL_RANK=1",
        "MASTER_ADDR=node7",
        "RANK=1",
        "WORLD_SIZE=2",
    ]


def test_one_task_is_no_group(tmp_path):
    _sbatch(tmp_path, 0, tasks=1)
    assert (tmp_path / "environment").read_text() == ""


def test_the_batch_script_asks_for_its_signal_in_time():
    text = (CONF / "slurm" / "train.sbatch").read_text()
    assert "#SBATCH --signal=USR1@300" in text and "#SBATCH --requeue" in text
    subprocess.run(["bash", "-n", str(CONF / "slurm" / "train.sbatch")], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(CONF / "slurm" / "train.sbatch")], check=True)


def test_the_wandb_sweep_composes(monkeypatch):
    """As the agent of W&B fills in the command, every line becomes settings, and no two runs share a folder."""
    sweep = yaml.safe_load((CONF / "sweeps" / "wandb.yaml").read_text())
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    fixed = [text for text in sweep["command"] if "=" in text]
    folders = set()
    for run_id, value in (("r1", "light"), ("r2", "none")):
        monkeypatch.setenv("WANDB_RUN_ID", run_id)
        drawn = ["optimizer.lr=3e-6", "trainer.label_smoothing=0.1", f"augment={value}"]
        assert {text.partition("=")[0] for text in drawn} == sweep["parameters"].keys()
        folders.add(build_settings(compose_config("train", [*drawn, *fixed])).run.dir)
    assert folders == {"runs/sweep-s1-r1", "runs/sweep-s1-r2"}
    macros = [text for text in sweep["command"] if "=" not in text and text.startswith("$")]
    assert macros == ["${env}", "${program}", "${args_no_hyphens}"]
    assert re.fullmatch(r"valid/\w+/headline", sweep["metric"]["name"])
    json.dumps(sweep)
