"""What learns: all weights, LoRA adapters on a frozen base, or all but the encoder; and the merge of adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from infer.encoder import WindowedWhisper
from train.shards import whole

METHODS = ("full", "lora", "frozen_encoder")
BASE_DTYPES = ("fp32", "fp16", "int8")
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
    """What the frozen base is stored in: `fp32`; `fp16`, half the memory; `int8`, with FP16 norms, a quarter."""

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"finetune={self.name} must be one of {', '.join(METHODS)}")
        if self.base_dtype not in BASE_DTYPES:
            raise ValueError(f"finetune.base_dtype={self.base_dtype} must be one of {', '.join(BASE_DTYPES)}")


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
    if settings.base_dtype != "fp32":
        whisper.half()
    if settings.base_dtype == "int8":
        _quantise(whisper)
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


def _quantise(whisper: WindowedWhisper) -> None:
    """Put 8-bit linear layers in place of those of all encoder and decoder layers; a device makes them 8-bit."""
    try:
        from bitsandbytes.nn import Linear8bitLt
    except ImportError as e:
        raise RuntimeError("finetune.base_dtype=int8 needs bitsandbytes: pip install 'mezzavoce[8bit]'") from e
    whisper.is_loaded_in_8bit = True  # PEFT then adapts 8-bit layers
    for stack in (whisper.model.encoder.layers, whisper.model.decoder.layers):
        for module in list(stack.modules()):
            for name, child in list(module.named_children()):
                if type(child) is not nn.Linear:
                    continue
                quantised = Linear8bitLt(
                    child.in_features, child.out_features, bias=child.bias is not None, has_fp16_weights=False
                )
                quantised.load_state_dict(child.state_dict())
                setattr(module, name, quantised.requires_grad_(False).to(child.weight.device))


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the values of the parameters that learn, by name."""
    return {name: p.detach() for name, p in trainable_parameters(module).items()}


def merged_state(whisper: WindowedWhisper, *, replaced: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
    """Return the weights of a plain Whisper in FP32, adapters merged.

    Merged in FP32 and cast later, once: adding an adapter in FP16 changes a quarter of the elements.

    Args:
        whisper: with or without adapters.
        replaced: name to tensor that stands in for a trainable parameter, such as its moving average.

    Returns:
        Name, as in stock Whisper, to FP32 tensor, made when it is asked for: an FP32 copy of a large FP16 base would
        not fit beside it. Tensors of a model without adapters are not copied.
    """
    return _MergedState(whisper, replaced or {})


class _MergedState(Mapping[str, Tensor]):
    """See `merged_state`."""

    def __init__(self, whisper: WindowedWhisper, replaced: Mapping[str, Tensor]) -> None:
        self._state = {name: replaced.get(name, tensor) for name, tensor in whisper.state_dict().items()}
        self._adapted: dict[str, Any] = {}
        if any("lora_" in name for name in self._state):
            from peft.tuners.lora import LoraLayer  # takes seconds, and is not needed otherwise

            self._adapted = {name: module for name, module in whisper.named_modules() if isinstance(module, LoraLayer)}
        # The scales and the layout of 8-bit layers belong to their weights.
        own = [n for n in self._state if "lora_" not in n and not n.endswith((".SCB", ".weight_format"))]
        self._sources = {name.replace(".base_layer.", "."): name for name in own}

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        owner = source.rsplit(".base_layer.", 1)[0]
        stored = whole(self._state[source])
        scales = self._state.get(f"{source.removesuffix('.weight')}.SCB")
        tensor: Tensor = stored.float() if scales is None else stored.float() * (scales.float()[:, None] / 127.0)
        if owner not in self._adapted or not source.endswith("base_layer.weight"):
            return tensor
        down = self._state[f"{owner}.lora_A.{ADAPTER}.weight"].float()
        up = self._state[f"{owner}.lora_B.{ADAPTER}.weight"].float()
        strength = float(self._adapted[owner].scaling[ADAPTER])
        merged: Tensor = tensor + strength * (up @ down.to(up.device)).to(tensor.device)
        return merged


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return how many parameters learn, and how many there are."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def enable_checkpointing(whisper: WindowedWhisper, *, every_layers: int = 1, offload: bool = False) -> None:
    """Recompute activations in the backward, layer by layer, without re-entering autograd.

    A frozen first convolution gives the first layer an input without gradient; non-reentrant checkpoints allow that.

    Args:
        whisper: the model; encoder and decoder are counted apart.
        every_layers: recompute layers 0, n, 2n, ...; the others keep their activations.
        offload: what enters recomputed layers waits in host memory, pinned where there is a GPU; slower.
    """
    for stack in (whisper.model.encoder.layers, whisper.model.decoder.layers):
        for i, layer in enumerate(stack):
            assert isinstance(layer, GradientCheckpointingLayer)
            layer.gradient_checkpointing = i % every_layers == 0
            layer._gradient_checkpointing_func = _recompute_offloaded if offload else _recompute


def _recompute(function: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(function, *inputs, use_reentrant=False)


def _recompute_offloaded(function: Callable[..., Any], *inputs: Any) -> Any:
    # Only what enters the checkpoint is saved under these hooks; within it the checkpoint has its own.
    with save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(function, *inputs, use_reentrant=False)
