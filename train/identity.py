"""What a run is made of, so that a resumed one is the same run: settings, model, data, processes, versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.sources import Source
from infer.weights import file_sha256

logger = logging.getLogger(__name__)

EXACT_GROUPS = (
    "model",
    "dataset",
    "labels",
    "window",
    "augment",
    "precision",
    "finetune",
    "optimizer",
    "schedule",
    "trainer",
)
"""Groups that must be as they were for a resumed run to be the same run."""
FREE_KEYS = {
    ("augment", "sounds_gib"),
    ("trainer", "num_workers"),
    ("trainer", "keep_checkpoints"),
    ("trainer", "log_every_steps"),
    ("trainer", "max_hours"),
    ("trainer", "rank_timeout_s"),
    ("trainer", "exchange_timeout_s"),
    ("trainer", "save_in_background"),
    ("trainer", "shard"),  # what comes of it is part of the identity
    ("trainer", "verify_ranks_every_steps"),
}
PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy")


@dataclass(frozen=True)
class Change:
    """Something that is not as it was."""

    what: str
    is_allowed: bool
    """Whether a run may go on without being told to; exact it is not."""


def describe_identity(
    named_parameters: Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    sources: Iterable[Source],
    *,
    world_size: int,
    device: torch.device,
    shard: str = "none",
) -> dict[str, Any]:
    """Return what a checkpoint keeps to know its run again, as JSON.

    Args:
        named_parameters: all of the model; what learns is in the checkpoint, so only the rest is hashed.
        tokenizer: of the labels.
        sources: of training and validation.
        world_size: number of processes.
        device: what trains.
        shard: how weights are cut over the processes.
    """
    return {
        "frozen weights": _hash_frozen(named_parameters),
        "tokenizer": _sha256(json.dumps(sorted(tokenizer.get_vocab().items()))),
        "data": {source.path: _hash_source(source) for source in sources},
        "processes": world_size,
        "shard": shard,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def find_changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Compare the settings of a checkpoint with those of this start."""
    return [
        Change(f"{group}.{key}", is_allowed=False)
        for group in EXACT_GROUPS
        for key in sorted({**before.get(group, {}), **now.get(group, {})})
        if (group, key) not in FREE_KEYS and before.get(group, {}).get(key) != now.get(group, {}).get(key)
    ]


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Compare two identities."""
    changes: list[Change] = []
    for key in ("frozen weights", "tokenizer"):
        if before[key] != now[key]:
            changes.append(Change(f"the {key} of the model", is_allowed=False))
    paths = [path for path in {**before["data"], **now["data"]} if before["data"].get(path) != now["data"].get(path)]
    changes += [Change(f"the content of {path}", is_allowed=False) for path in paths]
    if before["processes"] != now["processes"]:
        changes.append(
            Change(f"the number of processes ({before['processes']}, now {now['processes']})", is_allowed=False)
        )
    cut, now_cut = before.get("shard", "none"), now.get("shard", "none")
    if cut != now_cut:
        changes.append(Change(f"trainer.shard ({cut}, now {now_cut})", is_allowed=False))
    # The sums of another card or version differ in their last bits: the same run, but not bit for bit.
    if before["device"] != now["device"]:
        changes.append(Change(f"the device ({before['device']}, now {now['device']})", is_allowed=True))
    for name in PACKAGES:
        old, new = before["versions"].get(name), now["versions"].get(name)
        if old != new:
            changes.append(Change(f"the version of {name} ({old}, now {new})", is_allowed=True))
    return changes


def admit_changes(changes: Iterable[Change], *, inexact: bool) -> list[str]:
    """Refuse changes, or name those that a run goes on with.

    Args:
        changes: what is not as it was.
        inexact: go on with any of them.

    Raises:
        ValueError: if the run would not be the same one, and nobody allowed that.
    """
    changes = list(changes)
    refused = [change.what for change in changes if not change.is_allowed]
    if refused and not inexact:
        raise ValueError(
            f"the run in this folder was made with other values of {', '.join(refused)}; give them as they were to go "
            "on, name another run.name=, start anew with run.overwrite=true, or go on all the same with "
            "run.inexact=true, which the artefact will say"
        )
    for change in changes:
        logger.warning("resumed, but not bit for bit: %s changed", change.what)
    return [change.what for change in changes]


def _hash_frozen(named_parameters: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in named_parameters:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if not tensor.requires_grad:
            words = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(words.numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def _hash_source(source: Source) -> str:
    """Hash the file of a source; of a folder or tar shards the names and sizes; of a data set on the hub its name."""
    path = Path(source.path).expanduser()
    if path.is_file():
        return file_sha256(path)
    folder = path if path.is_dir() else path.parent
    pattern = "**/*" if path.is_dir() else path.name
    files = sorted(file for file in folder.glob(pattern) if file.is_file()) if folder.is_dir() else []
    listing = [[str(file.relative_to(folder)), file.stat().st_size] for file in files]
    return _sha256(json.dumps([listing, source.config, source.split, source.revision]))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
