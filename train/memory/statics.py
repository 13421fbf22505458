"""What lies on a device from the first update to the last: weights, gradients, moments; counted on the meta device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import WhisperConfig

from infer.encoder import WindowedWhisper
from train.adapters import FinetuneSettings, choose_trainable
from train.memory.workload import Workload

MIN_8BIT_ELEMENTS = 4096  # bitsandbytes keeps smaller tensors in 32 bit
BLOCK_8BIT = 256  # elements under one FP32 scale
LARGEST_WORKING_COPIES = 3
"""FP32 copies of the largest parameter that Adafactor makes while it steps."""


@dataclass(frozen=True)
class Parameter:
    """One weight tensor."""

    name: str
    shape: tuple[int, ...]
    learns: bool
    stored_bytes: int
    """Of all its elements."""
    is_embedding: bool

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def meta_parameters(config: WhisperConfig, finetune: FinetuneSettings) -> list[Parameter]:
    """Build a model without its weights, choose what learns, and list its parameters."""
    is_int8 = finetune.base_dtype == "int8"  # counted, since only weights that are there can be made 8-bit
    with torch.device("meta"):
        whisper = WindowedWhisper(config)
        choose_trainable(whisper, dataclasses.replace(finetune, base_dtype="fp16") if is_int8 else finetune)
    found = list_parameters(whisper)
    if not is_int8:
        return found
    linear = {f"{name}.weight" for name, m in whisper.named_modules() if type(m) is nn.Linear and ".layers." in name}
    linear = {name for name in linear if "lora_" not in name}
    return [dataclasses.replace(p, stored_bytes=p.numel + 4 * p.shape[0]) if p.name in linear else p for p in found]


def list_parameters(whisper: nn.Module) -> list[Parameter]:
    """List the parameters of a model, each once, with what they are stored in."""
    embeddings = {id(m.weight) for m in whisper.modules() if isinstance(m, nn.Embedding)}
    return [
        Parameter(name, tuple(p.shape), p.requires_grad, p.numel() * p.element_size(), id(p) in embeddings)
        for name, p in whisper.named_parameters()
    ]


@dataclass(frozen=True)
class Statics:
    """Bytes of one model and choice of what learns."""

    parameters: tuple[Parameter, ...]

    @property
    def num_parameters(self) -> int:
        """Elements of the model itself, without adapters."""
        return sum(p.numel for p in self.parameters if not _is_adapter(p))

    @property
    def num_trainable(self) -> int:
        """Elements that learn."""
        return sum(p.numel for p in self.parameters if p.learns)

    def weights(self, precision: str) -> int:
        """Return the bytes of the weights as they are stored."""
        if precision == "bf16_pure":
            return sum(2 * p.numel for p in self.parameters)
        return sum(p.stored_bytes for p in self.parameters)

    def gradients(self, precision: str) -> int:
        """Return the bytes of all gradients, in the dtype of their weights."""
        return (2 if precision == "bf16_pure" else 4) * self.num_trainable

    def moments(self, optimizer: str, precision: str) -> int:
        """Return the bytes of an optimiser's state."""
        element = 2 if precision == "bf16_pure" else 4
        return sum(_moments(p, optimizer, element) for p in self.parameters if p.learns)

    def gradients_by_stage(self, precision: str) -> Mapping[str, int]:
        """Return the bytes of the gradients that each stage of the backward makes, by the name of the stage."""
        found: dict[str, int] = {}
        for p in self.parameters:
            if p.learns:
                stage = stage_of(p.name)
                found[stage] = found.get(stage, 0) + (2 if precision == "bf16_pure" else 4) * p.numel
        return found

    def gathered(self, work: Workload) -> int:
        """Return the bytes that a sharded update holds whole at its worst moment, beside the shards.

        The root's weights (embedding, convolutions, last norms) with their gradient; of `zero3` two layers, one at work
        and one on its way, of `zero2` all; and the gradient of one layer before it is added up over the ranks. In FP32.
        """
        if work.num_shards == 1:
            return 0
        layers: dict[str, int] = {}
        root = 0
        for p in self.parameters:
            stage = stage_of(p.name)
            if stage.rpartition(".")[2].isdigit():
                layers[stage] = layers.get(stage, 0) + p.stored_bytes
            else:
                root += p.stored_bytes
        largest = max(layers.values(), default=0)
        held = 2 * largest if work.shard == "zero3" else sum(layers.values())
        return 2 * root + held + largest

    def casts(self, work: Workload) -> int:
        """Return the bytes of half-precision copies of weights that outlive their own layer's forward.

        Without recomputing, the graph keeps each copy for the backward. With it (and autocast's cache off, see
        `train.runtime`) only those outside the recomputed layers stay. FP16 weights under BF16 autocast are copied as
        well; those of the same dtype are not.
        """
        if not work.is_autocast:
            return 0
        every = work.checkpoint_every_layers
        total = 0
        for p in self.parameters:
            stage = stage_of(p.name)
            layer = stage.rpartition(".")[2]
            is_recomputed = every > 0 and layer.isdigit() and int(layer) % every == 0
            if is_recomputed or not _is_cast(p, work):
                continue
            total += 2 * p.numel
        return total

    def working_casts(self, work: Workload) -> int:
        """Return the bytes of the copies that the largest recomputed layer makes while it is recomputed."""
        if not work.is_autocast or work.checkpoint_every_layers == 0:
            return 0
        layers: dict[str, int] = {}
        for p in self.parameters:
            stage = stage_of(p.name)
            if stage.rpartition(".")[2].isdigit() and _is_cast(p, work):
                layers[stage] = layers.get(stage, 0) + 2 * p.numel
        return max(layers.values(), default=0)


