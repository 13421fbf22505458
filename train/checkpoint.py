"""Checkpoints: safetensors and JSON, written beside the target, hashed, moved into place; and the way back.

No pickle: to resume needs no trust in the file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from infer.weights import file_sha256
from train.durable import Written, free_bytes, num_bytes, rename, sync_folder, write_file, write_json, write_tensors
from train.moments import flatten_optimizer, unflatten_optimizer

logger = logging.getLogger(__name__)

FORMAT = 2
MANIFEST = "manifest.json"
MODEL, OPTIMIZER, AVERAGE, STATE = "model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"
SHARDS = "shards"
STEP_DIR = re.compile(r"step-(\d{6,})")
ROOM_FOR_JSON = 4 << 20  # bytes, for all that is no tensor


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped."""

    model: dict[str, Tensor]
    """Trainable parameters by name."""
    optimizer: dict[str, Any]
    """`Optimizer.state_dict()`."""
    average: dict[str, Tensor]
    """Moving average by name; empty without one."""
    state: dict[str, Any]
    """JSON: counters, data position, scaler, random states, guard, best score, tracker id, identity, configuration."""
    shards: Path | None = None
    """Folder with the shards of a run that was cut over its cards, which each rank reads for itself."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors."""
        yield from self.model.values()
        yield from flatten_optimizer(self.optimizer)[0].values()
        yield from self.average.values()

    def on_host(self) -> Checkpoint:
        """Return a copy in the host's memory that no update changes."""

        def copy(node: Any) -> Any:
            if isinstance(node, Tensor):
                return node.detach().to("cpu", copy=True)
            if isinstance(node, Mapping):
                return {key: copy(value) for key, value in node.items()}
            return node

        return Checkpoint(copy(self.model), copy(self.optimizer), copy(self.average), self.state)


class DamagedError(RuntimeError):
    """A checkpoint whose files are not what was written."""


