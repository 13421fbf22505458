"""What the processes of one run agree on: stops, bad clips, and that their weights are the same.

Overflows are agreed on in `train.step`. With one process every answer is its own, at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.signals import PeerError

PATIENCE = timedelta(hours=6)  # of an agreement; a rank that is lost is found by the heartbeat
CHUNK = 1 << 22  # weights hashed at once: 32 MiB of int64


class Ranks:
    """Questions that all ranks must ask together; asked on the host, so that no device is waited for."""

    def __init__(self) -> None:
        self.rank = dist.get_rank() if _has_peers() else 0
        self.world_size = dist.get_world_size() if _has_peers() else 1
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world_size > 1 else None

    def largest(self, value: int) -> int:
        """Return the largest value of all ranks."""
        if self.group is None:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return int(tensor)

    def wait(self) -> None:
        """Wait for all ranks, as long as loading and exporting may take."""
        self.largest(0)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def join(self, items: Sequence[Any]) -> list[Any]:
        """Return the items of all ranks; costs one number where there are none."""
        if not self.largest(len(items)):
            return []
        return [item for values in self.gather(list(items)) for item in values]

    def verify_same_weights(self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, step: int) -> None:
        """Compare the weights of all ranks by their hashes; a shard is held once, so there is nothing to compare.

        Raises:
            PeerError: if they differ; names the ranks and the first parameter.
        """
        if self.group is None:
            return
        held = [(name, p) for name, p in named_parameters if not isinstance(p, DTensor)]
        if not held:
            return
        names, tensors = zip(*held, strict=True)
        found = self.gather(weight_hashes(tensors))
        if all(hashes == found[0] for hashes in found):
            return
        first = next(i for i in range(len(names)) if len({hashes[i] for hashes in found}) > 1)
        values = [hashes[first] for hashes in found]
        usual = max(set(values), key=values.count)
        odd = [rank for rank, value in enumerate(values) if value != usual]
        who = f"rank {', '.join(map(str, odd))} differs" if values.count(usual) > 1 else "all ranks differ"
        raise PeerError(
            f"step {step}: the ranks hold other weights, first in {names[first]} ({who}); what they learn from here on "
            "is not one model. The same command goes on from the last checkpoint; if it comes again, look at that "
            "machine's memory and card"
        )


def weight_hashes(tensors: Iterable[Tensor]) -> list[int]:
    """Return a 64-bit hash of each tensor's bits, computed where it lies; waits for the device once.

    Each 32-bit word is mixed with its place, and the mixtures are added modulo 2^64, so that the order in which a
    device adds them is of no account. Without the mixing, words that change places could leave the sum as it was.
    """
    sums = [_hash(tensor.detach()) for tensor in tensors]
    return torch.stack([total.cpu() for total in sums]).tolist() if sums else []


def _hash(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().reshape(-1)
    words = flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, words.numel(), CHUNK):
        part = words[start : start + CHUNK].to(torch.int64)
        places = torch.arange(start, start + len(part), device=tensor.device)
        total += _mix(part ^ _mix(places)).sum()
    return total


def _mix(words: Tensor) -> Tensor:
    """Spread each bit over all 64, as splitmix64 does: one to one, so that any changed word changes its mixture."""
    words = words * -0x61C8864680B583EB
    words = (words ^ _shift(words, 30)) * -0x40A7B892E31B1A47
    return (words ^ _shift(words, 27)) * -0x6B2FB644ECCEEE15


def _shift(words: Tensor, count: int) -> Tensor:
    return (words >> count) & ((1 << (64 - count)) - 1)  # torch's own shift carries the sign along


def is_exchange_failure(error: RuntimeError) -> bool:
    """Say whether an error comes from an exchange between processes, as when one of them has died."""
    words = ("gloo", "nccl", "connection", "broken pipe", "process group", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _has_peers() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
