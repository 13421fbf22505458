"""From an artefact to a folder for CTranslate2, the runtime under faster-whisper."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from infer.artefact import RECORD_NAME, refuse_remote_code, replace_folder
from infer.listening import later_half
from infer.weights import file_sha256, weights_sha256

QUANTIZATIONS = ("float16", "float32", "int8", "int8_float16", "int8_float32")
"""What the weights are stored in; CTranslate2 casts them once more, when they are loaded, to what computes."""
COPIED_FILES = ("tokenizer.json", "preprocessor_config.json")
"""Without these faster-whisper takes another model's tokenizer and 80 mel bins."""
MULTILINGUAL_MARK = ""
"""The token by which CTranslate2, and so faster-whisper, knows a multilingual model: OpenAI's vocabularies of all
languages hold the empty text as a token, the English-only ones do not."""
NEVER_SAID = -1e4
"""Bias on a logit that makes its probability 0 in every arithmetic."""
INSTALL = 'pip install "mezzavoce[runtimes]"'


def import_ctranslate2() -> ModuleType:
    """Return the package.

    Raises:
        RuntimeError: if it is not installed, with what to type.
    """
    try:
        import ctranslate2
    except ImportError as e:
        raise RuntimeError(f"CTranslate2 is not installed ({e}); type {INSTALL}") from e
    module: ModuleType = ctranslate2
    return module


def convert_to_ctranslate2(artefact_dir: Path, target: Path, *, quantization: str = "float16") -> Path:
    """Convert a Whisper folder, and return the folder of the result.

    The weights are read as they are stored, and cast once as asked: FP16 weights come out bit for bit as they went in.
    Windows need nothing: CTranslate2's encoder takes any length up to 30 s, and the record carries the edges.

    A folder that names no alignment heads gets all heads of the decoder's later half, from which ours reads times too.

    A vocabulary that was learnt gets one token more, the empty text, which is never said: without it faster-whisper
    takes the model for an English-only one, detects no language and names no task. OpenAI's vocabularies have it.

    Args:
        artefact_dir: ours, or any in Hugging Face's format with safetensors.
        target: the folder; one that is there is replaced when the new one is whole.
        quantization: one of `QUANTIZATIONS`.

    Raises:
        ValueError: for another quantization.
        FileNotFoundError: if a file that runtimes need is missing.
        RuntimeError: if CTranslate2 is not installed, or the folder cannot be written.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization={quantization} must be one of {', '.join(QUANTIZATIONS)}")
    for name in ("config.json", "generation_config.json", *COPIED_FILES):
        if not (artefact_dir / name).is_file():
            raise FileNotFoundError(f"{artefact_dir} has no {name}; CTranslate2 and faster-whisper need it")
    refuse_remote_code(artefact_dir)
    import_ctranslate2()
    temporary = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _convert(artefact_dir, temporary, quantization)
        _write_record(temporary, artefact_dir, quantization)
        replace_folder(temporary, target)
    except OSError as e:
        raise RuntimeError(f"cannot write {target}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _convert(artefact_dir: Path, temporary: Path, quantization: str) -> None:
    from ctranslate2.converters import TransformersConverter

    generation = json.loads((artefact_dir / "generation_config.json").read_text(encoding="utf-8"))
    config = json.loads((artefact_dir / "config.json").read_text(encoding="utf-8"))

    class Converter(TransformersConverter):
        def _load(self) -> Any:
            spec = super()._load()
            if not spec.config.alignment_heads:
                spec.config.alignment_heads = later_half(config["decoder_layers"], config["decoder_attention_heads"])
            if generation.get("is_multilingual", True):
                _mark_multilingual(spec)
            return spec

    converter = Converter(str(artefact_dir), copy_files=list(COPIED_FILES))
    converter.convert(str(temporary), quantization=quantization)


def _mark_multilingual(spec: Any) -> None:
    """Add the mark at the end of the vocabulary, in place: a row of zeros, and a bias that keeps it from being said."""
    tokens, decoder = spec._vocabulary, spec.decoder
    if MULTILINGUAL_MARK in tokens:
        return
    weight: Tensor = decoder.embeddings.weight.detach()
    longer = torch.cat([weight, weight.new_zeros(1, weight.shape[1])])
    bias = weight.new_zeros(len(longer))
    bias[-1] = NEVER_SAID
    decoder.embeddings.weight, decoder.projection.weight, decoder.projection.bias = longer, longer, bias
    spec.register_vocabulary([*tokens, MULTILINGUAL_MARK])


def _write_record(folder: Path, artefact_dir: Path, quantization: str) -> None:
    file = artefact_dir / RECORD_NAME
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    made_of = weights_sha256(artefact_dir, record.get("files"))
    content = {
        **{key: value for key, value in record.items() if key != "files"},
        "format": "ctranslate2",
        "stored": quantization,
        "made_of": {"path": artefact_dir.name, "sha256": made_of},
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    }
    text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")
