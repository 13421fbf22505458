"""The physical floor: how fast a device could be at best, from operations and bytes over its measured rates.

Symbols: `F` mel frames, `S` encoder positions, `M` mel bins, `D` width, `V` vocabulary. One multiply-add is two
operations. Only what no program can leave out is counted: matmuls and convolutions once, weights read once a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import WhisperConfig

ITEM_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MIN_SECONDS = 0.2  # of a measurement
MATMUL_SIZES = {"cpu": 1024, "cuda": 8192}
COPY_BLOCK = {"cpu": 256 * 2**20, "cuda": 2**30}  # bytes; larger than any cache


@dataclass(frozen=True)
class Work:
    """Operations and bytes to transcribe one window with one beam."""

    encoder_flops: float
    encoder_bytes: float
    """Its weights, read once."""
    prefix_flops: float
    """Keys and values of the speech for every decoder layer, and the prefix but its last token."""
    step_flops: float
    """Of a decoder step, on average."""
    step_bytes: float
    """Decoder weights with the output layer, and keys and values of the speech."""
    num_steps: int
    """Tokens of text, and the one that ends it."""


def count_work(config: WhisperConfig, *, num_frames: int, num_prefix: int, num_tokens: int, item_bytes: int) -> Work:
    """Count what one window costs.

    Args:
        config: sizes of the model.
        num_frames: mel frames of the window.
        num_prefix: tokens before the text: start, language, task.
        num_tokens: tokens of the text.
        item_bytes: of one weight.
    """
    width, ffn = config.d_model, config.encoder_ffn_dim
    positions = num_frames // 2
    convolutions = 2 * num_frames * 3 * config.num_mel_bins * width + 2 * positions * 3 * width * width
    layer = 2 * positions * (4 * width * width + 2 * width * ffn) + 4 * positions * positions * width
    encoder_weights = 3 * width * (config.num_mel_bins + width) + config.encoder_layers * (
        4 * width * width + 2 * width * ffn
    )
    decoder_layer = 4 * width * width + 2 * width * width + 2 * width * config.decoder_ffn_dim  # + cross keys, values
    cross = 2 * width * width
    num_steps = num_tokens + 1
    last_length = num_prefix + num_tokens  # positions that the last step attends to
    mean_length = (num_prefix + last_length) / 2
    attention = 4 * width * (mean_length + positions)
    step = config.decoder_layers * (2 * decoder_layer + attention)
    prefix_rows = num_prefix - 1
    prefix_attention = 4 * width * (prefix_rows / 2 + positions)
    prefix = config.decoder_layers * (2 * positions * cross + prefix_rows * (2 * decoder_layer + prefix_attention))
    weights = config.decoder_layers * decoder_layer + width * config.vocab_size
    speech = config.decoder_layers * 2 * positions * width
    return Work(
        encoder_flops=convolutions + config.encoder_layers * layer,
        encoder_bytes=encoder_weights * item_bytes,
        prefix_flops=prefix,
        step_flops=step + 2 * width * config.vocab_size,
        step_bytes=(weights + speech) * item_bytes,
        num_steps=num_steps,
    )


@dataclass(frozen=True)
class Rates:
    """What a device does at best."""

    flops_per_s: float
    """Of a large square matmul."""
    bytes_per_s: float
    """Read and written by a copy of a block that no cache holds."""
    cached_bytes_per_s: float
    """The same for a block of the size of the decoder; a small model stays in the cache."""


def floor_s(work: Work, rates: Rates) -> float:
    """Return the least seconds for one window: each stage takes what its operations or its bytes take, if not more."""
    encoder = max(work.encoder_flops / rates.flops_per_s, work.encoder_bytes / rates.cached_bytes_per_s)
    step = max(work.step_flops / rates.flops_per_s, work.step_bytes / rates.cached_bytes_per_s)
    return encoder + work.prefix_flops / rates.flops_per_s + work.num_steps * step


def measure_rates(
    dtype: str, device: torch.device, *, decoder_bytes: float, shapes: Sequence[tuple[int, int, int]] = ()
) -> Rates:
    """Measure matmul and copy, best of several.

    Args:
        dtype: of the matmul: `fp32`, `tf32`, `fp16`, `bf16` or `int8`; the flag for TF32 must be set already.
        device: what is measured.
        decoder_bytes: size of the small block.
        shapes: rows, inner and outer sizes of further matmuls, such as the model's own; the fastest of all counts. A
            CPU without half-precision instructions is many times slower at large ones.

    Raises:
        RuntimeError: if the device has no such matmul.
    """
    size = MATMUL_SIZES.get(device.type, 1024)
    best = max(_matmul_rate(dtype, device, shape) for shape in ((size, size, size), *shapes))
    whole = COPY_BLOCK.get(device.type, 2**28)
    return Rates(
        flops_per_s=best,
        bytes_per_s=_copy_rate(whole, device),
        cached_bytes_per_s=_copy_rate(min(whole, max(2**16, int(decoder_bytes))), device),
    )


def _matmul_rate(dtype: str, device: torch.device, shape: tuple[int, int, int]) -> float:
    """Operations a second of one product, the second factor transposed as in a linear layer."""
    rows, inner, outer = shape
    if dtype == "int8":
        a, b = (torch.randint(-100, 100, (n, inner), dtype=torch.int8, device=device) for n in (rows, outer))
        seconds = _best(lambda: torch._int_mm(a, b.t()), device)
    else:
        x, y = (torch.randn(n, inner, device=device).to(DTYPES[dtype]) for n in (rows, outer))
        seconds = _best(lambda: x @ y.t(), device)
    return 2 * rows * inner * outer / seconds


def _copy_rate(num_bytes: int, device: torch.device) -> float:
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _best(lambda: target.copy_(source), device)


def _best(action: Callable[[], Any], device: torch.device) -> float:
    """Shortest time of an action in seconds, after one call to warm up."""
    action()
    best, spent, count = float("inf"), 0.0, 0
    while spent < MIN_SECONDS or count < 3:
        _synchronise(device)
        start = time.perf_counter()
        action()
        _synchronise(device)
        seconds = time.perf_counter() - start
        best, spent, count = min(best, seconds), spent + seconds, count + 1
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_floor(work: Work, rates: Rates) -> dict[str, float]:
    """Return what the floor was counted from, for the report."""
    return {**asdict(work), **asdict(rates), "floor_s": floor_s(work, rates)}
