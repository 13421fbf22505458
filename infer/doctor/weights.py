"""Checks on every weight: finite, within FP16's reach, not flushed to zero, tied, of the right shape, cast once.

One pass over the tensors counts what all checks need, so that large-v3 is read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infer.doctor.findings import HALF_RUNTIMES, OURS, RUNTIMES, TRANSFORMERS, Finding
from infer.doctor.folder import ModelFolder
from infer.half import FP16_MAX, MAX_FLUSHED_SHARE, NUM_FLUSHED_ALLOWED, TIED_NAMES

MIN_NORMAL = 2.0**-14  # FP16; below it a value loses bits, and some hardware takes it for zero
MAX_SUBNORMAL_SHARE = 0.05  # of the non-zero weights; weights drawn from N(0, 0.02) have 0.0025
EMBEDDING = "model.decoder.embed_tokens.weight"
NUM_SHOWN = 3


@dataclass(frozen=True)
class TensorFigures:
    """What was counted on one tensor."""

    dtype: str
    shape: tuple[int, ...]
    num_values: int
    num_nonfinite: int
    """NaN or infinite as stored, where the master does not explain it."""
    max_abs: float
    """Of the finite values; of the master where it is known."""
    num_nonzero: int
    num_flushed: int
    """Non-zero values that FP16 takes for zero."""
    num_subnormal: int
    """Values that FP16 keeps with fewer bits."""
    num_unlike_master: int | None = None
    """Stored values that are not the master cast once; None where there is no master."""
    max_relative_error: float | None = None
    """Against the master, over values that are normal in FP16."""


@dataclass(frozen=True)
class WeightFigures:
    """Of all tensors of a folder."""

    tensors: Mapping[str, TensorFigures] = field(default_factory=dict)
    tie_differs: int = 0
    """Values in which a stored output layer differs from the embedding that it shares."""

    def total(self, name: str) -> int:
        """Return the sum of a count over all tensors."""
        return sum(getattr(figures, name) or 0 for figures in self.tensors.values())

    def worst(self, name: str) -> list[str]:
        """Return the names of the tensors with most of a count, the worst first."""
        found = {key: getattr(figures, name) or 0 for key, figures in self.tensors.items()}
        return sorted((key for key, value in found.items() if value), key=lambda key: -found[key])


def measure_weights(weights: Mapping[str, Tensor], masters: Mapping[str, Tensor] | None = None) -> WeightFigures:
    """Count over every tensor, one in memory at a time.

    Args:
        weights: as stored.
        masters: FP32 weights that they were made of, adapters merged in FP32.
    """
    tensors = {}
    for name in weights:
        master = masters[name] if masters is not None and name in masters else None
        tensors[name] = measure_tensor(weights[name], master)
    tie_differs = 0
    for name in TIED_NAMES:
        if name in weights and EMBEDDING in weights and weights[name].shape == weights[EMBEDDING].shape:
            tie_differs += int((weights[name] != weights[EMBEDDING]).sum())
    return WeightFigures(tensors, tie_differs)


def measure_tensor(stored: Tensor, master: Tensor | None = None) -> TensorFigures:
    """Count on one tensor; a master of another shape is no master."""
    if master is not None and master.shape != stored.shape:
        master = None
    values = stored.float()
    source = values if master is None else master.float()
    size = source.abs()
    is_finite = torch.isfinite(source)
    is_beyond = is_finite & (size > FP16_MAX)
    half = source.to(torch.float16)
    unlike, error = None, None
    if master is not None:
        cast = source.to(stored.dtype)
        can_tell = torch.isfinite(values) & torch.isfinite(cast.float())
        unlike = int(((stored != cast) & can_tell).sum())
        normal = can_tell & (size >= MIN_NORMAL)
        relative = ((values - source).abs() / size)[normal]
        error = float(relative.max()) if relative.numel() else 0.0
    finite_sizes = size[is_finite]
    explained = is_beyond if master is not None else torch.zeros_like(is_beyond)
    return TensorFigures(
        dtype=str(stored.dtype).removeprefix("torch."),
        shape=tuple(stored.shape),
        num_values=stored.numel(),
        num_nonfinite=int((~torch.isfinite(values) & ~explained).sum()),
        max_abs=float(finite_sizes.max()) if finite_sizes.numel() else 0.0,
        num_nonzero=int((source != 0).sum()),
        num_flushed=int(((source != 0) & (half == 0)).sum()),
        num_subnormal=int(((half != 0) & (half.abs() < MIN_NORMAL)).sum()),
        num_unlike_master=unlike,
        max_relative_error=error,
    )


def check_shapes(folder: ModelFolder, figures: WeightFigures) -> Finding | None:
    """Names and shapes are those of the configuration; mel bins and vocabulary have checks of their own."""
    if folder.config is None:
        return None
    expected = expected_shapes(folder.config)
    if isinstance(expected, str):
        return Finding("shapes", f"config.json: {expected}", "copy config.json from the base", breaks=RUNTIMES)
    missing = [name for name in expected if name not in figures.tensors and name not in TIED_NAMES]
    strange = [name for name in figures.tensors if name not in expected and name not in TIED_NAMES]
    wrong = [
        f"{name} is {list(found.shape)}, not {list(expected[name])}"
        for name, found in figures.tensors.items()
        if name in expected and found.shape != expected[name] and not _has_own_check(name, found.shape, expected[name])
    ]
    parts = [f"{len(missing)} missing, such as {missing[0]}"] if missing else []
    parts += [f"{len(strange)} too many, such as {strange[0]}"] if strange else []
    if not parts and not wrong:
        return None
    adapters = any("lora_" in name for name in strange)
    return Finding(
        "shapes",
        "tensors do not fit config.json: " + "; ".join([*parts, *wrong[:NUM_SHOWN]]),
        "adapters were saved in place of a model: merge them with scripts/export.py run.dir=RUN"
        if adapters
        else "weights and config.json are of two models; copy both from one folder",
        breaks=RUNTIMES,
    )


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | str:
    """Return the shape of every tensor by name as transformers builds the model, or why it cannot."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    try:
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(WhisperConfig(**{k: v for k, v in config.items() if k != "dtype"}))
    except (TypeError, ValueError, RuntimeError, AttributeError) as e:
        return str(e).splitlines()[0]
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _has_own_check(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return name == "model.encoder.conv1.weight" and (found[0], found[2]) == (expected[0], expected[2])


def check_finite(_: ModelFolder, figures: WeightFigures) -> Finding | None:
    """No weight is NaN or infinite."""
    count = figures.total("num_nonfinite")
    if not count:
        return None
    return Finding(
        "nonfinite",
        f"{count:,} weights are NaN or infinite, in {_listed(figures, 'num_nonfinite')}",
        "nothing can mend them: export again, from an earlier checkpoint if the run itself is damaged",
        breaks=RUNTIMES,
    )


def check_reach(_: ModelFolder, figures: WeightFigures) -> Finding | None:
    """No weight is larger than FP16 can hold."""
    beyond = {name: found.max_abs for name, found in figures.tensors.items() if found.max_abs > FP16_MAX}
    if not beyond:
        return None
    name = max(beyond, key=lambda key: beyond[key])
    is_half = any(found.dtype == "float16" for found in figures.tensors.values())
    return Finding(
        "fp16-reach",
        f"{name} reaches {beyond[name]:.3g}; FP16 ends at {FP16_MAX:g}, and larger values become infinite",
        "use FP32 or BF16 formats, or train with a lower learning rate or with weight decay",
        breaks=RUNTIMES if is_half else HALF_RUNTIMES,
    )


def check_flush(_: ModelFolder, figures: WeightFigures) -> Finding | None:
    """Hardly a weight becomes zero in FP16."""
    count, total = figures.total("num_flushed"), figures.total("num_nonzero")
    if count <= max(NUM_FLUSHED_ALLOWED, MAX_FLUSHED_SHARE * total):
        return None
    return Finding(
        "fp16-flush",
        f"{count:,} of {total:,} non-zero weights become zero in FP16, most in {_listed(figures, 'num_flushed')}",
        "use FP32 or BF16 formats, or find out why these weights are so small: a dead layer, or one scaled by hand",
        breaks=HALF_RUNTIMES,
    )


def check_subnormal(_: ModelFolder, figures: WeightFigures) -> Finding | None:
    """Few weights lose bits in FP16: hardware that flushes subnormals would take them for zero."""
    count, total = figures.total("num_subnormal"), figures.total("num_nonzero")
    if not total or count <= MAX_SUBNORMAL_SHARE * total:
        return None
    return Finding(
        "fp16-subnormal",
        f"{100 * count / total:.1f} % of the weights are subnormal in FP16, most in "
        f"{_listed(figures, 'num_subnormal')}",
        "compare precisions before you ship: scripts/compare_precision.py",
        troubles=HALF_RUNTIMES,
    )


def check_tie(folder: ModelFolder, figures: WeightFigures) -> Finding | None:
    """The output layer is the embedding: runtimes that share it, and those that read it, hear the same."""
    is_untied = (folder.config or {}).get("tie_word_embeddings") is False
    if not figures.tie_differs and not is_untied:
        return None
    found = (
        f"proj_out.weight is stored and differs from the embedding in {figures.tie_differs:,} values; some runtimes "
        "read it, some do not"
        if figures.tie_differs
        else "config.json says tie_word_embeddings: false; Whisper's output layer is its embedding"
    )
    return Finding(
        "tie",
        found,
        "fix=true keeps the embedding alone, as every Whisper does; score the copy before you use it",
        breaks=RUNTIMES if figures.tie_differs else (TRANSFORMERS, OURS),
        can_repair=True,
    )


def check_dtype(folder: ModelFolder, figures: WeightFigures) -> Finding | None:
    """The stored type is one, and the one that `config.json` names: transformers 5 loads what it names."""
    stored = sorted({found.dtype for found in figures.tensors.values() if found.dtype.startswith(("float", "bfloat"))})
    config = folder.config or {}
    named = config.get("dtype") or config.get("torch_dtype")
    if len(stored) == 1 and named in (None, stored[0]):
        return None
    found = (
        f"weights are stored in {' and '.join(stored)}"
        if len(stored) != 1
        else f"config.json says {named}, the weights are {stored[0]}"
    )
    return Finding(
        "dtype",
        found,
        "fix=true writes the type that is stored" if len(stored) == 1 else "export again in one type",
        troubles=(TRANSFORMERS,),
        can_repair=len(stored) == 1,
    )


def check_masters(_: ModelFolder, figures: WeightFigures) -> Finding | None:
    """Every weight is its FP32 master, adapters merged in FP32, cast once."""
    count, total = figures.total("num_unlike_master"), figures.total("num_values")
    if not count:
        return None
    worst = max((found.max_relative_error or 0.0) for found in figures.tensors.values())
    return Finding(
        "cast",
        f"{count:,} of {total:,} weights ({100 * count / total:.2g} %) are not the FP32 masters cast once, by up to "
        f"{worst:.1e} of their size, most in {_listed(figures, 'num_unlike_master')}: merged in FP16, cast twice, or "
        "of another checkpoint",
        "export again from the run, or fix=true: the copy is cast from the masters",
        breaks=(OURS,),
        troubles=tuple(runtime for runtime in RUNTIMES if runtime != OURS),
        can_repair=True,
    )


def _listed(figures: WeightFigures, name: str) -> str:
    worst = figures.worst(name)
    more = f" and {len(worst) - NUM_SHOWN} more" if len(worst) > NUM_SHOWN else ""
    return ", ".join(worst[:NUM_SHOWN]) + more