def stage_of(name: str) -> str:
    """Return the stage (see `train.memory.activations`) that a parameter belongs to."""
    words = name.removeprefix("model.").split(".")
    if words[0] in ("encoder", "decoder") and words[1] == "layers":
        return f"{words[0]}.{words[2]}"
    if words[0] == "encoder":
        return "encoder_norm" if words[1] == "layer_norm" else "stem"
    # The embedding is the projection as well: its gradient is made first and completed last.
    return "decoder_norm" if words[1] == "layer_norm" else "head"


def _is_adapter(p: Parameter) -> bool:
    return "lora_" in p.name


def _is_before_first_adapter(name: str) -> bool:
    is_first = ".layers.0.self_attn." in name and any(f"{x}_proj" in name for x in "qkv")
    return is_first or stage_of(name) == "stem"


def _is_cast(p: Parameter, work: Workload) -> bool:
    """Say whether autocast makes a copy of a weight that a backward needs."""
    is_matmul = len(p.shape) >= 2 and (not p.is_embedding or "embed_tokens" in p.name)
    is_encoder = p.name.startswith("model.encoder.")
    if not is_matmul or (is_encoder and not work.encoder_learns):
        return False
    is_projection = "embed_tokens" in p.name
    if is_projection and 0 < work.loss_chunk_tokens < work.label_tokens * work.micro_batch_size:
        return False  # cast anew in forward and backward, counted with the logits
    if work.finetune.name == "lora" and not _is_adapter(p) and _is_before_first_adapter(p.name):
        return False  # no gradient passes through
    if not work.encoder_learns and ("encoder_attn.k_proj" in p.name or "encoder_attn.v_proj" in p.name):
        return False  # their input has no gradient
    stored = p.stored_bytes // p.numel
    is_same = stored < 4 and work.precision == work.finetune.base_dtype
    return stored > 1 and not is_same


def _moments(p: Parameter, optimizer: str, element: int) -> int:
    if optimizer == "adafactor":
        if len(p.shape) < 2:
            return element * p.numel
        return element * (p.numel // p.shape[-1] + p.numel // p.shape[-2])
    if optimizer == "adamw_8bit" and p.numel >= MIN_8BIT_ELEMENTS and not p.is_embedding:
        return 2 * p.numel + 2 * 4 * math.ceil(p.numel / BLOCK_8BIT)
    return 2 * (4 if optimizer == "adamw_8bit" else element) * p.numel
