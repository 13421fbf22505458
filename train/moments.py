"""The state of an optimiser as named tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into named tensors and a JSON layout of all that is no tensor.

    An entry may be a group of entries of its own, as in bitsandbytes; the names are then joined by a slash.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in _leaves(entries):
            if isinstance(value, Tensor):
                # Below the first level lie tables that bitsandbytes shares; safetensors takes no tensor twice.
                tensors[f"{index}.{name}"] = value.clone() if "/" in name else value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def _leaves(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def unflatten_optimizer(tensors: Mapping[str, Tensor], layout: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what `flatten_optimizer` took apart."""
    entries: dict[int, dict[str, Any]] = {}

    def put(index: str, name: str, value: Any) -> None:
        group = entries.setdefault(int(index), {})
        *path, last = name.split("/")
        for part in path:
            group = group.setdefault(part, {})
        group[last] = value

    for index, values in layout["numbers"].items():
        for name, value in values.items():
            put(index, name, value)
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        put(index, name, tensor)
    return {"state": entries, "param_groups": layout["param_groups"]}
