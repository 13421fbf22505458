"""The artefact: a self-contained Whisper folder in FP16, written atomically, and loaded for any arithmetic.

What is stored (FP16) and what computes are two things: on a CPU half-precision matmuls are many times slower than FP32
ones, so `infer.compute=auto` there computes in FP32 over the FP16 weights.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)

from data.labels import special_id
from data.windows import Windows, build_windows, full_windows
from infer.encoder import WindowedWhisper
from infer.generation_config import clean_generation_config
from infer.half import TIED_NAMES
from infer.weights import WEIGHTS_NAME, file_sha256, save_weights, stored_dtype, weight_files, weights_sha256

RECORD_NAME = "mezzavoce.json"
COMPUTE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Artefact:
    """A loaded model with all that is needed to transcribe as it was evaluated."""

    path: Path
    model: WindowedWhisper
    tokenizer: PreTrainedTokenizerBase
    windows: Windows
    sha256: str
    """Of the weights file."""
    stored: str
    """What the file holds, such as `float16`."""
    compute: str
    """What multiplies, such as `float32`."""
    reason: str
    """Why it computes so."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """`mezzavoce.json`; empty for a folder that another tool wrote."""

    def describe(self) -> dict[str, Any]:
        """Return what stands beside every number: path, hash, stored, compute, windows, source."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "stored": self.stored,
            "compute": self.compute,
            "device": str(self.model.device),
            "windows_s": list(self.windows.edges_s),
            "source": self.record.get("source"),
            "trained_steps": self.record.get("trained_steps"),
        }


