"""What learns: all weights, LoRA adapters on a frozen base, or all but the encoder; and the merge of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from infer.encoder import WindowedWhisper

METHODS = ("full", "lora", "frozen_encoder")
ADAPTER = "default"


@dataclass(frozen=True)
class FinetuneSettings:
    """The `finetune` group."""

    name: str = "full"
    rank: int = 32
    """Of the LoRA matrices."""
    alpha: float = 64.0
    """LoRA's strength is alpha / rank."""
    dropout: float = 0.0
    """On the input of the adapters."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    base_dtype: str = "fp32"
    """What the frozen base is stored in: `fp32` or `fp16`, which halves its memory."""

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"finetune={self.name} must be one of {', '.join(METHODS)}")
        if self.base_dtype not in ("fp32", "fp16"):
            raise ValueError(f"finetune.base_dtype={self.base_dtype} must be fp32 or fp16")


def choose_trainable(whisper: WindowedWhisper, settings: FinetuneSettings) -> None:
    """Freeze what does not learn, and put adapters in where asked, in place.

    The table of encoder positions never learns, as in Whisper.

    Raises:
        ValueError: if no module has one of the names in `finetune.target_modules`.
    """
    if settings.name == "lora":
        _inject_adapters(whisper, settings)
        return
    whisper.requires_grad_(True)
    whisper.model.encoder.embed_positions.requires_grad_(False)
    if settings.name == "frozen_encoder":
        whisper.model.encoder.requires_grad_(False)


def _inject_adapters(whisper: WindowedWhisper, settings: FinetuneSettings) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    whisper.requires_grad_(False)
    if settings.base_dtype == "fp16":
        whisper.half()
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
    )
    inject_adapter_in_model(config, whisper, adapter_name=ADAPTER)
    for name, parameter in whisper.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that learn, by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def merged_state(whisper: WindowedWhisper, *, replaced: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the weights of a plain Whisper in FP32, adapters merged.

    Merged in FP32 and cast later, once: adding an adapter in FP16 changes a quarter of the elements.

    Args:
        whisper: with or without adapters.
        replaced: name to tensor that stands in for a trainable parameter, such as its moving average.

    Returns:
        Name, as in stock Whisper, to FP32 tensor. Tensors of a model without adapters are not copied.
    """
    from peft.tuners.lora import LoraLayer

    replaced = replaced or {}
    state = {name: replaced.get(name, tensor) for name, tensor in whisper.state_dict().items()}
    adapted = {name: module for name, module in whisper.named_modules() if isinstance(module, LoraLayer)}
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if "lora_" in name:
            continue
        owner = name.rsplit(".base_layer.", 1)[0]
        merged[name.replace(".base_layer.", ".")] = tensor.float()
        if owner in adapted and name.endswith("base_layer.weight"):
            down = state[f"{owner}.lora_A.{ADAPTER}.weight"].float()
            up = state[f"{owner}.lora_B.{ADAPTER}.weight"].float()
            strength = float(adapted[owner].scaling[ADAPTER])
            merged[f"{owner}.weight"] = tensor.float() + strength * (up @ down.to(up.device)).to(tensor.device)
    return merged


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return how many parameters learn, and how many there are."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def enable_checkpointing(whisper: WindowedWhisper) -> None:
    """Recompute activations in the backward, layer by layer, without re-entering autograd."""
    whisper.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # A frozen first convolution gives the first layer an input without gradient; non-reentrant checkpoints allow that.
    assert all(getattr(layer, "gradient_checkpointing", True) for layer in whisper.model.encoder.layers)
