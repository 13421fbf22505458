"""From FP32 to FP16 once, or not at all: a weight that would become infinite, or too many that would become zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FP16_MAX = 65504.0  # largest finite FP16; a weight beyond it becomes infinite
MAX_FLUSHED_SHARE = 1e-5  # of the non-zero weights, that may become zero in FP16
NUM_FLUSHED_ALLOWED = 16  # in any case; of a small model one weight is more than the share
TIED_NAMES = ("proj_out.weight",)
"""Stored once, as the decoder's embedding; Whisper's output layer shares it."""


class RejectedError(RuntimeError):
    """The weights cannot be stored in FP16 without loss that matters."""


def cast_to_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast FP32 weights to FP16 once.

    Args:
        state: name to FP32 tensor, adapters merged; tied names may be present.

    Returns:
        Name to contiguous FP16 tensor on the CPU, tied names left out.

    Raises:
        RejectedError: if a weight is not finite, too large for FP16, or too many would become zero.
    """
    faults: list[str] = []
    half: dict[str, Tensor] = {}
    flushed: dict[str, int] = {}
    num_nonzero = 0
    for name, tensor in state.items():
        if name in TIED_NAMES:
            continue
        if not bool(torch.isfinite(tensor).all()):
            faults.append(f"{name} holds NaN or infinity")
        elif float(tensor.abs().max()) > FP16_MAX:
            faults.append(f"{name} reaches {float(tensor.abs().max()):.3g}, FP16 ends at {FP16_MAX:g}")
        cast = tensor.detach().to("cpu", torch.float16).contiguous()
        num_nonzero += int((tensor != 0).sum())
        flushed[name] = int(((tensor != 0).cpu() & (cast == 0)).sum())
        half[name] = cast
    num_flushed = sum(flushed.values())
    if num_flushed > max(NUM_FLUSHED_ALLOWED, MAX_FLUSHED_SHARE * num_nonzero):
        worst = max(flushed, key=lambda name: flushed[name])
        faults.append(
            f"{num_flushed} of {num_nonzero} non-zero weights would become zero, {flushed[worst]} of them in {worst}"
        )
    if faults:
        raise RejectedError("the weights do not fit FP16: " + "; ".join(faults))
    return half
