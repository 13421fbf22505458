"""All that a training run is told, as plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.augment import Augmentation
from data.label_modes import LabelSettings
from data.settings import DatasetSettings
from data.windows import Windows, build_windows
from infer.decoding import DecodeSettings
from train.adapters import FinetuneSettings
from train.model import ModelSettings
from train.optim import OptimizerSettings
from train.precision import PrecisionSettings
from train.schedule import ScheduleSettings
from train.tracking import TrackerSettings


@dataclass(frozen=True)
class WindowSettings:
    """The `window` group."""

    name: str
    edges_s: tuple[float, ...]
    """Window lengths in seconds, rising to 30."""
    full_share: float = 0.0
    """Share of training updates at 30 s."""

    def __post_init__(self) -> None:
        self.windows()

    def windows(self) -> Windows:
        """Return the rule."""
        return build_windows(self.edges_s, full_share=self.full_share)


@dataclass(frozen=True)
class FeatureSettings:
    """The `features` group."""

    device: str = "cpu"
    """Who makes the log-mel features: `cpu`, the loader processes; `train`, the device that trains."""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "train"):
            raise ValueError(f"features.device={self.device} must be cpu or train")


SHARDS = ("auto", "none", "zero2", "zero3", "deepspeed_zero1", "deepspeed_zero2")


@dataclass(frozen=True)
class TrainerSettings:
    """The `trainer` group; counts of updates and clips."""

    max_steps: int
    micro_batch_size: int | Literal["auto"]
    """Clips in one forward on each device; `auto` takes as many as the plan of its memory allows."""
    accumulation_steps: int = 1
    global_batch_size: int | None = None
    """Clips of one update over all devices, which `micro_batch_size=auto` keeps; None where that is a number."""
    micro_batch_audio_s: float | None = None
    """Seconds of windows in one forward; then `micro_batch_size` is only the largest number of clips."""
    seed: int = 0
    eval_every_steps: int = 100
    save_every_steps: int = 500
    log_every_steps: int = 10
    eval_batch_size: int = 32
    patience: int = 0
    """Validations without a better score before the run ends; 0 never ends it early."""
    label_smoothing: float = 0.0
    loss_chunk_tokens: int = 512
    """Label tokens whose logits exist at one time; 0 is all of them."""
    gradient_checkpointing: bool = False
    checkpoint_every_layers: int = 1
    """With `gradient_checkpointing`: recompute every layer, every second one, ..."""
    checkpoint_offload: bool = False
    """With `gradient_checkpointing`: what enters recomputed layers waits in host memory."""
    compile: bool = False
    """Compile each layer: a minute or more at the start, once for each window length, then faster updates on CUDA."""
    ema_decay: float = 0.0
    """Of the moving average of the weights, which is then validated and exported; 0 switches it off."""
    ema_device: str = "auto"
    """`auto` beside the weights, or `cpu`."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept, besides the best."""
    save_in_background: bool = True
    """Write checkpoints beside the training, where the host's memory holds a copy. A run that is killed then loses
    `save_every_steps` updates and those made during one write, at most twice `save_every_steps`."""
    max_hours: float = 0.0
    """Hours of this start, after which the run is saved and stops; 0 sets no limit."""
    rank_timeout_s: float = 45.0
    """How long processes wait for one of them within an update before it counts as lost."""
    exchange_timeout_s: float | None = None
    """How long an exchange of gradients waits for a process; None is 4 times `rank_timeout_s`, with `compile` 10 times,
    since a process that compiles looks like one that hangs."""
    verify_ranks_every_steps: int = 500
    """Updates between two comparisons of all processes' weights; 0 is only at checkpoints."""
    shard: str = "auto"
    """`none`: every process holds all; `zero2`, `zero3`: all is cut over the cards (FSDP2); `deepspeed_zero1`,
    `deepspeed_zero2`: moments are; `auto`: as the launch file says."""
    num_workers: int | None = None
    """Processes that decode; None leaves two cores to the training, at most 8."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "micro_batch_size",
            "accumulation_steps",
            "global_batch_size",
            "checkpoint_every_layers",
            "log_every_steps",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)} must be 1 or more")
        for name in (
            "eval_every_steps",
            "save_every_steps",
            "verify_ranks_every_steps",
            "patience",
            "loss_chunk_tokens",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name}={getattr(self, name)} must be 0 (never) or more")
        if self.micro_batch_size == "auto" and self.global_batch_size is None:
            raise ValueError(
                "trainer.micro_batch_size=auto keeps the clips of an update: give trainer.global_batch_size="
            )
        if self.max_hours < 0:
            raise ValueError(f"trainer.max_hours={self.max_hours:g} must be 0 (no limit) or more")
        if self.rank_timeout_s <= 0:
            raise ValueError(f"trainer.rank_timeout_s={self.rank_timeout_s:g} must be above 0 seconds")
        if self.shard not in SHARDS:
            raise ValueError(f"trainer.shard={self.shard} must be one of {', '.join(SHARDS)}")
        if self.exchange_timeout_s is not None and self.exchange_timeout_s <= 0:
            raise ValueError(f"trainer.exchange_timeout_s={self.exchange_timeout_s:g} must be above 0 seconds, or null")
        if self.ema_device not in ("auto", "cpu"):
            raise ValueError(f"trainer.ema_device={self.ema_device} must be auto or cpu")

    @property
    def exchange_s(self) -> float:
        """Seconds that an exchange of gradients waits."""
        if self.exchange_timeout_s is not None:
            return self.exchange_timeout_s
        return (10.0 if self.compile else 4.0) * self.rank_timeout_s

    @property
    def clips(self) -> int:
        """Clips of one forward, once `auto` has become a number."""
        assert isinstance(self.micro_batch_size, int), "a run makes a plan of its memory before it opens its data"
        return self.micro_batch_size


@dataclass(frozen=True)
class RunSettings:
    """The `run` group."""

    name: str
    dir: str
    """Output folder."""
    resume: str = "auto"
    """`auto` goes on where a run in the folder stopped, `never` wants a new folder, else the path of a checkpoint."""
    overwrite: bool = False
    """Delete the run in the folder first."""
    inexact: bool = False
    """Go on with other settings, data or processes than before; the artefact then says that the run is not exact."""


@dataclass(frozen=True)
class TrainSettings:
    """One training run."""

    model: ModelSettings
    dataset: DatasetSettings
    labels: LabelSettings
    window: WindowSettings
    features: FeatureSettings
    augment: Augmentation
    precision: PrecisionSettings
    finetune: FinetuneSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    trainer: TrainerSettings
    decoding: DecodeSettings
    tracker: TrackerSettings
    run: RunSettings
    config: Mapping[str, Any]
    """The whole configuration as plain values, as it is kept beside the run."""

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.run.dir)
