"""What an evaluation is told, checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from data.settings import DatasetSettings
from data.sources import Source
from infer.decoding import DecodeSettings
from infer.score.statistics import BootstrapSettings
from train.tracking import TrackerSettings


@dataclass(frozen=True)
class InferSettings:
    """The `infer` group."""

    compute: str = "auto"
    batch_size: int = 32
    batch_audio_s: float | None = None
    """Seconds of windows decoded together, at most; None has no such limit."""


@dataclass(frozen=True)
class ReportSettings:
    """The `report` group."""

    dir: str | None = None
    record: bool = False
    html: bool = True
    max_clips: int = 20
    max_mib: float = 4.0

    def __post_init__(self) -> None:
        if self.max_clips < 0 or self.max_mib < 0:
            raise ValueError("report.max_clips and report.max_mib must be 0 or more")


@dataclass(frozen=True)
class RetentionSettings:
    """The `retention` group."""

    targets: tuple[str, ...] = ()
    """Languages, sets, or both, that the training was for."""
    sets: tuple[str | Source, ...] = ()
    """Held-out sets that it was not for."""
    max_forgetting: float = 0.005

    def __post_init__(self) -> None:
        if not 0 <= self.max_forgetting < 1:
            raise ValueError(f"retention.max_forgetting={self.max_forgetting} is a fraction, such as 0.005")


@dataclass(frozen=True)
class ScoringSettings:
    """The `scoring` group."""

    metrics: tuple[str, ...] = ()
    levels: bool = True
    """Measure loudness and noise of each clip, for error against them."""
    bootstrap: BootstrapSettings = field(default_factory=BootstrapSettings)


@dataclass(frozen=True)
class EvaluateSettings:
    """One evaluation."""

    artefact: tuple[str, ...]
    """Folders; the first is what the others are compared with."""
    dataset: DatasetSettings
    """Only `test` is looked at."""
    decoding: DecodeSettings
    scoring: ScoringSettings
    infer: InferSettings
    report: ReportSettings
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    tracker: TrackerSettings = field(default_factory=lambda: TrackerSettings(name="none"))

    def __post_init__(self) -> None:
        if not self.artefact:
            raise ValueError("artefact= names none; type artefact=runs/demo/export")
        asks_retention = bool(self.retention.targets or self.retention.sets)
        if asks_retention and len(self.artefact) < 2:
            raise ValueError("retention compares before with after; type artefact=[BEFORE,AFTER]")

    def sources(self) -> tuple[Source, ...]:
        """Return the held-out sets, those of `retention.sets` last."""
        kept = dataclasses.replace(self.dataset, test=self.retention.sets).sources("test")
        return (*self.dataset.sources("test"), *kept)
