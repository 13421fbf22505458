"""The states of the random generators, as JSON."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
