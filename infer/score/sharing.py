"""A held-out set shared among processes: each takes its part, and all end with the whole, in order.

Nothing here knows how processes talk to each other: who launches them gives a function that does. Under Accelerate:

    Share(state.process_index, state.num_processes, gather=lambda item: gather_object([item]))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def _alone(item: Any) -> list[Any]:
    return [item]


@dataclass(frozen=True)
class Share:
    """Which part of a set this process takes."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = _alone
    """Takes an item of every process and returns all of them, by rank, in every process; all must call it."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} must lie in 0 to {self.world_size - 1}")

    def part(self, sizes: Sequence[float]) -> list[int]:
        """Return the indices of this process: by size, there and back, so that all have about as much to do.

        Args:
            sizes: of every item, such as seconds; the same in all processes.
        """
        order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
        turns = [order[i : i + self.world_size] for i in range(0, len(order), self.world_size)]
        places = [self.rank if i % 2 == 0 else self.world_size - 1 - self.rank for i in range(len(turns))]
        return sorted(turn[place] for turn, place in zip(turns, places, strict=True) if place < len(turn))

    def whole(self, part: Mapping[int, T], num_items: int) -> list[T]:
        """Return every item, in order, in all processes.

        Args:
            part: items of this process by index.
            num_items: of the set.

        Raises:
            RuntimeError: if an item is missing or was done twice; a missing item must never improve a score.
        """
        found: dict[int, T] = {}
        for items in self.gather(dict(part)):
            twice = found.keys() & items.keys()
            if twice:
                raise RuntimeError(f"item {min(twice)} was done by two processes; they were not given the same set")
            found |= items
        missing = sorted(set(range(num_items)) - found.keys())
        if missing or len(found) != num_items:
            raise RuntimeError(
                f"{len(found)} of {num_items} items came together, the first missing is {missing[:1]}; "
                "all processes must be given the same set"
            )
        return [found[i] for i in range(num_items)]


def torch_share() -> Share:
    """Return the share of this process in torch's default process group; all of the set where there is none."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return Share()

    def gather(item: Any) -> list[Any]:
        items: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(items, item)
        return items

    return Share(distributed.get_rank(), distributed.get_world_size(), gather)
