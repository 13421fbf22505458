"""From FP32 masters to the artefact: cast once, checked, written atomically; or set aside with the reason."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer.artefact import write_artefact
from infer.encoder import WindowedWhisper
from infer.export.hf import DTYPES, Recast
from infer.half import RejectedError, cast_to_half
from train.adapters import choose_trainable, merged_state
from train.checkpoint import load_checkpoint
from train.half import HalfCopy
from train.model import load_model
from train.settings import TrainSettings

__all__ = ["DTYPES", "export_run", "export_weights"]


@dataclass(frozen=True)
class Trained:
    """A finished run, loaded at one step."""

    whisper: WindowedWhisper
    """Base weights and what learnt, adapters apart."""
    average: Mapping[str, Tensor] | None
    """What stands in for the trainable parameters, if a moving average was kept."""
    shape: HalfCopy
    """Configuration, tokenizer and windows."""
    record: Mapping[str, Any]
    """What `mezzavoce.json` says of the training."""


def export_weights(
    target: Path,
    state: Mapping[str, Tensor],
    shape: HalfCopy,
    *,
    dtype: torch.dtype,
    record: Mapping[str, Any],
    max_shard_gib: float | None = None,
) -> Path:
    """Write FP32 weights as an artefact.

    Args:
        target: the folder.
        state: name to FP32 tensor, adapters merged.
        shape: holds configuration, tokenizer and windows.
        dtype: FP16 to ship, FP32 to compare with, BF16 for those who ask for it.
        record: for `mezzavoce.json`.
        max_shard_gib: of one file of weights; None writes one file in any case.

    Raises:
        RejectedError: if the weights do not fit FP16; the reason then stands in `rejected/` beside the target.
    """
    if dtype == torch.float16:
        try:
            stored: Mapping[str, Tensor] = cast_to_half(state)
        except RejectedError as e:
            rejected = target.parent / "rejected"
            rejected.mkdir(parents=True, exist_ok=True)
            write_json(rejected / "reason.json", {**record, "reason": str(e)})
            raise
    else:
        stored = Recast(state, lambda tensor: tensor.detach().to("cpu", dtype).contiguous())
    return write_artefact(
        target,
        stored,
        config=shape.config,
        generation_config=shape.generation_config,
        tokenizer=shape.tokenizer,
        windows=shape.windows,
        record=record,
        max_shard_gib=max_shard_gib,
    )


def describe_run(
    settings: TrainSettings,
    source: Mapping[str, str | None],
    *,
    step: int,
    headline: float | None,
    inexact: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what `mezzavoce.json` says of the training.

    Args:
        settings: of the run.
        source: where the weights came from.
        step: of the exported weights.
        headline: error rate of the validation of that step.
        inexact: what changed in resumes, after which the run is not bit for bit one that never stopped.
    """
    return {
        "source": dict(source),
        "trained_steps": step,
        "precision": settings.precision.name,
        "finetune": settings.finetune.name,
        "full_share": settings.window.full_share,
        "decoding": dict(settings.config.get("decoding", {})),
        "validation": {"headline": headline},
        "run": settings.run.name,
        "inexact": list(inexact),
    }


def export_run(
    settings: TrainSettings,
    target: Path,
    *,
    dtype: torch.dtype,
    step: int | None = None,
    max_shard_gib: float | None = None,
) -> Path:
    """Export a finished run again, such as in FP32 to compare with.

    Args:
        settings: of the run, as kept in its `config.yaml`.
        target: the folder.
        dtype: what to store.
        step: of the checkpoint; None takes the one that was exported.
        max_shard_gib: of one file of weights; None writes one file in any case.

    Raises:
        FileNotFoundError: if the run is not finished, or has no such checkpoint.
    """
    trained = load_trained(settings, step=step)
    state = merged_state(trained.whisper, replaced=trained.average)
    return export_weights(target, state, trained.shape, dtype=dtype, record=trained.record, max_shard_gib=max_shard_gib)


def load_trained(settings: TrainSettings, *, step: int | None = None) -> Trained:
    """Load a finished run in FP32.

    Args:
        settings: of the run, as kept in its `config.yaml`.
        step: of the checkpoint; None takes the one that was exported.

    Raises:
        FileNotFoundError: if the run is not finished, or has no such checkpoint.
    """
    run_dir = settings.run_dir.expanduser().absolute()
    if not (run_dir / "export" / "mezzavoce.json").is_file():
        raise FileNotFoundError(f"{run_dir} has no export/ yet; the run is not finished")
    export_record = json.loads((run_dir / "export" / "mezzavoce.json").read_text())
    step = step if step is not None else int(export_record["trained_steps"])
    path = run_dir / "checkpoints" / f"step-{step:06d}"
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there; look into {path.parent}")
    checkpoint = load_checkpoint(path)
    # A model from random weights has no source but itself; what never learns, the table of positions, is rounded there.
    source = settings.model.path or str(run_dir / "export")
    loaded = load_model(dataclasses.replace(settings.model, path=source))
    origin = loaded.source if settings.model.path is not None else {"name": settings.model.name, "path": None}
    choose_trainable(loaded.whisper, settings.finetune)
    parameters = dict(loaded.whisper.named_parameters())
    for name, tensor in checkpoint.model.items():
        parameters[name].data.copy_(tensor)
    record = describe_run(
        settings,
        origin,
        step=step,
        headline=checkpoint.state["progress"]["best_headline"],
        inexact=checkpoint.state["inexact"],
    )
    shape = HalfCopy(loaded.whisper, loaded.tokenizer, settings.window.windows(), device=torch.device("cpu"))
    return Trained(loaded.whisper, checkpoint.average, shape, record)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, which is also YAML."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