def resolve_compute(compute: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the arithmetic for `infer.compute` on a device, and why.

    Raises:
        ValueError: for a name that is not known.
    """
    if compute != "auto":
        if compute not in COMPUTE_DTYPES:
            raise ValueError(f"infer.compute={compute} must be one of auto, {', '.join(COMPUTE_DTYPES)}")
        return COMPUTE_DTYPES[compute], "asked for"
    if device.type == "cpu":
        return torch.float32, "half-precision matmuls are slower than FP32 on a CPU"
    return torch.float16, f"{device.type} computes in FP16"


def load_artefact(path: Path | str, *, compute: str = "auto", device: torch.device | str = "cpu") -> Artefact:
    """Load a Whisper folder: ours, or any in Hugging Face's format with safetensors.

    Args:
        path: the folder.
        compute: `auto`, `fp16`, `bf16` or `fp32`.
        device: where it runs.

    Raises:
        FileNotFoundError: if the folder, its weights or its tokenizer are missing.
        ValueError: if a file's hash is not the one in `mezzavoce.json`, or a special id is wrong.
    """
    path = Path(path).expanduser()
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            what = "is not a folder" if not path.is_dir() else f"has no {name}"
            raise FileNotFoundError(f"{path} {what}; artefact= takes the export/ folder of a run")
    if not weight_files(path):
        raise FileNotFoundError(f"{path} has no {WEIGHTS_NAME}; pickled weights (.bin, .pt) are never loaded")
    record = json.loads((path / RECORD_NAME).read_text()) if (path / RECORD_NAME).is_file() else {}
    _verify_hashes(path, record)
    device = torch.device(device)
    dtype, reason = resolve_compute(compute, device)
    tokenizer = load_tokenizer(path)
    refuse_remote_code(path)
    model = WindowedWhisper.from_pretrained(str(path), dtype=dtype, use_safetensors=True, local_files_only=True)
    _verify_ids(path, model.config, tokenizer)
    model.generation_config = clean_generation_config(model.generation_config or GenerationConfig())
    model.eval().to(device)
    windows = build_windows(record["windows_s"]) if record.get("windows_s") else full_windows()
    return Artefact(
        path=path,
        model=model,
        tokenizer=tokenizer,
        windows=windows,
        sha256=weights_sha256(path, record.get("files")),
        stored=str(record.get("stored") or stored_dtype(path)),
        compute=str(dtype).removeprefix("torch."),
        reason=reason,
        record=record,
    )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder; a prefix or a language that was saved in it has no effect with us."""
    tokenizer: PreTrainedTokenizerBase = WhisperTokenizer.from_pretrained(str(path), local_files_only=True)
    return tokenizer


def refuse_remote_code(path: Path) -> None:
    """Stop where a folder asks for code of its own.

    Raises:
        ValueError: if `config.json` has an `auto_map`.
    """
    if "auto_map" in json.loads((path / "config.json").read_text()):
        raise ValueError(f"{path}/config.json asks for remote code (auto_map); a model folder is data, never code")


def _verify_ids(path: Path, config: WhisperConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = {"decoder_start_token_id": "<|startoftranscript|>", "eos_token_id": "<|endoftext|>"}
    for field_name, token in expected.items():
        found, index = getattr(config, field_name), special_id(tokenizer, token)
        if found != index:
            raise ValueError(
                f"{path}: {field_name} is {found} in config.json, but the tokenizer's {token} is {index}; "
                "tokenizer and model do not belong together"
            )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}")


def write_artefact(
    target: Path,
    state: Mapping[str, Tensor],
    *,
    config: WhisperConfig,
    generation_config: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    windows: Windows,
    record: Mapping[str, Any],
    max_shard_gib: float | None = None,
) -> Path:
    """Write a complete folder beside the target, then move it into place.

    Args:
        target: the folder; one that is there is replaced only when the new one is whole.
        state: name to tensor, all of one dtype, as they are to be stored; tied names are left out.
        config: of the model.
        generation_config: language ids, suppress lists and alignment heads are kept, forced ids are not.
        tokenizer: with Whisper's special tokens.
        windows: rule that the model was trained with.
        record: further facts for `mezzavoce.json`.
        max_shard_gib: of one file of weights; None writes one file in any case.

    Returns:
        `target`.

    Raises:
        RuntimeError: if the folder cannot be written.
    """
    target = Path(target)
    dtype = next(iter(state.values())).dtype
    temporary = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        save_weights(temporary, state, left_out=TIED_NAMES, max_shard_gib=max_shard_gib)
        _write_configs(temporary, config, generation_config, dtype)
        _write_processor(temporary, config, tokenizer)
        _finish_record(temporary, record, windows, dtype)
        replace_folder(temporary, target)
    except BaseException as e:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(e, OSError | SafetensorError):  # the latter is how safetensors reports a full disk
            raise RuntimeError(f"cannot write {target}: {getattr(e, 'strerror', None) or e}") from e
        raise
    return target


def _write_configs(
    folder: Path, config: WhisperConfig, generation_config: GenerationConfig | None, dtype: torch.dtype
) -> None:
    written = copy.deepcopy(config)
    written.architectures = ["WhisperForConditionalGeneration"]
    written.dtype = dtype
    written.use_cache = True
    written.save_pretrained(str(folder))
    clean_generation_config(generation_config or GenerationConfig()).save_pretrained(str(folder))


def _write_processor(folder: Path, config: WhisperConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    feature_extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(feature_extractor=feature_extractor, tokenizer=tokenizer).save_pretrained(str(folder))
    # transformers 5 writes processor_config.json alone; other runtimes then assume 80 mel bins.
    feature_extractor.save_pretrained(str(folder))


def _finish_record(folder: Path, record: Mapping[str, Any], windows: Windows, dtype: torch.dtype) -> None:
    files = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    full_record = {
        **record,
        "stored": str(dtype).removeprefix("torch."),
        "windows_s": list(windows.edges_s),
        "files": files,
        "versions": versions,
    }
    text = json.dumps(full_record, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)  # safetensors leaves its files readable by the owner alone
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def replace_folder(temporary: Path, target: Path) -> None:
    """Move a whole folder into place; one that is there goes only when the new one stands."""
    if target.exists():
        retired = target.parent / f".old-{target.name}-{uuid.uuid4().hex[:8]}"
        target.rename(retired)
        try:
            temporary.rename(target)
        except OSError:
            retired.rename(target)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    else:
        temporary.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def amend_record(path: Path, **facts: Any) -> None:
    """Add facts to `mezzavoce.json`, such as the figures of an evaluation; atomic."""
    file = path / RECORD_NAME
    record = {**json.loads(file.read_text()), **facts}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def _verify_hashes(path: Path, record: Mapping[str, Any]) -> None:
    for name, expected in record.get("files", {}).items():
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {RECORD_NAME} lists it: copy the whole folder again")
        if file_sha256(file) != expected:
            raise ValueError(f"{file} is not the file that was exported (SHA-256 differs); copy the whole folder again")
