"""Toy runs of two processes over gloo that share the work: killed, out of disk, gone on with by one process alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

import train.heartbeat
import train.shard_files
from benchmarks.fault_ranks import environments
from benchmarks.toy_run import Ending, ToyRuns, log_lines, newest_step, sha256, wait_for
from train.checkpoint import load_checkpoint, step_dir
from train.moments import flatten_optimizer
from train.ranks import weight_hashes
from train.sharding import Shard
from train.zero import STAGES

STATES = ("progress", "guard", "quarantine", "scaler", "random", "inexact")


def start_two(
    toys: ToyRuns,
    name: str,
    prepare: Callable[[int], Callable[[], None] | None],
    *,
    started: Sequence[dict[str, str]] | None = None,
    **changes: Any,
) -> list[int]:
    """Start two processes of one run; each prepares itself by what `prepare` returns for its rank.

    Args:
        toys: makes the runs.
        name: of the run.
        prepare: see above.
        started: environment of each process; None makes one.
        changes: of the settings.
    """
    return [
        toys.start(name, environment=environment, prepare=prepare(rank), **changes)
        for rank, environment in enumerate(started or environments())
    ]


def run_two(toys: ToyRuns, name: str, **trainer: Any) -> list[int]:
    """Run two processes to their end; return the exit codes."""
    return [wait_for(pid).code for pid in start_two(toys, name, lambda _: None, **trainer)]


def run_whole(toys: ToyRuns, shard: Shard) -> str:
    """Run two processes without a fault, once; return the name of the run."""
    name = f"{shard}-whole"
    if not (toys.folder / name).exists():
        assert run_two(toys, name, shard=shard) == [0, 0], toys.output(name)
    return name


def fingerprint(toys: ToyRuns, name: str) -> dict[str, Any]:
    """Return all that must be equal between two sharded runs: the bits of every tensor, states, log, artefact."""
    run_dir = toys.folder / name
    checkpoint = load_checkpoint(step_dir(run_dir / "checkpoints", newest_step(run_dir)))
    state = checkpoint.state
    moments = flatten_optimizer(checkpoint.optimizer)[0]
    groups = {"model": checkpoint.model, "optimizer": moments, "average": checkpoint.average}
    return {
        "tensors": {  # not the files: in which order a shard lists its pieces may differ
            f"{group}/{key}": weight_hashes([tensor])
            for group, tensors in groups.items()
            for key, tensor in sorted(tensors.items())
        },
        "state": {key: state[key] for key in STATES},
        "log": log_lines(run_dir),
        "export": sha256(run_dir / "export" / "model.safetensors"),
    }


def interrupt(toys: ToyRuns, shard: Shard) -> dict[str, Any]:
    """Kill a rank of a sharded run, start both again as a launcher does, and compare with an uninterrupted run.

    The command is the same and says `run.overwrite=true`, which on a second start would delete what it has to go on
    from.
    """

    def dies(rank: int) -> Callable[[], None]:
        def act() -> None:
            train.heartbeat.DEAD_S = 4.0
            if rank == 1:
                die_at(5)

        return act

    name = f"{shard}-killed"
    # As under torchrun, the launcher's store outlives the processes, with the addresses of the lost ones in it.
    first = [{**environment, "TORCHELASTIC_USE_AGENT_STORE": "True"} for environment in environments()]
    second = [{**environment, "TORCHELASTIC_RESTART_COUNT": "1"} for environment in first]
    store = TCPStore("127.0.0.1", int(first[0]["MASTER_PORT"]), is_master=True, wait_for_workers=False)
    pids = start_two(toys, name, dies, started=first, shard=shard, overwrite=True)
    killed = wait_for(pids[1]).code
    whole = run_whole(toys, shard)  # while the other one waits for a sign of life
    codes = [wait_for(pids[0]).code, killed]
    pids = start_two(toys, name, lambda _: None, started=second, shard=shard, overwrite=True)
    again = [wait_for(pid).code for pid in pids]
    del store
    resumed = "resumed at step 3 of" in toys.output(name)
    equal = fingerprint(toys, name) == fingerprint(toys, whole)
    return {"codes": codes, "again": again, "resumed": resumed, "equal": equal}


def die_at(step: int) -> None:
    """Let this process be killed when a run has done so many updates."""
    from train.loop import Loop

    real = Loop._update

    def update(loop: Loop, feed: Any) -> Any:
        if loop.progress.attempted == step:
            os.kill(os.getpid(), 9)
        return real(loop, feed)

    Loop._update = update  # type: ignore[method-assign]


def fill_disk_of_one(toys: ToyRuns, shard: Shard) -> dict[str, Any]:
    """Let one rank's write of its second checkpoint fail: training goes on, nothing is left of the attempt.

    The second rank's; with DeepSpeed the first one's, which alone writes.
    """
    failing = 0 if shard in STAGES else 1

    def full(rank: int) -> Callable[[], None] | None:
        return (_fail_second_whole if shard in STAGES else _fail_second_write) if rank == failing else None

    name = f"{shard}-full"
    codes = [wait_for(pid).code for pid in start_two(toys, name, full, shard=shard)]
    checkpoints = toys.folder / name / "checkpoints"
    return {
        "codes": codes,
        "named": "No space left on device" in toys.output(name) and f"rank {failing}" in toys.output(name),
        "rests": [path.name for path in checkpoints.iterdir() if path.name.startswith(".")],
        "equal": fingerprint(toys, name) == fingerprint(toys, run_whole(toys, shard)),
    }


def _fail_second_write() -> None:
    real = HuggingFaceStorageWriter.write_data
    count = [0]

    def write(writer: Any, plan: Any, planner: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise OSError(28, "No space left on device")
        return real(writer, plan, planner)

    HuggingFaceStorageWriter.write_data = write  # type: ignore[method-assign]


def _fail_second_whole() -> None:
    real = train.shard_files.save_checkpoint
    count = [0]

    def write(*arguments: Any) -> Path:
        count[0] += 1
        if count[0] == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    train.shard_files.save_checkpoint = write


def go_on_alone(toys: ToyRuns, shard: Shard) -> dict[str, Any]:
    """Go on from a sharded checkpoint with one process: refused, then allowed and marked."""
    name = f"{shard}-alone"
    shutil.copytree(toys.folder / run_whole(toys, shard), toys.folder / name)
    run_dir = toys.folder / name
    shutil.rmtree(step_dir(run_dir / "checkpoints", newest_step(run_dir)))
    refused: Ending = wait_for(toys.start(name))
    text = toys.output(name)
    ending = wait_for(toys.start(name, inexact=True))
    last = load_checkpoint(step_dir(run_dir / "checkpoints", newest_step(run_dir)))
    return {
        "refused": refused.code != 0 and "the number of processes (2, now 1)" in text,
        "code": ending.code,
        "inexact": last.state["inexact"],
    }