def step_dir(checkpoints_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return checkpoints_dir / f"step-{step:06d}"


def save_checkpoint(checkpoints_dir: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint to `step-NNNNNN`; a reader sees all of it or nothing.

    Every file is read back before the folder gets its name, so that each checkpoint that stands was whole once.

    Raises:
        OSError: if it cannot be written; what was there before is untouched, and nothing of the attempt is left.
    """
    temporary = open_attempt(checkpoints_dir, step, num_bytes(checkpoint.tensors()))
    try:
        return close_attempt(temporary, step, write_whole(temporary, checkpoint))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def open_attempt(checkpoints_dir: Path, step: int, size: int) -> Path:
    """Make the hidden folder in which a checkpoint of so many bytes begins.

    Raises:
        OSError: if there is no room, or it cannot be made.
    """
    checkpoints_dir.mkdir(parents=True, exist_ok=True)
    target = step_dir(checkpoints_dir, step)
    _verify_room(target, size + ROOM_FOR_JSON)
    temporary = checkpoints_dir / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    return temporary


def write_whole(folder: Path, checkpoint: Checkpoint) -> dict[str, Written]:
    """Write the files of a checkpoint; return them by name."""
    tensors, layout = flatten_optimizer(checkpoint.optimizer)
    files = {
        MODEL: write_tensors(folder / MODEL, checkpoint.model),
        OPTIMIZER: write_tensors(folder / OPTIMIZER, tensors),
    }
    if checkpoint.average:
        files[AVERAGE] = write_tensors(folder / AVERAGE, checkpoint.average)
    files[STATE] = write_json(folder / STATE, {**checkpoint.state, "optimizer": layout})
    return files


def close_attempt(temporary: Path, step: int, files: Mapping[str, Written]) -> Path:
    """Seal a hidden folder with its manifest, and give it the name of its step."""
    write_file(temporary / MANIFEST, [_manifest(step, files)])
    sync_folder(temporary)
    checkpoints_dir = temporary.parent
    target = step_dir(checkpoints_dir, step)
    retired = checkpoints_dir / f".old-{target.name}-{temporary.name.rpartition('-')[2]}"
    if target.exists():  # the same step again, after a resume; moved, since deleting it first could leave neither
        rename(target, retired)
    try:
        rename(temporary, target)
    except OSError:
        if retired.exists():
            rename(retired, target)
        raise
    sync_folder(checkpoints_dir)
    shutil.rmtree(retired, ignore_errors=True)
    return target


def _verify_room(target: Path, needed: int) -> None:
    free = free_bytes(target.parent)
    if free < needed:
        raise OSError(errno.ENOSPC, f"it needs {needed:,} bytes and {free:,} are free", str(target))


def _manifest(step: int, files: Mapping[str, Written]) -> bytes:
    """Return the manifest; its last entry is the hash of the rest, so that no bit of it can change unseen."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "files": {name: {"size": written.size, "sha256": written.sha256} for name, written in sorted(files.items())},
    }
    return _sealed(content)


def _sealed(content: Mapping[str, Any]) -> bytes:
    seal = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    return json.dumps({**content, "sha256": seal}, indent=1).encode()


def load_checkpoint(path: Path, *, read_shards: bool = True) -> Checkpoint:
    """Verify every hash, then read a checkpoint.

    Args:
        path: its folder.
        read_shards: put shards together in memory; else only their folder is noted, for each rank to read its own.

    Raises:
        DamagedError: if a file is missing or differs.
    """
    files = verify_checkpoint(path)
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    layout = state.pop("optimizer")
    groups = {"model": load_file(path / MODEL), "optimizer": load_file(path / OPTIMIZER)}
    groups["average"] = load_file(path / AVERAGE) if AVERAGE in files else {}
    shards = path / SHARDS if any(name.startswith(f"{SHARDS}/") for name in files) else None
    if shards is not None and read_shards:
        from train.shard_files import read_whole  # which stands upon this module

        for name, tensor in read_whole(shards).items():
            group, _, key = name.partition("/")
            groups[group][key] = tensor
        shards = None
    optimizer = unflatten_optimizer(groups["optimizer"], layout)
    return Checkpoint(groups["model"], optimizer, groups["average"], state, shards)


def verify_checkpoint(path: Path) -> tuple[str, ...]:
    """Compare every file with its hash; return the names.

    Raises:
        DamagedError: if a file is missing or differs.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
        manifest_format = manifest.get("format", 1)
        files: dict[str, dict[str, Any]] = manifest["files"]
        manifest.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DamagedError(f"{path} has no readable {MANIFEST}") from e
    if manifest_format == 1:
        raise DamagedError(
            f"{path} was written by an older Mezzavoce, without sealed hashes; take that version to go on"
        )
    if _sealed(manifest) != content:
        raise DamagedError(f"{path / MANIFEST} differs from what was written")
    if manifest_format != FORMAT:
        raise DamagedError(f"{path} has format {manifest_format}, and this Mezzavoce reads {FORMAT}; update it")
    if STEP_DIR.fullmatch(path.name) and path.name != step_dir(path.parent, manifest["step"]).name:
        raise DamagedError(f"{path} holds step {manifest['step']}: somebody renamed it")
    for name, expected in files.items():
        if not (path / name).is_file() or file_sha256(path / name) != expected["sha256"]:
            raise DamagedError(f"{path / name} is missing or differs from what was written")
    return tuple(files)


def find_checkpoint(checkpoints_dir: Path, *, read_shards: bool = True) -> tuple[Path, Checkpoint] | None:
    """Return the newest checkpoint that is whole; say aloud which ones are not.

    Args:
        checkpoints_dir: where they lie.
        read_shards: see `load_checkpoint`.

    Raises:
        DamagedError: if there are checkpoints and none is whole; a run never starts from scratch in silence.
    """
    paths = list_checkpoints(checkpoints_dir)
    for path in reversed(paths):
        try:
            return path, load_checkpoint(path, read_shards=read_shards)
        except DamagedError as e:
            logger.warning("checkpoint skipped: %s", e)
    if paths:
        raise DamagedError(f"none of the {len(paths)} checkpoints in {checkpoints_dir} is whole; name a new run.dir=")
    return None


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Return the checkpoints, oldest first."""
    found = [path for path in checkpoints_dir.glob("step-*") if STEP_DIR.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def prune_checkpoints(checkpoints_dir: Path, *, keep_last: int, keep: Mapping[str, int | None]) -> None:
    """Delete all but the newest and those of the named steps, such as the best; call after a new one is in place."""
    spared = {step for step in keep.values() if step is not None}
    for path in list_checkpoints(checkpoints_dir)[:-keep_last]:
        if int(path.name.removeprefix("step-")) not in spared:
            shutil.rmtree(path, ignore_errors=True)


def sweep_checkpoints(checkpoints_dir: Path) -> None:
    """Take away what a run that was killed left half done; only one run at a time may use the folder."""
    for path in checkpoints_dir.glob(".old-step-*"):
        target = checkpoints_dir / path.name.removeprefix(".old-").rsplit("-", 1)[0]
        if not target.exists():  # killed between the two renames
            rename(path, target)
    for path in [*checkpoints_dir.glob(".tmp-step-*"), *checkpoints_dir.glob(".old-step-*")]:
        logger.info("removed %s, left by a run that was killed while it wrote", path.name)
        shutil.rmtree(path, ignore_errors=True)
