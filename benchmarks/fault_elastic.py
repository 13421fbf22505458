"""A launcher that starts lost processes again (`torchrun --max_restarts`), and two that meet at a rendezvous."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train.heartbeat
from benchmarks.fault_shards import die_at
from benchmarks.toy_run import ToyRuns, adapt, wait_for


def _work(toys: ToyRuns, name: str, dies: bool, changes: dict[str, Any]) -> None:
    """One process of a run, as a launcher starts it."""
    os.environ.update({"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"})
    with (toys.folder / f"{name}.out").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    train.heartbeat.DEAD_S = 4.0
    if dies and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        die_at(5)
    try:
        adapt(toys.folder / name)
        code = toys.run(name, **changes)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # a normal return is what the launcher takes for success


def _launch(toys: ToyRuns, name: str, *, dies: bool, machines: int, port: int, **changes: Any) -> int:
    """Start a launcher in a child; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (toys.folder / f"{name}.launcher").open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        config = LaunchConfig(
            min_nodes=machines,
            max_nodes=machines,
            nproc_per_node=2 // machines,
            run_id=name,
            rdzv_backend="c10d",
            rdzv_endpoint=f"127.0.0.1:{port}",
            max_restarts=1,
            monitor_interval=0.05,
            start_method="fork",
        )
        elastic_launch(config, _work)(toys, name, dies, changes)
        code = 0
    except ChildFailedError as e:
        code = next(iter(e.failures.values())).exitcode
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_elastic(toys: ToyRuns, name: str, *, dies: bool, machines: int = 1, **changes: Any) -> list[int]:
    """Run two processes under one launcher, or under one on each of two machines; return the exit codes.

    Args:
        toys: makes the runs.
        name: of the run.
        dies: rank 1 is killed in its sixth update; once.
        machines: launchers, which meet at a rendezvous on this machine.
        changes: of the settings.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pids = [_launch(toys, name, dies=dies, machines=machines, port=port, **changes) for _ in range(machines)]
    return [wait_for(pid).code for pid in pids]


def restart(folder: Path) -> dict[str, Any]:
    """Kill a rank once under a launcher that restarts, with settings that would begin anew; compare with no kill."""
    toys = ToyRuns(folder)
    figures: dict[str, Any] = {"without_a_fault": run_elastic(toys, "whole", dies=False)}
    figures["killed_once"] = run_elastic(toys, "killed", dies=True, overwrite=True)
    figures["equal"] = toys.fingerprint("killed") == toys.fingerprint("whole")
    figures["went_on"] = "resumed at step" in toys.output("killed")
    figures["two_machines"] = run_elastic(toys, "machines", dies=False, machines=2)
    figures["machines_equal"] = toys.fingerprint("machines") == toys.fingerprint("whole")
    return figures
