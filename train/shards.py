"""Tensors that are cut over ranks (DTensor): all of one, and this rank's part of a whole one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; of a shard by asking the other ranks, which must ask for the same one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def looking(module: nn.Module) -> Iterator[None]:
    """Allow forwards without gradients; what they gathered is let go, as no backward comes that would do it."""
    with torch.no_grad():
        yield
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def cut_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, where the other is a shard of the same shape; without any exchange."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor) or tensor.shape != other.shape:
        return tensor
    mesh = other.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, other.placements, src_data_rank=None)


def cut_moments(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Cut the state of an optimiser as its parameters are cut; counters, which all ranks have, stay whole."""
    entries = {
        index: {
            name: cut_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": entries}
