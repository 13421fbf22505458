"""From an artefact to the same folder in another storage type, or in several files: Hugging Face's format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig

from data.windows import build_windows, full_windows
from infer.artefact import RECORD_NAME, load_tokenizer, refuse_remote_code, write_artefact
from infer.half import cast_to_half
from infer.weights import StoredWeights, stored_dtype, weights_sha256

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
WRITTEN_ANEW = ("files", "stored", "windows_s", "versions")
"""Of the record; all else that it says holds for the new folder, too."""
MAX_SHARD_GIB = 4.6
"""Of one file: large-v3 is one in FP16, and two in FP32."""


def convert_to_hf(
    artefact_dir: Path, target: Path, *, dtype: str = "fp16", max_shard_gib: float | None = MAX_SHARD_GIB
) -> Path:
    """Write a Whisper folder anew in another type, complete, with its record.

    From FP16 to FP32 nothing is gained and nothing lost. BF16 keeps 8 of FP16's 11 significant bits: better made from
    the FP32 masters of a run.

    Args:
        artefact_dir: ours, or any in Hugging Face's format with safetensors.
        target: the folder; one that is there is replaced when the new one is whole.
        dtype: a name in `DTYPES`.
        max_shard_gib: of one file of weights; larger ones are cut, with an index; None never cuts.

    Raises:
        ValueError: for another type.
        FileNotFoundError: if a file is missing.
        RejectedError: if the weights do not fit FP16.
        RuntimeError: if the folder cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} must be one of {', '.join(DTYPES)}")
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        if not (artefact_dir / name).is_file():
            raise FileNotFoundError(f"{artefact_dir} has no {name}; artefact= takes the export/ folder of a run")
    refuse_remote_code(artefact_dir)
    file = artefact_dir / RECORD_NAME
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kept = {key: value for key, value in record.items() if key not in WRITTEN_ANEW}
    made_of = {"path": artefact_dir.name, "sha256": weights_sha256(artefact_dir, record.get("files"))}
    return write_artefact(
        target,
        _in_type(StoredWeights(artefact_dir), DTYPES[dtype], stored=stored_dtype(artefact_dir)),
        config=WhisperConfig.from_pretrained(str(artefact_dir)),
        generation_config=GenerationConfig.from_pretrained(str(artefact_dir), local_files_only=True),
        tokenizer=load_tokenizer(artefact_dir),
        windows=build_windows(record["windows_s"]) if record.get("windows_s") else full_windows(),
        record={**kept, "made_of": made_of},
        max_shard_gib=max_shard_gib,
    )


def _in_type(weights: Mapping[str, Tensor], dtype: torch.dtype, *, stored: str) -> Mapping[str, Tensor]:
    if dtype == torch.float16 and stored != "float16":
        return cast_to_half(weights)  # refuses what does not fit
    return Recast(weights, lambda tensor: tensor.to(dtype).contiguous())


class Recast(Mapping[str, Tensor]):
    """Weights that are cast when they are asked for, one at a time, so that no second copy lies in memory."""

    def __init__(self, weights: Mapping[str, Tensor], cast: Callable[[Tensor], Tensor]) -> None:
        """Take the weights, and what is done to each."""
        self._weights = weights
        self._cast = cast

    def __len__(self) -> int:
        return len(self._weights)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __getitem__(self, name: str) -> Tensor:
        return self._cast(self._weights[name])
