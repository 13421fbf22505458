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
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
)
from rich.console import Console
from rich.logging import RichHandler

from data.redaction import redact
from train.precision import Precision, PrecisionSettings

logger = logging.getLogger(__name__)

LOCK = ".lock"
PROBE = ".writable"
LOG = "train.log"
BEGUN = frozenset({LOCK, PROBE, LOG})
"""All that a run leaves that was killed before it wrote its settings."""


def build_accelerator(
    precision: Precision, settings: PrecisionSettings, *, cache_autocast: bool = True, rank_timeout_s: float = 45.0
) -> Accelerator:
    """Build the Accelerator with the autocast and the loss scaler of a precision.

    Accumulation is ours: the environment overrides Accelerate's own count.

    Args:
        precision: resolved for this device.
        settings: of the scaler.
        cache_autocast: keep the half-precision copies of the weights until the forward ends. With activation
            checkpointing that is 2.87 GiB on large-v3 for nothing, since each weight is used once a forward.
        rank_timeout_s: how long processes wait for one; an exchange within an update waits ten times that, since a
            process that compiles there looks like one that hangs.

    Raises:
        RuntimeError: if Accelerate did not set up what was asked.
    """
    scaler_options = {
        "init_scale": settings.init_scale,
        "growth_factor": settings.growth_factor,
        "backoff_factor": settings.backoff_factor,
        "growth_interval": settings.growth_interval,
    }
    accelerator = Accelerator(
        mixed_precision=precision.accelerate,
        gradient_accumulation_steps=1,
        kwargs_handlers=[
            GradScalerKwargs(**scaler_options),
            AutocastKwargs(cache_enabled=cache_autocast),
            DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=10 * rank_timeout_s)),
        ],
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
    for name in ("httpx", "urllib3", "filelock", "matplotlib", "datasets", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a kernel for 4 bits, which we have no use for
