"""The weights of a folder: one safetensors file, or several with an index where one would be too large."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


def save_weights(
    folder: Path, state: Mapping[str, Tensor], *, left_out: Sequence[str] = (), max_shard_gib: float | None = None
) -> None:
    """Write weights into a folder, in several files where they are larger than asked.

    Shards are written one after another, so a state that makes its tensors when asked needs memory for one shard.

    Args:
        folder: is there.
        state: name to tensor; the order is kept.
        left_out: names that are not stored, since others share their tensors.
        max_shard_gib: of one file; None writes one file in any case.

    Raises:
        ValueError: if the limit is not above 0.
    """
    if max_shard_gib is not None and max_shard_gib <= 0:
        raise ValueError(f"max_shard_gib={max_shard_gib} must be above 0, such as 4.5, or null for one file")
    sizes = {name: _num_bytes(tensor) for name, tensor in state.items() if name not in left_out}
    limit = sum(sizes.values()) if max_shard_gib is None else max_shard_gib * 2**30
    shards = _plan_shards(sizes, limit)
    if len(shards) == 1:
        save_file({name: state[name] for name in shards[0]}, str(folder / WEIGHTS_NAME), metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: state[name] for name in names}, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _plan_shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Fill one shard after another; a tensor above the limit gets one of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights, in order; an empty list where there are none."""
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if not (folder / INDEX_NAME).is_file():
        return []
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def weights_sha256(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """Return one hash of the weights: that of the file, or of the hashes of all shards in order.

    Args:
        folder: with the weights.
        known: name to hash of files that were hashed already, as in `mezzavoce.json`.
    """
    hashes = [(known or {}).get(file.name) or file_sha256(file) for file in weight_files(folder)]
    if len(hashes) < 2:
        return "".join(hashes)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_dtype(folder: Path) -> str:
    """Return what the weights are stored in, such as `float16`; several are joined by a plus sign."""
    dtypes: set[str] = set()
    for file in weight_files(folder):
        with safe_open(str(file), framework="pt") as opened:
            dtypes |= {str(opened.get_slice(name).get_dtype()) for name in list(opened.keys())}
    names = {"F16": "float16", "F32": "float32", "BF16": "bfloat16"}
    return "+".join(sorted(names.get(dtype, dtype) for dtype in dtypes)) or "unknown"


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a folder by name, read from the disk each time that one is asked for."""

    def __init__(self, folder: Path) -> None:
        """Open the files.

        Raises:
            FileNotFoundError: if the folder has no safetensors.
        """
        files = weight_files(folder)
        if not files:
            raise FileNotFoundError(f"{folder} has no {WEIGHTS_NAME}; pickled weights (.bin, .pt) are never loaded")
        self._opened: dict[str, Any] = {}
        for file in files:
            opened = safe_open(str(file), framework="pt")
            self._opened |= dict.fromkeys(list(opened.keys()), opened)

    def __len__(self) -> int:
        return len(self._opened)

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._opened[name].get_tensor(name)
        return tensor
