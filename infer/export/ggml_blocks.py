"""Weights in blocks of 32, as ggml stores them: `q8_0` and `q5_0`, rounded as its reference does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 32


def q8_0_blocks(values: NDArray[np.float32]) -> bytes:
    """Return blocks of one FP16 scale and 32 signed bytes: 34 bytes for 32 weights.

    Args:
        values: (rows, columns) float32, columns a multiple of 32.

    Source: ggml `ggml-quants.c`, `quantize_row_q8_0_ref`.
    """
    blocks = values.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    scaled = blocks * _inverse(scale)[:, None]
    # C's roundf takes halves away from zero, numpy's round to the even neighbour.
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    packed = np.empty(len(blocks), dtype=[("scale", "<f2"), ("weights", "i1", (BLOCK,))])
    packed["scale"] = scale
    packed["weights"] = rounded
    return packed.tobytes()


def q5_0_blocks(values: NDArray[np.float32]) -> bytes:
    """Return blocks of one FP16 scale, 32 fifth bits and 32 times four bits: 22 bytes for 32 weights.

    Args:
        values: (rows, columns) float32, columns a multiple of 32.

    Source: ggml `ggml-quants.c`, `quantize_row_q5_0_ref`.
    """
    blocks = values.reshape(-1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = largest / np.float32(-16)
    codes = np.minimum((blocks * _inverse(scale)[:, None] + np.float32(16.5)).astype(np.int8), 31).astype(np.uint8)
    low, high = codes[:, : BLOCK // 2], codes[:, BLOCK // 2 :]
    packed = np.empty(len(blocks), dtype=[("scale", "<f2"), ("fifth", "u1", (4,)), ("weights", "u1", (BLOCK // 2,))])
    packed["scale"] = scale
    packed["fifth"] = np.packbits(codes >> 4, axis=1, bitorder="little")
    packed["weights"] = (low & 0x0F) | ((high & 0x0F) << 4)
    return packed.tobytes()


def _inverse(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / scale, and 0 for 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
