"""What is stored, what computes, how the loss is scaled, and why: `precision=` resolved for a device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Mode = Literal["fp32", "tf32", "fp16", "bf16", "bf16_pure"]
MODES: tuple[Mode, ...] = ("fp32", "tf32", "fp16", "bf16", "bf16_pure")


@dataclass(frozen=True)
class PrecisionSettings:
    """The `precision` group."""

    name: str = "auto"
    """`auto`, `fp32`, `tf32`, `fp16`, `bf16` or `bf16_pure`."""
    fallback: bool = False
    """Take what the device can do, and say so, where it cannot do what was asked."""
    init_scale: float = 65536.0
    """First loss scale; FP16 only."""
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    """Updates without overflow before the scale grows."""

    def __post_init__(self) -> None:
        if self.name != "auto" and self.name not in MODES:
            raise ValueError(f"precision={self.name} must be one of auto, {', '.join(MODES)}")
        if (
            self.init_scale <= 0
            or self.growth_factor <= 1
            or not 0 < self.backoff_factor < 1
            or self.growth_interval < 1
        ):
            raise ValueError(
                "precision: init_scale must be above 0, growth_factor above 1, backoff_factor in 0 to 1, "
                "growth_interval 1 or more"
            )


@dataclass(frozen=True)
class Device:
    """What a device can do; made by `inspect_device`, or by a test."""

    kind: str
    """`cuda` or `cpu`."""
    name: str
    is_ampere: bool = False
    """CUDA compute capability 8.0 or more: BF16 and TF32 tensor cores."""
    is_volta: bool = False
    """CUDA compute capability 7.0 or more: FP16 tensor cores."""
    has_fast_bf16: bool = False
    """A CPU with AVX512-BF16 or AMX; without them BF16 works, slower than FP32."""


def inspect_device(device: torch.device) -> Device:
    """Return what the device can do."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return Device("cuda", torch.cuda.get_device_name(device), is_ampere=major >= 8, is_volta=major >= 7)
    fast = bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())
    return Device(device.type, device.type, has_fast_bf16=fast)


@dataclass(frozen=True)
class Precision:
    """A resolved precision."""

    mode: Mode
    param_dtype: torch.dtype
    """What the trainable weights are stored in."""
    compute_dtype: torch.dtype
    """What matmuls and convolutions multiply in."""
    accelerate: Literal["no", "fp16", "bf16"]
    """Accelerate's name for the autocast."""
    reason: str

    @property
    def uses_scaler(self) -> bool:
        """True if the loss is scaled."""
        return self.mode == "fp16"

    def describe(self, init_scale: float) -> str:
        """Say in one line what is stored, what computes, the loss scale, and why."""
        computes = {"tf32": "TF32", "fp32": "strict FP32"}.get(self.mode, _short(self.compute_dtype))
        scale = f"dynamic from {init_scale:g}" if self.uses_scaler else "none"
        return (
            f"precision={self.mode}: weights stored in {_short(self.param_dtype)}, "
            f"matmuls in {computes}, loss scale {scale}; {self.reason}"
        )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}[dtype]


def resolve_precision(settings: PrecisionSettings, device: Device) -> Precision:
    """Choose or check the precision for a device.

    Raises:
        RuntimeError: if the device cannot do what was asked, naming the option that works.
    """
    if settings.name == "auto":
        mode, reason = _choose(device)
        return _build(mode, reason)
    mode = next(mode for mode in MODES if mode == settings.name)
    obstacle = _obstacle(mode, device)
    if obstacle is None:
        return _build(mode, "asked for")
    works, why = _choose(device)
    if settings.fallback:
        return _build(works, f"instead of {mode}, which {obstacle}; {why}")
    raise RuntimeError(f"precision={mode} {obstacle}; use precision={works}, or precision.fallback=true")


def _choose(device: Device) -> tuple[Mode, str]:
    if device.kind == "cuda":
        if device.is_ampere:
            return "bf16", f"{device.name} has BF16 tensor cores, and BF16 needs no loss scale"
        if device.is_volta:
            return "fp16", f"{device.name} has FP16 tensor cores, but no BF16"
        return "fp32", f"{device.name} has no half-precision tensor cores"
    if device.has_fast_bf16:
        return "bf16", "this CPU has BF16 instructions"
    return "fp32", "this CPU has no half-precision instructions, so FP32 is fastest"


def _obstacle(mode: Mode, device: Device) -> str | None:
    if mode == "tf32" and not device.is_ampere:
        return f"needs an Ampere or newer GPU, found {device.name}"
    if device.kind == "cuda" and mode in ("bf16", "bf16_pure") and not device.is_ampere:
        return f"needs an Ampere or newer GPU, found {device.name}"
    if device.kind == "cuda" and mode == "fp16" and not device.is_volta:
        return f"needs a Volta or newer GPU, found {device.name}"
    return None


def _build(mode: Mode, reason: str) -> Precision:
    half = {"fp16": torch.float16, "bf16": torch.bfloat16, "bf16_pure": torch.bfloat16}
    stored = torch.bfloat16 if mode == "bf16_pure" else torch.float32
    autocast: Literal["no", "fp16", "bf16"] = "fp16" if mode == "fp16" else "bf16" if mode == "bf16" else "no"
    return Precision(mode, stored, half.get(mode, torch.float32), autocast, reason)


def apply_matmul_precision(precision: Precision) -> None:
    """Set what FP32 matmuls and convolutions may do on CUDA.

    cuDNN convolutions use TF32 unless told otherwise, so an "FP32" run is not one by itself. In the AMP modes what
    stays in FP32 may use TF32, which is more exact than the half-precision work around it.
    """
    allow_tf32 = precision.mode != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    if not allow_tf32:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def verify_trainable_dtype(named_parameters: Iterable[tuple[str, nn.Parameter]], dtype: torch.dtype) -> None:
    """Stop where a trainable parameter is not stored as promised.

    transformers 5 loads large-v3 as FP16 unless told otherwise, and a fused optimiser trains FP16 weights in silence.

    Raises:
        RuntimeError: with the names of the offending parameters.
    """
    wrong = [f"{name} ({_name(p.dtype)})" for name, p in named_parameters if p.requires_grad and p.dtype != dtype]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise RuntimeError(
            f"{len(wrong)} trainable parameters are not stored in {_name(dtype)}: {shown}; "
            f"load the model with dtype=torch.{_name(dtype)}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
