"""What an export is asked: of what, in which formats, where it goes, and how it is judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from data.settings import DatasetSettings
from infer.decode_settings import DecodeSettings
from infer.export.formats import FormatOptions, name_result, verify_formats
from infer.export.hub import HubSettings
from infer.gate.settings import GateSettings
from train.export import DTYPES


@dataclass(frozen=True)
class FinishedRun:
    """The `run` group."""

    dir: str | None = None


@dataclass(frozen=True)
class TargetSettings:
    """The `export` group."""

    dir: str | None = None
    """Null: `exports/` beside the artefact of a run, else `runs/exports-NAME`."""
    dtype: str | None = None
    """Another way to write `options.hf.dtype`."""
    step: int | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"export.dtype={self.dtype} must be one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class ExportSettings:
    """One export."""

    run: FinishedRun
    export: TargetSettings
    formats: tuple[str, ...] = ("hf",)
    artefact: str | None = None
    options: FormatOptions = field(default_factory=FormatOptions)
    gate: GateSettings = field(default_factory=lambda: GateSettings(enabled=False))
    dataset: DatasetSettings | None = None
    """Only `test` is looked at; the clips of the gate."""
    decoding: DecodeSettings = field(default_factory=DecodeSettings)
    """The profile that every runtime is given."""
    masters: str | None = None
    """FP32 weights of an artefact; of a run they are made."""
    force: bool = False
    """Publish what misses its tolerance, with a mark."""
    hub: HubSettings = field(default_factory=HubSettings)

    def __post_init__(self) -> None:
        verify_formats(self.formats)
        if (self.artefact is None) == (self.run.dir is None):
            raise ValueError("give one of artefact= (a Whisper folder) and run.dir= (a run of ours)")
        if self.artefact is not None and self.export.step is not None:
            raise ValueError(f"export.step={self.export.step} needs run.dir=; an artefact has no checkpoints")
        if self.artefact is not None and "adapter" in self.formats:
            raise ValueError("formats=adapter needs run.dir=; in an artefact the adapters are merged")
        if self.hub.push and ("hf" not in self.formats or not self.is_judged):
            raise ValueError("hub.push=true pushes what passed the gate; type formats=[hf] gate.enabled=true")

    @property
    def is_judged(self) -> bool:
        """Whether the gate is asked; weights in FP32 alone are there to compare with."""
        return self.gate.enabled and (self.formats != ("hf",) or self.resolved_options().hf.dtype == "fp16")

    def resolved_options(self) -> FormatOptions:
        """Return the options, with `export.dtype` in its place."""
        if self.export.dtype is None:
            return self.options
        return dataclasses.replace(self.options, hf=dataclasses.replace(self.options.hf, dtype=self.export.dtype))

    def folder(self) -> Path:
        """Return the folder that the results go into."""
        if self.export.dir is not None:
            return Path(self.export.dir).expanduser().absolute()
        if self.run.dir is not None:
            return Path(self.run.dir).expanduser().absolute() / "exports"
        artefact = Path(str(self.artefact)).expanduser().absolute()
        if (artefact.parent / "config.yaml").is_file():
            return artefact.parent / "exports"
        return (Path("runs") / f"exports-{artefact.name}").absolute()

    def target(self, name: str) -> Path:
        """Return where a format goes; `hf` alone is `export.dir` itself."""
        if self.formats == ("hf",) and self.export.dir is not None:
            return self.folder()
        return self.folder() / name_result(name, self.resolved_options())
