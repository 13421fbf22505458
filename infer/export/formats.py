"""The formats that an artefact is exported in: who builds each, with which options, and what must be installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infer.export.ctranslate2 import QUANTIZATIONS
from infer.export.hf import DTYPES, MAX_SHARD_GIB

INSTALL = 'pip install "mezzavoce[runtimes]"'
HALVES = ("fp16", "fp32")
GGML_TYPES = ("f16", "q8_0", "q5_0")


def _verify_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"options.{key}={value} must be one of {', '.join(allowed)}")


@dataclass(frozen=True)
class HfOptions:
    """Hugging Face's own format."""

    dtype: str = "fp16"
    max_shard_gib: float | None = MAX_SHARD_GIB
    """Of one file of weights; null never cuts."""

    def __post_init__(self) -> None:
        _verify_choice("hf.dtype", self.dtype, tuple(DTYPES))
        if self.max_shard_gib is not None and self.max_shard_gib <= 0:
            raise ValueError(f"options.hf.max_shard_gib={self.max_shard_gib} must be above 0, or null for one file")

    @property
    def stored(self) -> str:
        """What the name of the result says."""
        return self.dtype


@dataclass(frozen=True)
class CTranslate2Options:
    """The format of faster-whisper."""

    quantization: str = "float16"

    def __post_init__(self) -> None:
        _verify_choice("ctranslate2.quantization", self.quantization, QUANTIZATIONS)

    @property
    def stored(self) -> str:
        """What the name of the result says."""
        return self.quantization


@dataclass(frozen=True)
class OnnxOptions:
    """The format of ONNX Runtime."""

    dtype: str = "fp32"
    int8: bool = False
    """Quantise the weights of the matmuls, too; from FP32."""

    def __post_init__(self) -> None:
        _verify_choice("onnx.dtype", self.dtype, HALVES)
        if self.int8 and self.dtype != "fp32":
            raise ValueError(f"options.onnx.int8=true needs options.onnx.dtype=fp32, found {self.dtype}")

    @property
    def stored(self) -> str:
        """What the name of the result says."""
        return "int8" if self.int8 else self.dtype


@dataclass(frozen=True)
class OpenAIOptions:
    """The checkpoint of openai-whisper."""

    dtype: str = "fp16"

    def __post_init__(self) -> None:
        _verify_choice("openai.dtype", self.dtype, HALVES)

    @property
    def stored(self) -> str:
        """What the name of the result says."""
        return self.dtype


@dataclass(frozen=True)
class GgmlOptions:
    """The file of whisper.cpp."""

    stored: str = "f16"

    def __post_init__(self) -> None:
        _verify_choice("ggml.stored", self.stored, GGML_TYPES)


@dataclass(frozen=True)
class AdapterOptions:
    """The adapters of a LoRA run."""

    merged: bool = True
    """Write the merged artefact beside them, in `merged/`."""

    @property
    def stored(self) -> str:
        """Adapters are stored as they were trained."""
        return ""


@dataclass(frozen=True)
class FormatOptions:
    """The `options` group: one group a format."""

    hf: HfOptions = field(default_factory=HfOptions)
    ctranslate2: CTranslate2Options = field(default_factory=CTranslate2Options)
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    openai: OpenAIOptions = field(default_factory=OpenAIOptions)
    ggml: GgmlOptions = field(default_factory=GgmlOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)


@dataclass(frozen=True)
class Format:
    """One format."""

    name: str
    title: str
    """The program that takes it."""
    module: str | None
    """Ours, with the function `convert_to_NAME`; None where an artefact is not enough to build it."""
    packages: tuple[str, ...]
    """What must be importable to build it."""
    suffix: str = ""
    """Of the result where it is a file."""
    arguments: tuple[str, ...] = ()
    """Names of the options that the builder takes."""


FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        Format("hf", "transformers", "infer.export.hf", (), arguments=("dtype", "max_shard_gib")),
        Format(
            "ctranslate2",
            "faster-whisper, CTranslate2",
            "infer.export.ctranslate2",
            ("ctranslate2",),
            arguments=("quantization",),
        ),
        Format(
            "onnx", "ONNX Runtime", "infer.export.onnx", ("onnx", "onnxscript", "onnxruntime"), "", ("dtype", "int8")
        ),
        Format("openai", "openai-whisper", "infer.export.openai", (), ".pt", ("dtype",)),
        Format("ggml", "whisper.cpp", "infer.export.ggml", (), ".bin", ("stored",)),
        Format("adapter", "PEFT", None, ("peft",)),
    )
}


def verify_formats(names: tuple[str, ...]) -> None:
    """Stop where a name is not known or stands twice, or there is none.

    Raises:
        ValueError: with what is allowed.
    """
    if not names or len(set(names)) != len(names) or not set(names) <= FORMATS.keys():
        raise ValueError(f"formats={list(names)} must name some of {', '.join(FORMATS)}, each once")


def verify_installed(names: tuple[str, ...]) -> None:
    """Stop before anything is built where a package is missing.

    Raises:
        RuntimeError: with what to type.
    """
    for name in names:
        missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
        if missing:
            raise RuntimeError(f"formats={name} needs {', '.join(missing)}; type {INSTALL}")


def name_result(name: str, options: FormatOptions) -> str:
    """Return what the folder or file of a format is called, such as `ctranslate2-int8` or `ggml-q8_0.bin`."""
    stored = getattr(options, name).stored
    return f"{name}-{stored}{FORMATS[name].suffix}" if stored else f"{name}{FORMATS[name].suffix}"


def build_format(name: str, artefact_dir: Path, target: Path, options: FormatOptions) -> Path:
    """Build one format of an artefact, atomically.

    Args:
        name: in `FORMATS`, one that an artefact is enough for.
        artefact_dir: the artefact.
        target: the folder or the file.
        options: of all formats.

    Returns:
        What was written.
    """
    entry = FORMATS[name]
    assert entry.module is not None
    builder: Callable[..., Path] = getattr(importlib.import_module(entry.module), f"convert_to_{name}")
    chosen: dict[str, Any] = {key: getattr(getattr(options, name), key) for key in entry.arguments}
    return builder(artefact_dir, target, **chosen)


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
