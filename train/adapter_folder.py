"""The adapters of a LoRA run as a folder that PEFT takes, and the merged artefact beside them."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from infer.artefact import RECORD_NAME, replace_folder
from infer.weights import file_sha256
from train.adapters import ADAPTER, FinetuneSettings, merged_state
from train.export import Trained, export_weights, load_trained, write_json
from train.settings import TrainSettings

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGED = "merged"
PEFT_PREFIX = "base_model.model."  # of every name in a file of PEFT's


def export_adapter(settings: TrainSettings, target: Path, *, step: int | None = None, merged: bool = True) -> Path:
    """Write the adapters of a finished LoRA run in FP32, as `PeftModel.from_pretrained(base, folder)` takes them.

    Args:
        settings: of the run, as kept in its `config.yaml`.
        target: the folder; one that is there is replaced when the new one is whole.
        step: of the checkpoint; None takes the one that was exported.
        merged: also write `merged/`, the FP16 artefact: merged in FP32, cast once.

    Raises:
        ValueError: if the run has no adapters.
        FileNotFoundError: if the run is not finished, or has no such checkpoint.
        RejectedError: if the merged weights do not fit FP16.
        RuntimeError: if the folder cannot be written.
    """
    verify_has_adapters(settings)
    trained = load_trained(settings, step=step)
    temporary = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        save_file(adapter_state(trained), str(temporary / ADAPTER_WEIGHTS), metadata={"format": "pt"})
        peft_config(settings.finetune, settings.model.path).save_pretrained(str(temporary))
        trained.shape.tokenizer.save_pretrained(str(temporary))
        if merged:
            state = merged_state(trained.whisper, replaced=trained.average)
            export_weights(temporary / MERGED, state, trained.shape, dtype=torch.float16, record=trained.record)
        files = {file.name: file_sha256(file) for file in sorted(temporary.iterdir()) if file.is_file()}
        write_json(
            temporary / RECORD_NAME, {**trained.record, "format": "adapter", "stored": "float32", "files": files}
        )
        replace_folder(temporary, target)
    except (OSError, SafetensorError) as e:
        raise RuntimeError(f"cannot write {target}: {getattr(e, 'strerror', None) or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def verify_has_adapters(settings: TrainSettings) -> None:
    """Stop where a run did not learn adapters.

    Raises:
        ValueError: naming what it learnt.
    """
    if settings.finetune.name != "lora":
        raise ValueError(
            f"formats=adapter needs a run with finetune=lora; {settings.run_dir} has finetune={settings.finetune.name}"
        )


def adapter_state(trained: Trained) -> dict[str, Tensor]:
    """Return the LoRA matrices in FP32 by PEFT's names; a moving average stands in where there is one."""
    averaged: Mapping[str, Tensor] = trained.average or {}
    return {
        PEFT_PREFIX + name.replace(f".{ADAPTER}.", "."): averaged.get(name, p).detach().float().cpu().contiguous()
        for name, p in trained.whisper.named_parameters()
        if "lora_" in name
    }


def peft_config(finetune: FinetuneSettings, base: str | None) -> Any:
    """Return PEFT's own configuration of the adapters, for inference."""
    from peft import LoraConfig

    return LoraConfig(
        r=finetune.rank,
        lora_alpha=finetune.alpha,
        lora_dropout=finetune.dropout,
        target_modules=list(finetune.target_modules),
        base_model_name_or_path=base,
        inference_mode=True,
    )
