"""Two processes over gloo: the gradient of one, a skip on both, and what the one does when the other is lost."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import train.heartbeat
from benchmarks.accumulation import build_clips, build_whisper
from benchmarks.toy_run import ToyRuns, sample_ids, wait_for
from data.batches import SpeechBatch, collate
from data.loaders import UpdateDataset
from train.loss import TrainingObjective
from train.precision import PrecisionSettings, inspect_device, resolve_precision
from train.ranks import Ranks
from train.runtime import build_accelerator
from train.signals import PeerError
from train.step import Updater

SPLITS = {"even": (((0, 4), (4, 8)), ((8, 12), (12, 16))), "uneven": (((0, 7), (7, 13)), ((13, 15), (15, 16)))}


def environments() -> list[dict[str, str]]:
    """Return the environment of each of two processes, as a launcher sets it; on the CPU, also beside a card."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        {**shared, "RANK": str(i), "LOCAL_RANK": str(i), "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
        for i in range(2)
    ]


def in_two(action: Callable[[int, Path], None], folder: Path) -> list[Any]:
    """Run an action in two forked processes; return what each has saved into its file."""
    pids = []
    for rank, environment in enumerate(environments()):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.environ.update(environment)
                action(rank, folder / f"rank-{rank}.pt")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    codes = [wait_for(pid).code for pid in pids]
    assert codes == [0, 0], codes
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def batches_of(parts: tuple[tuple[int, int], ...]) -> list[SpeechBatch]:
    """Return micro-batches of the clips from a to b, for each pair."""
    features, labels = build_clips()
    return [collate(features[a:b], labels[a:b], clips=range(a, b), audio_s=float(b - a), pad_id=0) for a, b in parts]


def _updater(mode: str) -> tuple[Updater, TrainingObjective, list[Tensor]]:
    settings = PrecisionSettings(mode, init_scale=1024.0)
    accelerator = build_accelerator(resolve_precision(settings, inspect_device(torch.device("cpu"))), settings)
    objective = TrainingObjective(build_whisper())
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    seen: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(_flat([p.grad for p in _learning(objective)])))
    return Updater(accelerator.prepare(objective), optimizer, accelerator, max_grad_norm=1.0), objective, seen


def _learning(objective: TrainingObjective) -> list[torch.nn.Parameter]:
    return [p for p in objective.parameters() if p.requires_grad]


