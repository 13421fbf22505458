"""What the loop drives, built once by `train.assembly`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.optim import Optimizer

from data.dataset import Clips
from data.labels import LabelBuilder
from data.loaders import UpdateDataset
from data.reasons import Rejected
from data.streams import StreamDataset
from infer.encoder import WindowedWhisper
from train.ema import WeightAverage
from train.half import HalfCopy
from train.heartbeat import Heartbeat
from train.loss import TrainingObjective
from train.memory.device import PlanCheck
from train.ranks import Ranks
from train.saver import CheckpointSaver
from train.step import Updater
from train.tracking import Tracker


@dataclass(frozen=True)
class Parts:
    """Everything that a run is put together from."""

    accelerator: Accelerator
    whisper: WindowedWhisper
    objective: TrainingObjective
    optimizer: Optimizer
    updater: Updater
    average: WeightAverage | None
    refused: Sequence[Rejected]
    """Lines of the training sources that were left out when they were opened."""
    label_builder: LabelBuilder
    dataset: UpdateDataset | StreamDataset
    validation_clips: Clips | None
    half: HalfCopy
    trackers: Sequence[Tracker]
    run_dir: Path
    source: Mapping[str, str | None]
    """Where the weights came from."""
    identity: Mapping[str, Any]
    """By which a checkpoint knows its run again; see `train.identity`."""
    saver: CheckpointSaver | None
    """On the main process only."""
    ranks: Ranks
    heartbeat: Heartbeat
    matmul_flops_per_s: float | None = None
    """What the device was measured to do; None where it was not."""
    memory: PlanCheck | None = None
    """Holds the plan of its memory against what is measured."""
