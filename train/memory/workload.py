"""What a training puts on a device: the shapes and choices that its memory follows from, without a weight loaded."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from transformers import WhisperConfig

from data.features import FRAMES_PER_S
from train.adapters import FinetuneSettings
from train.settings import TrainSettings

HALF_MODES = ("fp16", "bf16", "bf16_pure")
TYPICAL_LABEL_TOKENS = 128
"""A 30 s clip of fast English speech with its prefix has about so many."""


@dataclass(frozen=True)
class Workload:
    """One training, as far as memory is concerned."""

    config: WhisperConfig
    finetune: FinetuneSettings
    precision: str
    """A resolved mode: `fp32`, `tf32`, `fp16`, `bf16` or `bf16_pure`."""
    optimizer: str
    micro_batch_size: int
    accumulation_steps: int = 1
    num_frames: int = 3000
    """Mel frames of the window, 100 a second."""
    label_tokens: int = TYPICAL_LABEL_TOKENS
    """T, of the longest text in the micro-batch."""
    checkpoint_every_layers: int = 0
    """Every so many layers one is recomputed; 0 is none."""
    checkpoint_offload: bool = False
    """The inputs of recomputed layers wait in host memory."""
    loss_chunk_tokens: int = 0
    """Label tokens whose logits exist at one time; 0 is all."""
    averages_on_device: bool = False
    """A moving average of the weights lies beside them."""
    validates: bool = True
    eval_batch_size: int = 1
    num_beams: int = 1
    num_processes: int = 1
    shard: str = "none"
    """`zero2`, `zero3`: all is cut over the processes; `deepspeed_zero1`, `deepspeed_zero2`: moments are."""
    device: Literal["cuda", "cpu"] = "cuda"

    @property
    def num_shards(self) -> int:
        """Pieces that weights and gradients are cut into; by DeepSpeed neither is, for each backward has them whole."""
        return self.num_processes if self.shard in ("zero2", "zero3") else 1

    @property
    def num_moment_shards(self) -> int:
        """Pieces that moments are cut into; by DeepSpeed they alone, and a copy of the weights beside them."""
        return 1 if self.shard == "none" else self.num_processes

    @property
    def width(self) -> int:
        """D."""
        return int(self.config.d_model)

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.config.vocab_size)

    @property
    def encoder_ffn(self) -> int:
        """Width of the encoder's feed-forward."""
        return int(self.config.encoder_ffn_dim)

    @property
    def decoder_ffn(self) -> int:
        """Width of the decoder's feed-forward."""
        return int(self.config.decoder_ffn_dim)

    @property
    def is_autocast(self) -> bool:
        """True if matmuls run on half-precision copies of their inputs."""
        return self.precision in ("fp16", "bf16")

    @property
    def compute_bytes(self) -> int:
        """Bytes of an element that matmuls read and write."""
        return 2 if self.precision in HALF_MODES else 4

    @property
    def stream_bytes(self) -> int:
        """Bytes of an element of the residual stream.

        Half-precision position tables keep it in half precision, unless they are of the other kind: FP16 positions
        added to a BF16 convolution make FP32.
        """
        if self.precision == "bf16_pure":
            return 2
        is_half_base = self.finetune.name == "lora" and self.finetune.base_dtype != "fp32"
        return 2 if is_half_base and self.precision == "fp16" else 4

    @property
    def num_positions(self) -> int:
        """S, encoder positions of the window."""
        return self.num_frames // 2

    @property
    def encoder_learns(self) -> bool:
        """True if gradients flow through the encoder."""
        return self.finetune.name != "frozen_encoder"

    @property
    def global_batch_size(self) -> int:
        """Clips of one update, over all processes."""
        return self.micro_batch_size * self.accumulation_steps * self.num_processes

    def changed(self, **values: object) -> Workload:
        """Return it with other values."""
        return dataclasses.replace(self, **values)  # type: ignore[arg-type]


def workloads_of(
    settings: TrainSettings,
    config: WhisperConfig,
    *,
    precision: str,
    label_tokens: int,
    device: Literal["cuda", "cpu"],
    num_processes: int = 1,
    shard: str = "none",
) -> list[Workload]:
    """Return what a training puts on its device, once for each window edge that it uses.

    Args:
        settings: of the run, its micro-batch resolved.
        config: of its model.
        precision: resolved for the device.
        label_tokens: to count with; cut to the positions that the model has.
        device: kind of device.
        num_processes: processes that train together.
        shard: how weights are cut over them.
    """
    trainer = settings.trainer
    edges_s = sorted({*settings.window.edges_s, *((30.0,) if settings.window.full_share > 0 else ())})
    max_frames = 2 * config.max_source_positions
    found = []
    for edge_s in edges_s:
        num_frames = min(max_frames, 2 * math.ceil(edge_s * FRAMES_PER_S / 2))
        clips = trainer.clips
        if trainer.micro_batch_audio_s is not None:
            clips = max(1, min(clips, int(trainer.micro_batch_audio_s * FRAMES_PER_S) // num_frames))
        found.append(
            Workload(
                config=config,
                finetune=settings.finetune,
                precision=precision,
                optimizer=settings.optimizer.name,
                micro_batch_size=clips,
                accumulation_steps=trainer.accumulation_steps,
                num_frames=num_frames,
                label_tokens=min(label_tokens, config.max_target_positions),
                checkpoint_every_layers=trainer.checkpoint_every_layers if trainer.gradient_checkpointing else 0,
                checkpoint_offload=trainer.checkpoint_offload,
                loss_chunk_tokens=trainer.loss_chunk_tokens,
                averages_on_device=trainer.ema_decay > 0 and trainer.ema_device != "cpu",
                validates=trainer.eval_every_steps > 0,
                eval_batch_size=trainer.eval_batch_size,
                num_beams=settings.decoding.num_beams,
                num_processes=num_processes,
                shard=shard,
                device=device,
            )
        )
    return found
