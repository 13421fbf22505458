"""Fine-tune Whisper, and export the best weights in FP16.

accelerate launch scripts/train.py                                          the built-in demo
accelerate launch scripts/train.py model=large_v3 dataset=manifest dataset.train=my.jsonl finetune=lora
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig

from data.augment import Augmentation
from data.label_modes import LabelSettings
from data.settings import DatasetSettings
from infer.decoding import DecodeSettings
from scripts.settings import SettingsError, build, entry_point, to_plain
from scripts.sweep import is_job, run_job, sweeping
from scripts.troubleshooting import with_link
from train.adapters import FinetuneSettings
from train.model import ModelSettings
from train.optim import OptimizerSettings
from train.precision import PrecisionSettings
from train.schedule import ScheduleSettings
from train.settings import FeatureSettings, RunSettings, TrainerSettings, TrainSettings, WindowSettings
from train.tracking import TrackerSettings

GROUPS = {
    "model": ModelSettings,
    "dataset": DatasetSettings,
    "labels": LabelSettings,
    "window": WindowSettings,
    "features": FeatureSettings,
    "augment": Augmentation,
    "precision": PrecisionSettings,
    "finetune": FinetuneSettings,
    "optimizer": OptimizerSettings,
    "schedule": ScheduleSettings,
    "trainer": TrainerSettings,
    "decoding": DecodeSettings,
    "tracker": TrackerSettings,
    "run": RunSettings,
}


def build_settings(config: DictConfig) -> TrainSettings:
    """Check a composed configuration into the settings of a run.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value.
    """
    plain = to_plain(config)
    plain.pop("recommended")
    return settings_from_plain(plain)


def settings_from_plain(plain: dict[str, Any]) -> TrainSettings:
    """Check the plain values of a configuration, such as the `config.yaml` of a run."""
    unknown = sorted(plain.keys() - GROUPS.keys())
    if unknown:
        raise SettingsError(f"unknown group {unknown[0]}; known are {', '.join(GROUPS)}")
    groups = {name: build(cls, plain[name], path=name) for name, cls in GROUPS.items()}  # type: ignore[arg-type,var-annotated]
    return TrainSettings(**groups, config=plain)


@entry_point("train", around=lambda: sweeping("train"))
def main(config: DictConfig) -> int:
    """Train; with -m once for each combination of values."""
    return run_job(config, train_once) if is_job() else train_once(config)


def train_once(config: DictConfig) -> int:
    """Train; return the exit code, as docs/running.md lists them."""
    from train.run import run_training
    from train.signals import EXIT_PROCESSES, EXIT_STORAGE, PeerError, StorageError

    try:
        result = run_training(build_settings(config))
    except (StorageError, PeerError) as e:
        print(f"error: {with_link(str(e))}", file=sys.stderr)
        return EXIT_STORAGE if isinstance(e, StorageError) else EXIT_PROCESSES
    if result.exit_code:
        print(f"stopped at step {result.step}; the same command goes on from there")
        return result.exit_code
    if result.export_dir is not None:  # written by one of the processes
        print(f"artefact: {result.export_dir}")
        print(f"score it: python scripts/evaluate.py artefact={result.export_dir} dataset=manifest dataset.test=...")
    return 0


if __name__ == "__main__":
    main()
