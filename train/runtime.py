"""The process: Accelerator, seeds, run folder, log."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
)
from rich.console import Console
from rich.logging import RichHandler
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from data.redaction import redact
from train.precision import Precision, PrecisionSettings

logger = logging.getLogger(__name__)

LOCK = ".lock"
PROBE = ".writable"
LOG = "train.log"
BEGUN = frozenset({LOCK, PROBE, LOG})
"""All that a run leaves that was killed before it wrote its settings."""


def build_accelerator(
    precision: Precision, settings: PrecisionSettings, *, cache_autocast: bool = True, exchange_timeout_s: float = 180.0
) -> Accelerator:
    """Build the Accelerator with the autocast and the loss scaler of a precision.

    Accumulation is ours: the environment overrides Accelerate's own count.

    Args:
        precision: resolved for this device.
        settings: of the scaler.
        cache_autocast: keep the half-precision copies of the weights until the forward ends. With activation
            checkpointing that is 2.87 GiB on large-v3 for nothing, since each weight is used once a forward.
        exchange_timeout_s: how long an exchange within an update waits for a process that hangs in its arithmetic,
            which the heartbeat cannot tell from one that waits.

    Raises:
        RuntimeError: if Accelerate did not set up what was asked.
    """
    scaler_options = {
        "init_scale": settings.init_scale,
        "growth_factor": settings.growth_factor,
        "backoff_factor": settings.backoff_factor,
        "growth_interval": settings.growth_interval,
    }
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    _meet_again(timedelta(seconds=exchange_timeout_s))
    accelerator = Accelerator(
        # torchrun, and `accelerate launch` through it, say nothing of CPUs: without a card Accelerate 1.15 would take
        # each process for alone.
        cpu=num_processes > 1 and "LOCAL_RANK" in os.environ and not torch.cuda.is_available(),
        mixed_precision=precision.accelerate,
        gradient_accumulation_steps=1,
        kwargs_handlers=[
            GradScalerKwargs(**scaler_options),
            AutocastKwargs(cache_enabled=cache_autocast),
            DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=exchange_timeout_s)),
        ],
    )
    if accelerator.num_processes != num_processes:
        raise RuntimeError(
            f"WORLD_SIZE={num_processes} in the environment, but Accelerate set up {accelerator.num_processes}; start "
            "several processes with accelerate launch, torchrun or conf/slurm/train.sbatch, one after unset WORLD_SIZE"
        )
    if accelerator.device.type == "cpu" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        # `accelerate launch` leaves each process one thread unless told otherwise: half the speed on two cores.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // accelerator.num_processes))
    if precision.uses_scaler and accelerator.device.type == "cpu":
        # Accelerate 1.15 runs plain FP32 on a CPU when asked for fp16, without a word. With these two set, autocast and
        # scaling go through the same code as on CUDA.
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", **scaler_options)  # type: ignore[arg-type]
    if precision.uses_scaler and accelerator.scaler is None:
        raise RuntimeError(f"precision={precision.mode}: Accelerate built no loss scaler on {accelerator.device}")
    if precision.accelerate != "no" and not accelerator.native_amp:
        raise RuntimeError(f"precision={precision.mode}: Accelerate set up no autocast on {accelerator.device}")
    return accelerator


def _meet_again(timeout: timedelta) -> None:
    """After a restart by torchrun, let processes find each other under keys of their own.

    The launcher keeps one store for all its restarts, and the processes would wait at the addresses that the lost ones
    left there.
    """
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if again == "0" or not shares_store or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    uses_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes", "y")
    dist.init_process_group(
        "gloo" if uses_cpu or not torch.cuda.is_available() else "nccl",
        store=PrefixStore(f"mezzavoce/start-{again}", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def open_run_dir(run_dir: Path, *, resume: str, overwrite: bool) -> Path:
    """Make the run folder.

    Args:
        run_dir: the folder.
        resume: `auto` goes on where a run stopped, `never` wants a new folder, else the path of a checkpoint.
        overwrite: delete a run that is there; only a folder that looks like a run is ever deleted.

    Raises:
        ValueError: if the folder is in use and may not be.
        RuntimeError: if it cannot be written.
    """
    run_dir = run_dir.expanduser().absolute()
    is_used = run_dir.is_dir() and any(path.name not in BEGUN for path in run_dir.iterdir())
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"run.dir={run_dir} is a file; name a folder")
    if is_used and not (run_dir / "config.yaml").is_file():
        raise ValueError(f"run.dir={run_dir} holds other files, and no config.yaml of a run; name another folder")
    if is_used and overwrite:
        with lock_run_dir(run_dir):
            shutil.rmtree(run_dir)
    elif is_used and resume == "never":
        raise ValueError(f"run.dir={run_dir} holds a run; name another one, or add run.overwrite=true")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / PROBE
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise RuntimeError(f"cannot write into run.dir={run_dir}: {e.strerror}") from e
    return run_dir


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, so that a queue that starts a run twice does not let two write into it.

    Raises:
        ValueError: if another process holds it.
    """
    with (run_dir / LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by loader processes, unlike flock
        except (BlockingIOError, PermissionError) as e:
            raise ValueError(
                f"another process trains in run.dir={run_dir}; wait until it ends, or name another run.name="
            ) from e
        except OSError as e:
            logger.debug("%s cannot be locked: %s", run_dir, e.strerror)  # some network file systems
        yield


def _redact(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), ()
    return True


def configure_logging(run_dir: Path | None, *, is_main: bool) -> None:
    """Send the log to the terminal (rank 0) and, with everything, to `train.log`."""
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.INFO)
    if is_main:
        terminal: logging.Handler = logging.StreamHandler()
        if sys.stderr.isatty():
            console = Console(stderr=True)
            terminal = RichHandler(console=console, show_path=False, show_time=False, show_level=False, markup=False)
        terminal.addFilter(_redact)
        terminal.setLevel(os.environ.get("MEZZAVOCE_LOG", "INFO"))
        root.addHandler(terminal)
    if run_dir is not None and is_main:
        file = logging.FileHandler(run_dir / LOG, encoding="utf-8")
        file.addFilter(_redact)
        file.setLevel(logging.DEBUG)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    logging.getLogger("scripts").setLevel(logging.DEBUG)  # tracebacks of users' mistakes, for the file alone
    logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)  # tells of each step of a checkpoint
    for name in ("httpx", "urllib3", "filelock", "matplotlib", "datasets", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a kernel for 4 bits, which we have no use for
