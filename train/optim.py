"""One optimiser over two parameter groups, by name.

One, because a GradScaler that updates once per optimiser scales the second one's gradients wrongly after an overflow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor")


@dataclass(frozen=True)
class OptimizerSettings:
    """The `optimizer` group."""

    name: str = "adamw"
    lr: float = 1e-5
    """Peak learning rate."""
    weight_decay: float = 0.01
    """On matrices; norms and biases have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm after unscaling; 0 switches it off."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.name} must be one of {', '.join(OPTIMIZERS)}")
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr={self.lr} must be above 0")


def group_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float
) -> list[dict[str, object]]:
    """Sort the trainable parameters into those with weight decay (matrices) and those without (norms, biases)."""
    trainable = [p for _, p in named_parameters if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    plain = [p for p in trainable if p.ndim < 2]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    settings: OptimizerSettings,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    embeddings: Iterable[nn.Parameter] = (),
) -> Optimizer:
    """Build the optimiser; AdamW is fused where torch can.

    Args:
        settings: which, and how fast.
        named_parameters: of the model; what does not learn is left out.
        embeddings: their moments stay in 32 bit under `adamw_8bit`, since rows of rare tokens have moments of their own
            scale within a block. 0.37 GiB on large-v3. bitsandbytes' own advice.

    Raises:
        RuntimeError: if the optimiser needs a package that is not installed.
        ValueError: if nothing is trainable.
    """
    groups = group_parameters(named_parameters, weight_decay=settings.weight_decay)
    if not groups:
        raise ValueError("no parameter is trainable; look at finetune=")
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    if settings.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=settings.lr)
    try:
        from bitsandbytes.optim import AdamW8bit, GlobalOptimManager
    except ImportError as e:
        raise RuntimeError("optimizer=adamw_8bit needs bitsandbytes: pip install 'mezzavoce[8bit]'") from e
    exact = [p for p in embeddings if p.requires_grad]
    if exact:
        GlobalOptimManager.get_instance().override_config(exact, "optim_bits", 32)
    optimizer: Optimizer = AdamW8bit(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    return optimizer


def embedding_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the tables of a model, tied ones once."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [p for p in model.parameters() if id(p) in tables]
