"""Weights, gradients and moments cut over the cards (FSDP2), for a full fine-tuning that one card cannot hold.

What a launch file says to FSDP and DeepSpeed is read here, too; `train.zero` drives the latter.

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

Shard = Literal["none", "zero2", "zero3", "deepspeed_zero1", "deepspeed_zero2"]
FOREIGN_ENGINES = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Accelerate's parallelism_config",
}
"""Engines that own backward, loss scale and step, by what their launch file sets."""

UNREAD = {
    "FSDP_OFFLOAD_PARAMS": "take more cards, or finetune=frozen_encoder",
    "FSDP_ACTIVATION_CHECKPOINTING": "use trainer.gradient_checkpointing=true",
}
"""What a launch file may ask of Accelerate's own FSDP, and what to type instead."""

UNREAD_BY_DEEPSPEED = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (
        "offload_optimizer_device",
        "take more cards, or conf/accelerate/fsdp2.yaml, which cuts weights too",
    ),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("offload_param_device", "use conf/accelerate/fsdp2.yaml"),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("deepspeed_config_file", "name zero_stage: 1 or 2 alone"),
    "GRADIENT_CLIPPING": ("gradient_clipping", "use optimizer.max_grad_norm="),
}


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
    of_deepspeed = _deepspeed_stage(environment)
    wanted = environment.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    version = environment.pop("FSDP_VERSION", "2")
    keeps_weights = environment.pop("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "no_shard")
    if wanted and version != "2":
        raise ValueError(f"fsdp_version: {version} in the launch file is not supported; use fsdp_version: 2")
    for name, instead in UNREAD.items():
        if wanted and environment.pop(name, "false").lower() == "true":
            raise ValueError(f"{name.lower()}: true in the launch file has no effect here; {instead}")
    of_launch: Shard = "none" if not wanted else "zero2" if keeps_weights else "zero3"
    of_launch = of_deepspeed or of_launch
    shard: Shard = of_launch if asked == "auto" else asked  # type: ignore[assignment]
    if shard != "none" and num_processes == 1:
        logger.warning("trainer.shard=%s has nothing to share with one process; going on without", shard)
        return "none"
    return shard


def _deepspeed_stage(environment: MutableMapping[str, str]) -> Shard | None:
    """Take what a launch file says to DeepSpeed out of the environment.

    Raises:
        ValueError: for what has not been tried, or would break what an update promises.
    """
    wanted = environment.pop("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    asked = {key: environment.pop(key) for key in list(environment) if key.startswith("ACCELERATE_DEEPSPEED_")}
    environment.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    if not wanted:
        return None
    asked["GRADIENT_CLIPPING"] = environment.pop("ACCELERATE_GRADIENT_CLIPPING", "none")
    for key, (what, instead) in UNREAD_BY_DEEPSPEED.items():
        if asked.get(key, "none").lower() not in ("none", "false"):
            raise ValueError(f"{what} in the launch file is not supported with DeepSpeed; {instead}")
    stage = asked.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("1", "2"):
        raise ValueError(
            f"zero_stage: {stage} in the launch file is not supported; use conf/accelerate/deepspeed_zero1.yaml, "
            "deepspeed_zero2.yaml, or fsdp2.yaml, which cuts weights too"
        )
    return "deepspeed_zero1" if stage == "1" else "deepspeed_zero2"


def cuts_weights(shard: Shard) -> bool:
    """Return whether each card holds a part of the weights only."""
    return shard in ("zero2", "zero3")


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
            settings.trainer.ema_device if settings.trainer.ema_decay and cuts_weights(shard) else "",
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
    if shard.startswith("deepspeed"):  # `train.zero` exchanges
        engineless: nn.Module = accelerator.prepare_model(objective, evaluation_mode=True)
        return engineless
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
