"""From which checkpoint a run goes on, if any."""

from __future__ import annotations

from pathlib import Path

from train.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from train.identity import Change, admit_changes, find_changed_settings
from train.settings import TrainSettings


def find_resume(settings: TrainSettings, run_dir: Path) -> tuple[Checkpoint | None, list[Change]]:
    """Return the checkpoint to go on from, and the settings that are not as they were.

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
        checkpoint = load_checkpoint(path)
    else:
        found = find_checkpoint(run_dir / "checkpoints")
        if found is None:
            return None, []
        checkpoint = found[1]
    changes = find_changed_settings(checkpoint.state["config"], settings.config)
    admit_changes(changes, inexact=settings.run.inexact)  # said before gigabytes are loaded
    return checkpoint, changes
