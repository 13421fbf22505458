"""From which checkpoint a run goes on, if any."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from train.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from train.identity import Change, admit_changes, find_changed_settings
from train.settings import TrainSettings

logger = logging.getLogger(__name__)

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def going_on(settings: TrainSettings, environment: Mapping[str, str]) -> TrainSettings:
    """Return the settings of a start that a launcher or a queue made again, which must go on and never begin anew.

    `torchrun --max_restarts` and a requeued job call the very command of the first start. With `run.overwrite=true`
    that would delete what it has to go on from.

    Args:
        settings: as the command says.
        environment: of the process.
    """
    again = [name for name in RESTART_COUNTS if environment.get(name, "0") not in ("", "0")]
    if not again or not (settings.run.overwrite or settings.run.resume == "never"):
        return settings
    logger.info("%s=%s: the run goes on from its last checkpoint", again[0], environment[again[0]])
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, overwrite=False, resume="auto"))


def find_resume(
    settings: TrainSettings, run_dir: Path, *, read_shards: bool = True
) -> tuple[Checkpoint | None, list[Change]]:
    """Return the checkpoint to go on from, and the settings that are not as they were.

    Args:
        settings: of this start.
        run_dir: the run folder.
        read_shards: see `load_checkpoint`.

    Raises:
        FileNotFoundError: if `run.resume` names no folder.
        ValueError: if settings changed, and nobody allowed that.
        DamagedError: if there are checkpoints and none is whole.
    """
    resume = settings.run.resume
    if resume == "never":
        return None, []
    if resume != "auto":
        path = Path(resume).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(f"run.resume={resume} must be auto, never or the folder of a checkpoint")
        checkpoint = load_checkpoint(path, read_shards=read_shards)
    else:
        found = find_checkpoint(run_dir / "checkpoints", read_shards=read_shards)
        if found is None:
            return None, []
        checkpoint = found[1]
    changes = find_changed_settings(checkpoint.state["config"], settings.config)
    admit_changes(changes, inexact=settings.run.inexact)  # said before gigabytes are loaded
    return checkpoint, changes
