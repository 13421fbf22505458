"""Export a finished run: again, in FP32 to compare with, or through the gate before others take it for the model.

python scripts/export.py run.dir=runs/demo export.dir=runs/demo/export-fp32 export.dtype=fp32
python scripts/export.py run.dir=runs/demo export.dir=runs/demo/published dataset.test=test.jsonl
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from data.settings import DatasetSettings
from infer.decode_settings import DecodeSettings
from infer.export.hub import HubSettings
from infer.gate.settings import GateSettings
from scripts.gated import export_through_gate
from scripts.settings import SettingsError, build, entry_point, to_plain
from scripts.train import settings_from_plain
from train.export import DTYPES, export_run
from train.settings import TrainSettings


@dataclass(frozen=True)
class FinishedRun:
    """The `run` group."""

    dir: str


@dataclass(frozen=True)
class TargetSettings:
    """The `export` group."""

    dir: str
    dtype: str = "fp16"
    step: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"export.dtype={self.dtype} must be one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class ExportSettings:
    """One export."""

    run: FinishedRun
    export: TargetSettings
    formats: tuple[str, ...] = ("hf",)
    gate: GateSettings = field(default_factory=lambda: GateSettings(enabled=False))
    """Judged where there are held-out clips."""
    dataset: DatasetSettings | None = None
    """Only `test` is looked at; without one, the gate takes the held-out sets of the run."""
    decoding: DecodeSettings = field(default_factory=DecodeSettings)
    force: bool = False
    """Publish what misses its tolerance, with a mark."""
    hub: HubSettings = field(default_factory=HubSettings)

    def __post_init__(self) -> None:
        if self.formats != ("hf",):
            raise ValueError(f"formats={list(self.formats)}: hf is the one that is built so far")


def export(settings: ExportSettings) -> Path:
    """Export and return the folder.

    Raises:
        FileNotFoundError: if the run or its checkpoint is not there.
    """
    target = settings.export
    return export_run(
        read_run(Path(settings.run.dir)),
        Path(target.dir),
        dtype=DTYPES[target.dtype],
        step=target.step,
    )


def read_run(run_dir: Path) -> TrainSettings:
    """Return the settings of a run, with its folder where it is now.

    Raises:
        FileNotFoundError: if the folder is no run.
        SettingsError: if its configuration cannot be read.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{run_dir} is no run: it has no config.yaml")
    plain = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    if not isinstance(plain, dict):
        raise SettingsError(f"{file} is not the configuration of a run")
    plain["run"] = {**plain["run"], "dir": str(run_dir)}
    return settings_from_plain({str(k): v for k, v in plain.items()})


@entry_point("export")
def main(config: DictConfig) -> int:
    """Export."""
    settings = build(ExportSettings, to_plain(config), path="export")
    if settings.gate.enabled and settings.export.dtype == "fp16":
        return export_through_gate(
            read_run(Path(settings.run.dir)),
            Path(settings.export.dir),
            step=settings.export.step,
            sources=() if settings.dataset is None else settings.dataset.sources("test"),
            decoding=settings.decoding,
            gate=settings.gate,
            force=settings.force,
            hub=settings.hub,
            console=Console(width=None if sys.stdout.isatty() else 160),
        )
    print(f"artefact: {export(settings)}")
    return 0


if __name__ == "__main__":
    main()
