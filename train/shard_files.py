"""Checkpoints of a run that is cut over its cards: each rank writes its shards, and any number of ranks reads them.

`torch.distributed.checkpoint` plans who writes and reads what, in safetensors with the place of each piece in the
header: no pickle, as everywhere. Around it stands the protocol of `train.checkpoint`: a hidden folder, hashes, a sealed
manifest, one rename. The run folder must lie on a disk that all machines share.
"""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from infer.weights import file_sha256
from train.checkpoint import (
    SHARDS,
    Checkpoint,
    close_attempt,
    open_attempt,
    save_checkpoint,
    write_whole,
)
from train.durable import Written, num_bytes, sync_folder
from train.moments import flatten_optimizer, unflatten_optimizer
from train.ranks import Ranks

T = TypeVar("T")


def save_sharded(checkpoints_dir: Path, step: int, checkpoint: Checkpoint, ranks: Ranks) -> Path:
    """Write a checkpoint together; all ranks call it, and all get the same answer.

    Raises:
        OSError: on all ranks, if one of them cannot write; what was there before is untouched.
    """
    pieces, rest = _split(checkpoint)
    size = num_bytes(checkpoint.tensors())
    temporary = Path(
        _together(ranks, lambda: str(open_attempt(checkpoints_dir, step, size)) if _leads(ranks) else "")[0]
    )
    try:
        folder = temporary / SHARDS
        _save_pieces(folder, pieces, ranks)
        found = _together(ranks, lambda: _hash_own(folder, ranks.rank))
        files = {f"{SHARDS}/{name}": written for of_rank in found for name, written in of_rank.items()}

        def close() -> str:
            if not _leads(ranks):
                return ""
            missing = [name for name in files if not (temporary / name).is_file()]
            if missing:
                raise OSError(
                    errno.ENOENT,
                    "shards of other machines are not here; run.dir= must lie on a shared disk",
                    missing[0],
                )
            sync_folder(folder)
            return str(close_attempt(temporary, step, {**write_whole(temporary, rest), **files}))

        return Path(_together(ranks, close)[0])
    except BaseException:
        if _leads(ranks):
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def save_gathered(checkpoints_dir: Path, step: int, checkpoint: Checkpoint, ranks: Ranks) -> Path:
    """Let rank 0 write a checkpoint that has been put together there; all ranks call it, and get the same answer.

    Raises:
        OSError: on all ranks, if it cannot be written.
    """
    return Path(
        _together(ranks, lambda: str(save_checkpoint(checkpoints_dir, step, checkpoint)) if _leads(ranks) else "")[0]
    )


def _leads(ranks: Ranks) -> bool:
    return ranks.rank == 0


def _together(ranks: Ranks, action: Callable[[], T]) -> list[T]:
    """Let every rank act; return all results, or raise on all ranks where one has failed."""
    result: T | None = None
    error: tuple[int, str, str] | None = None
    try:
        result = action()
    except OSError as e:
        error = (e.errno or errno.EIO, e.strerror or str(e), str(e.filename or ""))
    for rank, (_, failed) in enumerate(answers := ranks.gather((result, error))):
        if failed is not None:
            raise OSError(failed[0], f"rank {rank}: {failed[1]}", failed[2])
    return [answer for answer, _ in answers]


def _split(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Checkpoint]:
    """Take the shards out of a checkpoint; what all ranks hold whole stays in it."""
    moments, layout = flatten_optimizer(checkpoint.optimizer)
    groups = {"model": checkpoint.model, "optimizer": moments, "average": checkpoint.average}
    pieces: dict[str, Tensor] = {
        f"{g}/{k}": t for g, tensors in groups.items() for k, t in tensors.items() if isinstance(t, DTensor)
    }
    kept = {g: {k: t for k, t in tensors.items() if not isinstance(t, DTensor)} for g, tensors in groups.items()}
    assert not kept["model"], f"gathered weights were not let go: {next(iter(kept['model']))}"
    rest = Checkpoint(kept["model"], unflatten_optimizer(kept["optimizer"], layout), kept["average"], checkpoint.state)
    return pieces, rest


def _save_pieces(folder: Path, pieces: Mapping[str, Tensor], ranks: Ranks) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a future change of names
            save(
                dict(pieces),
                storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
                process_group=ranks.group,
            )
    except CheckpointException as e:
        rank, (cause, _) = next(iter(e.failures.items()))
        if not isinstance(cause, OSError | RuntimeError):
            raise
        number = getattr(cause, "errno", None) or errno.EIO
        raise OSError(number, f"rank {rank}: {getattr(cause, 'strerror', None) or cause}", str(folder)) from e


def _hash_own(folder: Path, rank: int) -> dict[str, Written]:
    """Hash what this rank has written, and give it the mode of any other file."""
    umask = os.umask(0)
    os.umask(umask)
    found = {}
    for path in sorted(folder.glob(f"shard-{rank + 1:05d}-*.safetensors")):
        path.chmod(0o666 & ~umask)
        found[path.name] = Written(path.stat().st_size, file_sha256(path))
    return found


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Put all shards together, in one process, as for an export."""
    sizes = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
        for name, entry in sizes.items()
    }
    _load_into(folder, tensors)
    return tensors


def read_own(
    folder: Path, parameters: Mapping[str, Tensor], ordered: Sequence[Tensor], layout: dict[str, Any]
) -> Checkpoint:
    """Read this rank's part of a sharded checkpoint, cut over any number of ranks.

    Args:
        folder: of the shards.
        parameters: those that learn, by name.
        ordered: the same in the order of the optimiser.
        layout: of the optimiser's state, with what all ranks hold whole.

    Raises:
        ValueError: if it belongs to another model.
    """
    sizes = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for name, entry in sizes.items():
        group, _, key = name.partition("/")
        like = ordered[int(key.partition(".")[0])] if group == "optimizer" else parameters.get(key)
        if like is None or like.shape != entry.size:  # type: ignore[union-attr]
            raise ValueError(f"the checkpoint belongs to another model or finetune= ({key}); take a new run.dir=")
        tensors[name] = torch.empty_like(like.detach())
    _load_into(folder, tensors)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
    for name, tensor in tensors.items():
        group, _, key = name.partition("/")
        groups[group][key] = tensor
    whole, numbers = flatten_optimizer(layout)
    optimizer = unflatten_optimizer({**whole, **groups["optimizer"]}, numbers)
    return Checkpoint(groups["model"], optimizer, groups["average"], {})


def _load_into(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors in place; each rank finds its pieces by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
