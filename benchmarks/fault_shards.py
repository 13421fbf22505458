"""Two processes over gloo that share the work (FSDP2, DeepSpeed): the update of one process, and agreed skips."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accumulation import build_whisper
from benchmarks.fault_ranks import SPLITS, batches_of, in_two
from benchmarks.fault_shard_runs import fill_disk_of_one, go_on_alone, interrupt
from benchmarks.toy_run import ToyRuns, wait_for
from train.exchange import Exchange
from train.loss import TrainingObjective
from train.precision import PrecisionSettings, inspect_device, resolve_precision
from train.ranks import Ranks
from train.runtime import build_accelerator
from train.sharding import Shard, prepare_objective
from train.shards import whole
from train.step import Updater
from train.zero import STAGES, ZeroExchange

KINDS: tuple[Shard, ...] = ("zero2", "zero3", "deepspeed_zero1", "deepspeed_zero2")


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
    one = update_alone(folder, mode)
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    moved = torch.cat([(first["weights"][name] - w).flatten() for name, w in one["weights"].items()])
    size = torch.cat([w.flatten() for w in one["weights"].values()])
    return {
        "norm": float(((first["norms"] - one["norms"]) / one["norms"]).abs().max()),
        "weights": float(moved.norm() / size.norm()),
    }


def update_alone(folder: Path, mode: str) -> dict[str, Any]:
    """Return weights and gradient norms of three updates of one process with all clips; reckoned once in a folder."""
    path = folder / f"one-{mode}.pt"
    if not path.exists():
        pid = os.fork()
        if pid == 0:  # in a child: Accelerate's state belongs to the process
            code = 1
            try:
                updater, weights = _updater(mode, "none")
                results = [updater.update(batches_of(((0, 16),)), lr=0.1) for _ in range(3)]
                norms = torch.tensor([result.grad_norm for result in results])
                torch.save({"weights": weights(), "norms": norms}, path)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        assert wait_for(pid).code == 0
    one: dict[str, Any] = torch.load(path, weights_only=True)
    return one


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
