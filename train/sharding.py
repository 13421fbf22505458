"""Weights, gradients and moments cut over the cards (FSDP2), for a full fine-tuning that one card cannot hold.

Accelerate starts the processes and sets up autocast and scaler; the cutting itself is done here by `fully_shard`, since
Accelerate's own way needs CUDA, so that no test could run it, and an optimiser in its wrapper, which hides skipped
updates. What is refused here could not keep what `train.step` promises.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Literal

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from train.loss import TrainingObjective
from train.settings import TrainSettings

logger = logging.getLogger(__name__)

Shard = Literal["none", "zero2", "zero3"]
FOREIGN_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Accelerate's parallelism_config",
}
"""Engines that own backward, loss scale and step, by what their launch file sets."""

UNREAD = {
    "FSDP_OFFLOAD_PARAMS": "take more cards, or finetune=frozen_encoder",
    "FSDP_ACTIVATION_CHECKPOINTING": "use trainer.gradient_checkpointing=true",
}
"""What a launch file may ask of Accelerate's own FSDP, and what to type instead."""


def resolve_shard(asked: str, environment: MutableMapping[str, str], *, num_processes: int) -> Shard:
    """Return how a run is sharded; take the launch file's wish for FSDP out of the environment.

    Out, because Accelerate would otherwise set up its own.

    Args:
        asked: `trainer.shard`; `auto` is what the launch file says.
        environment: of the process; changed.
        num_processes: of the run.

    Raises:
        ValueError: for an engine that cannot do what an update promises.
    """
    for name, engine in FOREIGN_ENGINES.items():
        if environment.get(name, "false").lower() == "true":
            raise ValueError(
                f"{engine} takes backward, loss scale and optimiser step into its own hands: the one count of label "
                "tokens, the clips that are left out and the skips that ranks agree on would be gone; use "
                "--config_file conf/accelerate/fsdp2.yaml or fsdp2_zero2.yaml, which cut the same things over the cards"
            )
    wanted = environment.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    version = environment.pop("FSDP_VERSION", "2")
    keeps_weights = environment.pop("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "no_shard")
    if wanted and version != "2":
        raise ValueError(f"fsdp_version: {version} in the launch file is not supported; use fsdp_version: 2")
    for name, instead in UNREAD.items():
        if wanted and environment.pop(name, "false").lower() == "true":
            raise ValueError(f"{name.lower()}: true in the launch file has no effect here; {instead}")
    of_launch: Shard = "none" if not wanted else "zero2" if keeps_weights else "zero3"
    shard: Shard = of_launch if asked == "auto" else asked  # type: ignore[assignment]
    if shard != "none" and num_processes == 1:
        logger.warning("trainer.shard=%s has nothing to share with one process; going on without", shard)
        return "none"
    return shard


def verify_shardable(settings: TrainSettings, shard: Shard) -> None:
    """Stop where something that was asked for does not work on shards.

    Raises:
        ValueError: with what to type.
    """
    if shard == "none":
        return
    obstacles = {
        "finetune=lora fits on every card whole": ("--config_file conf/accelerate/ddp.yaml", settings.finetune.name),
        "optimizer=adamw_8bit cannot read shards": ("optimizer=adamw", settings.optimizer.name),
        "optimizer=adafactor would take the means of shards": ("optimizer=adamw", settings.optimizer.name),
        "precision=bf16_pure has not been tried on shards": ("precision=bf16", settings.precision.name),
        "trainer.ema_device=cpu would tear shards from their cards": (
            "trainer.ema_device=auto",
            settings.trainer.ema_device if settings.trainer.ema_decay else "",
        ),
        "trainer.compile=true has not been tried on shards": (
            "trainer.compile=false",
            str(settings.trainer.compile).lower(),
        ),
    }
    for what, (instead, value) in obstacles.items():
        if what.split()[0].partition("=")[2] == value:
            raise ValueError(f"{what} (sharded by {shard}); use {instead}")


def prepare_objective(objective: TrainingObjective, accelerator: Accelerator, shard: Shard) -> nn.Module:
    """Put autocast around an objective, and the exchange of gradients between processes: DDP, or shards.

    Encoder and decoder layers are gathered one at a time; embedding, convolutions and last norms are the root's, and
    stay whole from the forward to the end of the backward. Weights are gathered in FP32 and gradients added up in FP32,
    so that an update is that of one process.

    Args:
        objective: whose parameters become shards, in place.
        accelerator: of the process.
        shard: `zero2` keeps gathered weights until the backward, `zero3` lets them go and gathers them again.
    """
    if shard == "none":
        prepared: nn.Module = accelerator.prepare(objective)
        return prepared
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    model = objective.whisper.model
    for stack in (model.encoder.layers, model.decoder.layers):
        for layer in stack:
            fully_shard(layer, mesh=mesh, reshard_after_forward=shard == "zero3")
    fully_shard(objective, mesh=mesh, reshard_after_forward=False)
    prepared = accelerator.prepare_model(objective, evaluation_mode=True)  # no DDP around it
    return prepared
