"""How much of a training to keep: weights between the base (0) and the trained ones (1), all in FP32, cast once.

For LoRA the strength scales the adapter; for the other methods it lies on the straight line between both sets of
weights. Both are the same thing, since an adapter merged at strength s is base + s * (merged - base).

Source: Wortsman et al. 2022, arXiv:2109.01903 (WiSE-FT): weights in between keep most of what was learnt and most of
    what was known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train.adapters import choose_trainable, merged_state
from train.checkpoint import load_checkpoint
from train.export import describe_run, export_weights
from train.half import HalfCopy
from train.model import load_model
from train.settings import TrainSettings

MAX_STRENGTH = 2.0  # beyond 1 it goes further than the training did; people try 1.2, nobody 3


@dataclass(frozen=True)
class Endpoints:
    """Both ends of the line, in FP32."""

    base: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    shape: HalfCopy
    """Configuration, tokenizer and windows."""
    settings: TrainSettings
    source: Mapping[str, str | None]
    step: int
    headline: float | None


def load_endpoints(settings: TrainSettings, *, step: int | None = None) -> Endpoints:
    """Load the base weights and the trained ones of a finished run.

    Args:
        settings: of the run, as kept in its `config.yaml`.
        step: of the checkpoint; None takes the one that was exported.

    Raises:
        FileNotFoundError: if the run is not finished, or has no such checkpoint.
        ValueError: if the run began with random weights, so that there is no base.
    """
    if settings.model.path is None:
        raise ValueError(
            f"model={settings.model.name} began with random weights; between those and a model there is nothing to keep"
        )
    run_dir = settings.run_dir.expanduser().absolute()
    record = run_dir / "export" / "mezzavoce.json"
    if not record.is_file():
        raise FileNotFoundError(f"{run_dir} has no export/ yet; the run is not finished")
    step = step if step is not None else int(json.loads(record.read_text(encoding="utf-8"))["trained_steps"])
    path = run_dir / "checkpoints" / f"step-{step:06d}"
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there; look into {path.parent}")
    checkpoint = load_checkpoint(path)
    loaded = load_model(settings.model)
    base = {name: tensor.clone() for name, tensor in merged_state(loaded.whisper).items()}
    choose_trainable(loaded.whisper, settings.finetune)
    parameters = dict(loaded.whisper.named_parameters())
    for name, tensor in checkpoint.model.items():
        parameters[name].data.copy_(tensor)
    return Endpoints(
        base=base,
        trained=merged_state(loaded.whisper, replaced=checkpoint.average),
        shape=HalfCopy(loaded.whisper, loaded.tokenizer, settings.window.windows(), device=torch.device("cpu")),
        settings=settings,
        source=loaded.source,
        step=step,
        headline=checkpoint.state["progress"]["best_headline"],
    )


def blend(endpoints: Endpoints, strength: float) -> dict[str, Tensor]:
    """Return the weights at a strength, in FP32: 0 and 1 give the ends themselves, bit for bit.

    Raises:
        ValueError: if the strength is out of range.
    """
    verify_strengths((strength,))
    if strength == 0.0:
        return dict(endpoints.base)
    if strength == 1.0:
        return dict(endpoints.trained)
    return {
        name: tensor
        if torch.equal(tensor, endpoints.base[name])
        else torch.lerp(endpoints.base[name], tensor, strength)
        for name, tensor in endpoints.trained.items()
    }


def export_strength(endpoints: Endpoints, strength: float, target: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write the weights at a strength as an artefact, cast once.

    Raises:
        RejectedError: if they do not fit FP16.
    """
    record = describe_run(
        endpoints.settings,
        endpoints.source,
        step=endpoints.step,
        headline=endpoints.headline if strength == 1.0 else None,  # of the trained weights alone
    )
    state = blend(endpoints, strength)
    return export_weights(target, state, endpoints.shape, dtype=dtype, record={**record, "strength": strength})


def verify_strengths(strengths: Sequence[float]) -> None:
    """Stop where a strength makes no sense.

    Raises:
        ValueError: naming it.
    """
    for strength in strengths:
        if not 0.0 <= strength <= MAX_STRENGTH:
            raise ValueError(
                f"strength {strength:g} must lie in 0 (the base) to {MAX_STRENGTH:g}; 1 is the trained model"
            )