def _flat(tensors: list[Any]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def compare_gradients(folder: Path) -> dict[str, float]:
    """Return the relative difference of the gradient between two processes and one, without clipping."""
    figures = {}
    for name, split in SPLITS.items():

        def act(rank: int, path: Path, split: Any = split) -> None:
            updater, objective, seen = _updater("fp32")
            updater.max_grad_norm = 0.0
            result = updater.update(batches_of(split[rank]), lr=0.1)
            torch.save({"gradient": seen[0], "loss": result.loss, "weights": _flat(_learning(objective))}, path)

        first, second = in_two(act, folder)
        pid = os.fork()
        if pid == 0:  # in a child: Accelerate's state belongs to the process
            updater, _, seen = _updater("fp32")
            updater.max_grad_norm = 0.0
            updater.update(batches_of(((0, 16),)), lr=0.1)
            torch.save(seen[0], folder / "one.pt")
            os._exit(0)
        assert wait_for(pid).code == 0
        one = torch.load(folder / "one.pt", weights_only=True)
        figures[name] = float((first["gradient"] - one).norm() / one.norm())
        assert torch.equal(first["weights"], second["weights"])
    return figures


def plant_on_one(folder: Path) -> dict[str, bool]:
    """Plant an infinity on rank 1 before and behind the exchange, a clip without a finite loss, and another weight."""
    figures: dict[str, bool] = {}
    for mode in ("fp16", "fp32"):
        for where in ("before", "behind"):

            def act(rank: int, path: Path, mode: str = mode, where: str = where) -> None:
                updater, objective, _ = _updater(mode)
                planted = _learning(objective)[0]
                armed = [True]
                if rank == 1 and where == "before":
                    planted.register_hook(lambda g: torch.full_like(g, torch.inf) if armed[0] else g)
                if rank == 1 and where == "behind":
                    _plant_behind(updater, planted, armed)
                skips, weights = [], []
                for update in range(3):
                    armed[0] = update == 1
                    result = updater.update(batches_of(SPLITS["even"][rank]), lr=0.1)
                    skips.append(result.skipped)
                    weights.append(_flat(_learning(objective)))
                scale = float("nan") if updater.scaler is None else updater.scaler.get_scale()
                torch.save({"skips": skips, "weights": weights, "scale": scale}, path)

            first, second = in_two(act, folder)
            figures[f"inf {where} the exchange, {mode}"] = (
                first["skips"] == second["skips"] == [False, True, False]
                and all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
                and str(first["scale"]) == str(second["scale"])
            )
    figures["bad clip on one rank"] = _bad_clip(folder)
    figures["another weight is noticed on both"] = _other_weight(folder)
    return figures


def _plant_behind(updater: Updater, planted: torch.nn.Parameter, armed: list[bool]) -> None:
    real: Callable[..., Any]
    scaler = updater.scaler
    if scaler is not None:
        real = scaler.unscale_

        def unscale(optimizer: Any) -> None:
            if armed[0]:
                planted.grad[0] = torch.inf
            real(optimizer)

        scaler.unscale_ = unscale  # type: ignore[method-assign]
    else:
        real = torch.nn.utils.get_total_norm

        def norm(gradients: Any, *arguments: Any, **options: Any) -> Tensor:
            if armed[0]:
                planted.grad[0] = torch.inf
            return real(gradients, *arguments, **options)

        torch.nn.utils.get_total_norm = norm


def _bad_clip(folder: Path) -> bool:
    def act(rank: int, path: Path) -> None:
        updater, objective, _ = _updater("fp16")
        batches = batches_of(SPLITS["even"][rank])
        if rank == 1:  # the whole first micro-batch, and a clip of the second
            batches[0].input_features[:] = torch.nan
            batches[1].input_features[2] = torch.inf
        result = updater.update(batches, lr=0.1)
        found = Ranks().join(list(result.bad_clips))
        torch.save({"bad": found, "skipped": result.skipped, "weights": _flat(_learning(objective))}, path)

    first, second = in_two(act, folder)
    return bool(
        first["bad"] == second["bad"] == [8, 9, 10, 11, 14]
        and not first["skipped"]
        and torch.equal(first["weights"], second["weights"])
    )


def _other_weight(folder: Path) -> bool:
    def act(rank: int, path: Path) -> None:
        updater, objective, _ = _updater("fp32")
        ranks = Ranks()
        updater.update(batches_of(SPLITS["even"][rank]), lr=0.1)
        ranks.verify_same_weights(objective.named_parameters(), step=1)
        if rank == 1:
            parameter = dict(objective.named_parameters())["whisper.model.decoder.layers.0.fc1.weight"]
            parameter.data[3, 5] += 1e-7
        try:
            ranks.verify_same_weights(objective.named_parameters(), step=2)
            said = ""
        except PeerError as e:
            said = str(e)
        torch.save({"named": "decoder.layers.0.fc1.weight" in said and "step 2" in said}, path)

    first, second = in_two(act, folder)
    return bool(first["named"] and second["named"])


def lose_one(folder: Path, *, kinds: tuple[str, ...], rank_timeout_s: float, dead_s: float) -> dict[str, Any]:
    """Run two processes; kill, stop or hang one; the other must end, name it, and the run go on to the same end."""
    toys = ToyRuns(folder)
    whole = _run_two(toys, "whole", rank_timeout_s, dead_s)
    figures: dict[str, Any] = {"without_a_fault": [ending.code for ending in whole]}
    for kind in kinds:
        figures[kind] = _lose(toys, kind, rank_timeout_s, dead_s)
        again = _run_two(toys, kind, rank_timeout_s, dead_s)
        figures[kind]["then_equal"] = [e.code for e in again] == [0, 0] and (
            toys.fingerprint(kind) == toys.fingerprint("whole")
        )
    return figures


def _start_two(toys: ToyRuns, name: str, rank_timeout_s: float, dead_s: float, hanging: int | None = None) -> list[int]:
    def prepare(rank: int) -> Callable[[], None]:
        def act() -> None:
            train.heartbeat.DEAD_S = dead_s
            if rank == hanging:
                _hang_in_data()

        return act

    return [
        toys.start(name, environment=environment, prepare=prepare(rank), rank_timeout_s=rank_timeout_s)
        for rank, environment in enumerate(environments())
    ]


def _run_two(toys: ToyRuns, name: str, rank_timeout_s: float, dead_s: float) -> list[Any]:
    return [wait_for(pid) for pid in _start_two(toys, name, rank_timeout_s, dead_s)]


def _lose(toys: ToyRuns, kind: str, rank_timeout_s: float, dead_s: float) -> dict[str, Any]:
    lost = 0 if kind == "rank 0 killed" else 1
    pids = _start_two(toys, kind, rank_timeout_s, dead_s, hanging=1 if kind == "rank 1 hangs" else None)
    while max(sample_ids(toys.folder / kind), default=0) < 4:
        time.sleep(0.01)
    if kind != "rank 1 hangs":
        os.kill(pids[lost], signal.SIGSTOP if "stopped" in kind else signal.SIGKILL)
    started = time.monotonic()
    ending = wait_for(pids[1 - lost], started=started)
    with_name = f"rank {lost}" in toys.output(kind) or (lost == 0 and "store of rank 0" in toys.output(kind))
    os.kill(pids[lost], signal.SIGKILL)
    wait_for(pids[lost])
    return {"code": ending.code, "seconds": round(ending.elapsed_s, 1), "named": with_name}


def _hang_in_data() -> None:
    real = UpdateDataset.__getitem__
    count = [0]

    def read(dataset: UpdateDataset, position: Any) -> Any:
        count[0] += 1
        if count[0] == 6:
            time.sleep(3600)
        return real(dataset, position)

    UpdateDataset.__getitem__ = read  # type: ignore[method-assign]
