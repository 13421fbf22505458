"""Checkpoints: safetensors and JSON, written beside the target, hashed, moved into place; and the way back.

No pickle: to resume needs no trust in the file.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer.artefact import file_sha256

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STEP_DIR = re.compile(r"step-(\d{6,})")


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
    """JSON: counters, data position, scaler, random states, guard, best score, tracker id, configuration."""


class DamagedError(RuntimeError):
    """A checkpoint whose files are not what was written."""


def save_checkpoint(checkpoints_dir: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint to `step-NNNNNN`; a reader sees all of it or nothing.

    Raises:
        OSError: if it cannot be written; what was there before is untouched.
    """
    checkpoints_dir.mkdir(parents=True, exist_ok=True)
    target = checkpoints_dir / f"step-{step:06d}"
    temporary = checkpoints_dir / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        _save_tensors(temporary / "model.safetensors", checkpoint.model)
        tensors, layout = _flatten_optimizer(checkpoint.optimizer)
        _save_tensors(temporary / "optimizer.safetensors", tensors)
        if checkpoint.average:
            _save_tensors(temporary / "average.safetensors", checkpoint.average)
        _write_json(temporary / "state.json", {**checkpoint.state, "optimizer": layout})
        for file in temporary.iterdir():
            _fsync(file)
        files = {file.name: file_sha256(file) for file in sorted(temporary.iterdir())}
        _write_json(temporary / MANIFEST, {"step": step, "files": files})
        _fsync(temporary / MANIFEST)
        _fsync(temporary)
        retired = checkpoints_dir / f"{temporary.name}-old"
        if target.exists():  # the same step again, after a resume; moved, since deleting it first could leave neither
            target.rename(retired)
        temporary.rename(target)
        _fsync(checkpoints_dir)
        shutil.rmtree(retired, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify every hash, then read a checkpoint.

    Raises:
        DamagedError: if a file is missing or differs.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DamagedError(f"{path} has no readable {MANIFEST}") from e
    for name, expected in files.items():
        if not (path / name).is_file() or file_sha256(path / name) != expected:
            raise DamagedError(f"{path / name} is missing or differs from what was written")
    state = json.loads((path / "state.json").read_text())
    optimizer = _unflatten_optimizer(load_file(path / "optimizer.safetensors"), state.pop("optimizer"))
    average = load_file(path / "average.safetensors") if "average.safetensors" in files else {}
    return Checkpoint(load_file(path / "model.safetensors"), optimizer, average, state)


def find_checkpoint(checkpoints_dir: Path) -> tuple[Path, Checkpoint] | None:
    """Return the newest checkpoint that is whole; say aloud which ones are not.

    Raises:
        DamagedError: if there are checkpoints and none is whole; a run never starts from scratch in silence.
    """
    paths = list_checkpoints(checkpoints_dir)
    for path in reversed(paths):
        try:
            return path, load_checkpoint(path)
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
    for path in checkpoints_dir.glob(".tmp-step-*"):
        shutil.rmtree(path, ignore_errors=True)


def random_states() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's generators, as JSON."""
    version, keys, gauss = random.getstate()
    name, words, pos, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    states: dict[str, Any] = {
        "python": [version, list(keys), gauss],
        "numpy": [name, [int(word) for word in words], int(pos), int(has_gauss), float(cached)],
        "torch": _encode(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = [_encode(state) for state in torch.cuda.get_rng_state_all()]
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set all generators to saved states."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, pos, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(words, dtype=np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(_decode(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_decode(state) for state in states["cuda"]])


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into named tensors and a JSON layout of all that is no tensor."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif isinstance(value, Mapping):  # bitsandbytes keeps what it quantised one level down
                # Its tables of levels are one tensor for all parameters, and safetensors takes none twice.
                tensors |= {f"{index}.{name}.{inner}": tensor.clone() for inner, tensor in value.items()}
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def _unflatten_optimizer(tensors: Mapping[str, Tensor], layout: Mapping[str, Any]) -> dict[str, Any]:
    entries: dict[int, dict[str, Any]] = {}
    for index, values in layout["numbers"].items():
        entries.setdefault(int(index), {}).update(values)
    for key, tensor in tensors.items():
        index, name, *inner = key.split(".")
        entry = entries.setdefault(int(index), {})
        if inner:
            entry.setdefault(name, {})[inner[0]] = tensor
        else:
            entry[name] = tensor
    return {"state": entries, "param_groups": layout["param_groups"]}


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(path))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
