"""The arithmetics that an artefact can be run in, and what keeps a device from one."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch


@dataclass(frozen=True)
class Arithmetic:
    """One row of the comparison."""

    name: str
    title: str
    runtime: str = "torch"
    """`torch` or `ctranslate2`."""
    dtype: str = "fp32"
    """Of matmuls in torch, as `infer.compute` has it; of the rates that the floor is counted with, in any case."""


ARITHMETICS = {
    row.name: row
    for row in (
        Arithmetic("fp32", "FP32"),
        Arithmetic("tf32", "TF32"),
        Arithmetic("fp16", "FP16", dtype="fp16"),
        Arithmetic("bf16", "BF16", dtype="bf16"),
        Arithmetic("ctranslate2", "CTranslate2", runtime="ctranslate2"),
        Arithmetic("ctranslate2_int8", "CTranslate2 int8", runtime="ctranslate2", dtype="int8"),
    )
}
REFERENCE = "fp32"
"""What all others are compared with."""
SHIPPED = "fp16"


@dataclass(frozen=True)
class DeviceFacts:
    """What decides which arithmetics a device has."""

    kind: str
    name: str
    capability: tuple[int, int] = (0, 0)
    """Of CUDA."""


def inspect_device(device: torch.device) -> DeviceFacts:
    """Look at a device."""
    if device.type != "cuda":
        return DeviceFacts(device.type, _cpu_name() if device.type == "cpu" else device.type)
    return DeviceFacts("cuda", torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def find_obstacle(arithmetic: Arithmetic, device: DeviceFacts) -> str | None:
    """Return why a device cannot compute so, or None if it can."""
    is_cuda = device.kind == "cuda"
    if arithmetic.runtime == "ctranslate2":
        if find_spec("ctranslate2") is None:
            return 'CTranslate2 is not installed; type pip install "mezzavoce[runtimes]"'
        if device.kind not in ("cpu", "cuda"):
            return f"CTranslate2 runs on a CPU or on CUDA, found {device.name}"
        return None
    if arithmetic.name == "tf32" and device.capability < (8, 0):
        return f"TF32 is an arithmetic of NVIDIA cards from Ampere on; found {device.name}"
    if is_cuda and arithmetic.name == "bf16" and device.capability < (8, 0):
        return f"BF16 needs an NVIDIA card from Ampere on; found {device.name}"
    if is_cuda and arithmetic.name == "fp16" and device.capability < (5, 3):
        return f"FP16 needs a newer card; found {device.name}"
    return None


def compute_type(arithmetic: Arithmetic, device: DeviceFacts) -> str:
    """Return CTranslate2's name of what computes: FP16 on CUDA, FP32 on a CPU, which has no fast FP16."""
    base = "float16" if device.kind == "cuda" else "float32"
    return f"int8_{base}" if arithmetic.dtype == "int8" else base


def describe_arithmetic(arithmetic: Arithmetic, device: DeviceFacts) -> str:
    """Say in a few words what is stored and what computes."""
    if arithmetic.runtime == "ctranslate2":
        return f"CTranslate2, {compute_type(arithmetic, device)} over the FP16 weights"
    return {
        "fp32": "torch, strict FP32",
        "tf32": "torch, FP32 with TF32 matmuls and convolutions",
        "fp16": "torch, FP16 throughout",
        "bf16": "torch, BF16 throughout",
    }[arithmetic.name]


def choose_arithmetics(names: tuple[str, ...]) -> list[Arithmetic]:
    """Return the rows in the order of the table, the reference always among them.

    Raises:
        ValueError: for a name that is not known.
    """
    for name in names:
        if name not in ARITHMETICS:
            raise ValueError(f"rows={name} must be of {', '.join(ARITHMETICS)}")
    return [row for row in ARITHMETICS.values() if row.name in (*names, REFERENCE)]


def apply_arithmetic(arithmetic: Arithmetic) -> None:
    """Set what FP32 matmuls and convolutions may do on CUDA; cuDNN's convolutions use TF32 unless told otherwise."""
    allow_tf32 = arithmetic.name == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
