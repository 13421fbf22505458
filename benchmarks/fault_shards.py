"""Two processes over gloo that share the work (FSDP2, DeepSpeed): the update of one process, and checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

import train.heartbeat
import train.shard_files
from benchmarks.accumulation import build_whisper
from benchmarks.fault_ranks import SPLITS, batches_of, environments, in_two
from benchmarks.toy_run import Ending, ToyRuns, log_lines, newest_step, sha256, wait_for
from train.checkpoint import load_checkpoint, step_dir
from train.exchange import Exchange
from train.loss import TrainingObjective
from train.moments import flatten_optimizer
from train.precision import PrecisionSettings, inspect_device, resolve_precision
from train.ranks import Ranks, weight_hashes
from train.runtime import build_accelerator
from train.sharding import Shard, prepare_objective
from train.shards import whole
from train.step import Updater
from train.zero import STAGES, ZeroExchange

KINDS: tuple[Shard, ...] = ("zero2", "zero3", "deepspeed_zero1", "deepspeed_zero2")
STATES = ("progress", "guard", "quarantine", "scaler", "random", "inexact")


def _updater(mode: str, shard: Shard) -> tuple[Updater, Callable[[], dict[str, Tensor]]]:
    settings = PrecisionSettings(mode, init_scale=1024.0)
    accelerator = build_accelerator(resolve_precision(settings, inspect_device(torch.device("cpu"))), settings)
    objective = TrainingObjective(build_whisper(), chunk_tokens=16)
    prepared = prepare_objective(objective, accelerator, shard)
    named = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    # Not AdamW, whose first step is the sign of a gradient: of one near zero that is the rounding.
    optimizer = torch.optim.SGD(named.values(), lr=0.1)
    exchange = (
        ZeroExchange(prepared, optimizer, accelerator, Ranks(), stage=STAGES[shard])
        if shard in STAGES
        else Exchange(prepared, optimizer, accelerator)
    )
    updater = Updater(exchange.objective, optimizer, accelerator, max_grad_norm=1.0, exchange=exchange)
    return updater, lambda: {name: whole(p.detach()).clone() for name, p in named.items()}


def compare_updates(folder: Path, mode: str, shard: Shard) -> dict[str, float]:
    """Return how far three updates of two processes with uneven clips lie from those of one, relatively."""

    def act(rank: int, path: Path) -> None:
        updater, weights = _updater(mode, shard)
        results = [updater.update(batches_of(SPLITS["uneven"][rank]), lr=0.1) for _ in range(3)]
        norms = torch.tensor([result.grad_norm for result in results])
        losses = torch.tensor([result.loss for result in results], dtype=torch.float64)
        torch.save({"weights": weights(), "norms": norms, "losses": losses}, path)

    first, second = in_two(act, folder)
    pid = os.fork()
    if pid == 0:  # in a child: Accelerate's state belongs to the process
        updater, weights = _updater(mode, "none")
        results = [updater.update(batches_of(((0, 16),)), lr=0.1) for _ in range(3)]
        norms = torch.tensor([result.grad_norm for result in results])
        torch.save({"weights": weights(), "norms": norms}, folder / "one.pt")
        os._exit(0)
    assert wait_for(pid).code == 0
    one = torch.load(folder / "one.pt", weights_only=True)
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    moved = torch.cat([(first["weights"][name] - w).flatten() for name, w in one["weights"].items()])
    size = torch.cat([w.flatten() for w in one["weights"].values()])
    return {
        "norm": float(((first["norms"] - one["norms"]) / one["norms"]).abs().max()),
        "weights": float(moved.norm() / size.norm()),
    }


def leave_out_bad_clips(folder: Path, shard: Shard) -> bool:
    """Let all clips of one process and some of the other be without a finite loss: both find them, none hangs."""

    def act(rank: int, path: Path) -> None:
        updater, weights = _updater("fp16", shard)
        batches = batches_of(SPLITS["uneven"][rank])
        if rank == 1:
            batches[0].input_features[:] = torch.nan
            batches[1].input_features[0] = torch.inf
        result = updater.update(batches, lr=0.1)
        torch.save({"bad": list(result.bad_clips), "skipped": result.skipped, "weights": weights()}, path)

    first, second = in_two(act, folder)
    return bool(
        (first["bad"], second["bad"]) == ([], [13, 14, 15])
        and not first["skipped"]
        and all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    )


def plant_infinity(folder: Path, mode: str, shard: Shard) -> bool:
    """Plant an infinity in the backward of rank 1 in the second of three updates: both skip that one, and no other."""

    def act(rank: int, path: Path) -> None:
        updater, weights = _updater(mode, shard)
        armed = [False]

        def plant(_module: Any, _inputs: Any, output: Tensor) -> None:
            if armed[0] and rank == 1:
                output.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))

        # Not on a parameter: FSDP2 sets the gradient of a shard past its hooks.
        norm = next(module for module in updater.objective.modules() if isinstance(module, torch.nn.LayerNorm))
        norm.register_forward_hook(plant)
        skips, seen = [], []
        for update in range(3):
            armed[0] = update == 1
            skips.append(updater.update(batches_of(SPLITS["uneven"][rank]), lr=0.1).skipped)
            seen.append(weights())
        scale = 0.0 if updater.scaler is None else updater.scaler.get_scale()
        torch.save({"skips": skips, "weights": seen, "scale": scale}, path)

    first, second = in_two(act, folder)
    moved = [
        any(not torch.equal(a, b) for a, b in zip(old.values(), new.values(), strict=True))
        for old, new in zip(first["weights"], first["weights"][1:], strict=False)
    ]
    return bool(
        first["skips"] == second["skips"] == [False, True, False]
        and moved == [False, True]
        and first["scale"] == second["scale"]
        and all(torch.equal(first["weights"][2][name], w) for name, w in second["weights"][2].items())
    )


def judge(folder: Path, shard: Shard) -> dict[str, Any]:
    """Return all that is measured of one way to share the work."""
    folder.mkdir(parents=True)
    toys = ToyRuns(folder / "toys", validation=True)
    figures = {mode: compare_updates(folder, mode, shard) for mode in ("fp32", "fp16")}
    interrupted = interrupt(toys, shard)
    full = fill_disk_of_one(toys, shard)
    alone = go_on_alone(toys, shard)
    agreed = {
        "bad clips left out": leave_out_bad_clips(folder, shard),
        "infinity skipped, fp32": plant_infinity(folder, "fp32", shard),
        "infinity skipped, fp16": plant_infinity(folder, "fp16", shard),
        "killed, then equal": interrupted["again"] == [0, 0] and interrupted["resumed"] and interrupted["equal"],
        "full disk borne": full["codes"] == [0, 0] and full["named"] and not full["rests"] and full["equal"],
        "one process goes on": alone["refused"] and alone["code"] == 0 and len(alone["inexact"]) == 2,
    }
    return {**figures, "agreed": agreed}


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
    assert run_two(toys, f"{shard}-whole", shard=shard) == [0, 0]

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
    codes = [wait_for(pid).code for pid in pids]
    pids = start_two(toys, name, lambda _: None, started=second, shard=shard, overwrite=True)
    again = [wait_for(pid).code for pid in pids]
    del store
    resumed = "resumed at step 3 of" in toys.output(name)
    equal = fingerprint(toys, name) == fingerprint(toys, f"{shard}-whole")
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
        "equal": fingerprint(toys, name) == fingerprint(toys, f"{shard}-whole"),
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
    shutil.copytree(toys.folder / f"{shard}-whole", toys.folder / name)
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
