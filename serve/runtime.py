"""A model under the runtime that was asked for, ready to decode batches of windows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data.features import LogMel
from data.texts import LANGUAGES_WITHOUT_SPACES
from infer.artefact import Artefact, load_artefact
from infer.decoding import Decoder
from infer.transcriber import RuntimeArtefact, WindowDecoder, best_device

CTRANSLATE2_TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class Runtime:
    """A loaded model."""

    artefact: Artefact | RuntimeArtefact
    decoder: WindowDecoder
    log_mel: LogMel

    def prompt_ids(self, prompt: str, language: str) -> list[int]:
        """Return the tokens of a text that came before, as the labels of training have them."""
        space = "" if language in LANGUAGES_WITHOUT_SPACES else " "
        ids = self.artefact.tokenizer(f"{space}{prompt.strip()}", add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids]

    def features(self, waveforms: list[Any], num_frames: int) -> Tensor:
        """Return (B, M, F) log-mel features of windows, where and as the model wants them."""
        model = self.artefact.model
        return self.log_mel.batch(waveforms, num_frames=num_frames).to(model.device, model.dtype)


def load_runtime(
    path: Path, runtime: str, *, compute: str, cache_dir: Path, num_threads: int = 0, device: str | None = None
) -> Runtime:
    """Load an artefact.

    Args:
        path: of the artefact, in Hugging Face's format.
        runtime: one of `LOADERS`; the artefact is converted for the others once.
        compute: `auto`, `fp16`, `bf16` or `fp32`.
        cache_dir: where converted folders are kept.
        num_threads: on a CPU; 0 leaves it to the runtime.
        device: where it runs; None takes a GPU where there is one.

    Raises:
        ValueError: for a runtime that is not known.
        FileNotFoundError: if the artefact is not whole.
        RuntimeError: if the runtime is not installed, or cannot compute so.
    """
    if runtime not in LOADERS:
        raise ValueError(f"runtime={runtime} must be one of {', '.join(LOADERS)}")
    return LOADERS[runtime](path, compute, device or best_device().type, cache_dir, num_threads)


def _load_torch(path: Path, compute: str, device: str, cache_dir: Path, num_threads: int) -> Runtime:
    loaded = load_artefact(path, compute=compute, device=device)
    return _runtime(loaded, Decoder(loaded.model, loaded.tokenizer))


def _runtime(artefact: Artefact | RuntimeArtefact, decoder: WindowDecoder) -> Runtime:
    return Runtime(artefact, decoder, LogMel(artefact.model.config.num_mel_bins))


def _load_ctranslate2(path: Path, compute: str, device: str, cache_dir: Path, num_threads: int) -> Runtime:
    from infer.backends.ctranslate2 import CTranslate2Decoder, load_ctranslate2
    from infer.export.ctranslate2 import convert_to_ctranslate2

    chosen = ("fp16" if device == "cuda" else "fp32") if compute == "auto" else compute
    folder = cache_dir / f"ctranslate2-{_digest(path)}"
    if not (folder / "model.bin").is_file():
        convert_to_ctranslate2(path, folder)
    loaded = load_ctranslate2(
        folder, path, compute_type=CTRANSLATE2_TYPES[chosen], device=device, num_threads=num_threads
    )
    return _runtime(loaded, CTranslate2Decoder(loaded, artefact_dir=path))


def _load_onnx(path: Path, compute: str, device: str, cache_dir: Path, num_threads: int) -> Runtime:
    from infer.backends.onnx import OnnxDecoder, load_onnx
    from infer.export.onnx import convert_to_onnx

    chosen = ("fp16" if device == "cuda" else "fp32") if compute == "auto" else compute
    if chosen == "bf16":
        raise RuntimeError("runtime=onnx has no bf16; type precision=fp16 or precision=fp32")
    folder = cache_dir / f"onnx-{chosen}-{_digest(path)}"
    if not folder.is_dir():
        convert_to_onnx(path, folder, dtype=chosen)
    loaded = load_onnx(folder, path, provider="cuda" if device == "cuda" else "cpu", num_threads=num_threads)
    return _runtime(loaded, OnnxDecoder(loaded))


def _digest(path: Path) -> str:
    """Return a name for what is made of an artefact: its path and when its weights were written, as a digest."""
    weights = path / "model.safetensors"
    stamp = weights.stat().st_mtime_ns if weights.is_file() else 0
    return hashlib.sha256(f"{path.resolve()} {stamp}".encode()).hexdigest()[:16]


LOADERS: Mapping[str, Callable[[Path, str, str, Path, int], Runtime]] = {
    "torch": _load_torch,
    "ctranslate2": _load_ctranslate2,
    "onnx": _load_onnx,
}
"""By `runtime=`; each takes artefact, arithmetic, device, folder for what is converted, and threads."""
