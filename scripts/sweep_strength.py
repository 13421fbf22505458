"""Show what a training taught and what it took, at several strengths between base and trained model; export one.

python scripts/sweep_strength.py run.dir=runs/demo dataset.test=new.jsonl retention.sets=[old.jsonl] export.dir=chosen
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.settings import DatasetSettings
from data.sources import Source
from infer.artefact import load_artefact
from infer.decoding import DecodeSettings
from infer.score.comparison import Retention, measure_retention
from infer.score.evaluation import Score, score_predictions
from infer.score.held_out import transcribe_rows
from infer.score.sets import HeldOutSet, read_sets
from infer.score.statistics import Comparison
from infer.transcriber import Transcriber, best_device
from scripts.evaluate_settings import InferSettings, RetentionSettings
from scripts.export import read_run
from scripts.settings import build, entry_point, to_plain
from train.strength import export_strength, load_endpoints, verify_strengths


@dataclass(frozen=True)
class SweptRun:
    """The `run` group."""

    dir: str
    step: int | None = None


@dataclass(frozen=True)
class ChosenSettings:
    """The `export` group."""

    dir: str | None = None
    strength: float | None = None


@dataclass(frozen=True)
class ReportFolder:
    """The `report` group."""

    dir: str | None = None


@dataclass(frozen=True)
class SweepSettings:
    """One sweep."""

    run: SweptRun
    strengths: tuple[float, ...]
    dataset: DatasetSettings
    """Only `test` is looked at."""
    decoding: DecodeSettings
    infer: InferSettings
    retention: RetentionSettings
    export: ChosenSettings
    report: ReportFolder
    weight: float = 1.0
    """Points of gain that a point of forgetting outweighs, when a strength is suggested."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 100:
            raise ValueError(f"weight={self.weight:g} must lie in 0 (forgetting costs nothing) to 100")
        verify_strengths(self.strengths)
        if 0.0 not in self.strengths or len(set(self.strengths)) < 2:
            raise ValueError(
                f"strengths={list(self.strengths)} must hold 0, the base that all others are compared with, and another"
            )
        if self.export.strength is not None and self.export.strength not in self.strengths:
            raise ValueError(
                f"export.strength={self.export.strength:g} must be one of strengths={list(self.strengths)}"
            )
        if not (self.retention.targets or self.retention.sets):
            raise ValueError(
                "nothing says what the training was for; type retention.sets=[OLD] or retention.targets=[de]"
            )

    def sources(self) -> tuple[Source, ...]:
        """Return the held-out sets, those of `retention.sets` last."""
        kept = dataclasses.replace(self.dataset, test=self.retention.sets).sources("test")
        return (*self.dataset.sources("test"), *kept)


@dataclass(frozen=True)
class Point:
    """One strength, scored against the base."""

    strength: float
    score: Score
    target: float
    """Mean headline rate over what the training was for."""
    kept: float | None
    """Mean headline rate over the rest."""
    retention: Retention

    @property
    def forgetting(self) -> float:
        """Rise of the mean headline rate over the rest; 0 where there is none."""
        mean = self.retention.forgetting
        return 0.0 if mean is None else mean.loss

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "strength": self.strength,
            "target": self.target,
            "kept": self.kept,
            "overall": self.score.overall,
            "languages": self.score.languages,
            **self.retention.describe(),
        }


def build_settings(config: DictConfig) -> SweepSettings:
    """Check a composed configuration.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value.
    """
    return build(SweepSettings, to_plain(config), path="sweep_strength")


def sweep(settings: SweepSettings, *, console: Console) -> tuple[list[Point], Point]:
    """Score every strength, write the report, export the chosen one; return all points and the suggested one.

    Raises:
        ValueError: for a set or a run that cannot be used whole.
        FileNotFoundError: if the run or its checkpoint is not there.
    """
    sets = read_sets(settings.sources())
    num_tested = len(settings.dataset.sources("test"))
    targets = set(settings.retention.targets) or {s.name for s in sets[:num_tested]}
    endpoints = load_endpoints(read_run(Path(settings.run.dir)), step=settings.run.step)
    scores: dict[float, Score] = {}
    with tempfile.TemporaryDirectory(prefix="strength-") as folder:
        for strength in sorted(set(settings.strengths)):
            with console.status(f"strength {strength:g}"):
                target = export_strength(endpoints, strength, Path(folder) / f"{strength:g}")
                scores[strength] = _score(settings, target, sets)
            console.print(f"strength {strength:g}: {100 * scores[strength].overall['headline']:.2f} %", highlight=False)
    points = [_point(strength, scores[0.0], score, targets) for strength, score in scores.items()]
    best = suggest(points, weight=settings.weight)
    folder_ = Path(settings.report.dir) if settings.report.dir is not None else Path(settings.run.dir) / "strength"
    folder_.mkdir(parents=True, exist_ok=True)
    _write(folder_, points, best, settings, targets)
    if settings.export.dir is not None:
        chosen = settings.export.strength if settings.export.strength is not None else best.strength
        export_strength(endpoints, chosen, Path(settings.export.dir))
        console.print(f"strength {chosen:g}, artefact: {settings.export.dir}", soft_wrap=True, highlight=False)
    return points, best


def suggest(points: Sequence[Point], *, weight: float) -> Point:
    """Return the strength whose gain is the largest when what it forgot is taken off, `weight` times.

    A limit on forgetting alone would give away most of a training for a tenth of a point; it is shown beside.
    """
    return min(points, key=lambda p: (p.target + weight * max(0.0, p.forgetting), p.strength))


def gentlest(points: Sequence[Point], *, max_forgetting: float) -> Point:
    """Return the strength that hears best what the training was for, among those that forget no more than is borne."""
    return min((p for p in points if p.forgetting <= max_forgetting), key=lambda p: (p.target, p.strength))


def _score(settings: SweepSettings, path: Path, sets: Sequence[HeldOutSet]) -> Score:
    artefact = load_artefact(path, compute=settings.infer.compute, device=best_device())
    transcriber = Transcriber(artefact, settings.decoding, batch_size=settings.infer.batch_size)
    found = [transcribe_rows(transcriber, held_out.rows, test_set=held_out.name) for held_out in sets]
    predictions = [p for part, _ in found for p in part]
    return score_predictions(predictions, processing_s=sum(seconds for _, seconds in found))


def _point(strength: float, base: Score, score: Score, targets: set[str]) -> Point:
    retention = measure_retention(base, score, targets=targets)
    kept = retention.forgetting
    rates = [c.after for c in retention.targeted.values()]
    return Point(strength, score, sum(rates) / len(rates), None if kept is None else kept.after, retention)


def render_points(points: Sequence[Point], best: Point, *, max_forgetting: float) -> Table:
    """Lay out one row per strength."""
    gentle = gentlest(points, max_forgetting=max_forgetting).strength
    table = Table(
        title=Text("Strength of the training: what it taught, what it took"),
        caption=Text(
            f"errors in %, less is better; *: suggested, {best.strength:g}; "
            f"the best that forgets {100 * max_forgetting:g} points at most: {gentle:g}"
        ),
    )
    for heading in ("strength", "target %", "kept %", "forgetting, points", "95 %", "lost"):
        table.add_column(heading, justify="left" if heading == "lost" else "right")
    for point in points:
        mean = point.retention.forgetting
        table.add_row(
            Text(f"{point.strength:g}{' *' if point is best else ''}", style="bold" if point is best else ""),
            Text(f"{100 * point.target:.2f}"),
            Text("–" if point.kept is None else f"{100 * point.kept:.2f}"),
            Text("–" if mean is None else f"{100 * mean.difference:+.2f}"),
            Text("–" if mean is None else _ends(mean)),
            Text(", ".join(point.retention.lost) or "–", style="red" if point.retention.lost else ""),
        )
    return table


def _ends(found: Comparison) -> str:
    return f"{100 * found.interval.low:+.2f} to {100 * found.interval.high:+.2f}"


def draw_points(points: Sequence[Point], best: Point, target: Path) -> Path:
    """Draw both rates over the strength as a PNG and return its path."""
    figure = Figure(figsize=(8, 4.6), dpi=120, layout="constrained")
    axis = figure.subplots()
    strengths = [p.strength for p in points]
    axis.plot(strengths, [100 * p.target for p in points], marker="o", color="#2f6f8f", label="what it was trained for")
    kept = [(p.strength, 100 * p.kept) for p in points if p.kept is not None]
    if kept:
        axis.plot(*zip(*kept, strict=True), marker="s", color="#b5442f", label="the rest")
    axis.axvline(best.strength, color="#22303c", linestyle=":", linewidth=1.4)
    axis.annotate(f" suggested: {best.strength:g}", (best.strength, axis.get_ylim()[1]), va="top", color="#22303c")
    axis.set(xlabel="strength: 0 is the base, 1 the trained model", ylabel="error, %")
    axis.set_ylim(bottom=0)
    axis.grid(color="#e6e9eb")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(target)
    return target


def _write(folder: Path, points: Sequence[Point], best: Point, settings: SweepSettings, targets: set[str]) -> None:
    record: Mapping[str, Any] = {
        "suggested": best.strength,
        "gentlest": gentlest(points, max_forgetting=settings.retention.max_forgetting).strength,
        "points": [point.describe() for point in points],
        "settings": {
            "run": settings.run.dir,
            "decoding": asdict(settings.decoding),
            "targets": sorted(targets),
            "max_forgetting": settings.retention.max_forgetting,
            "weight": settings.weight,
            "test": [source.path for source in settings.sources()],
        },
    }
    text = json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / "strength.json").write_text(text + "\n", encoding="utf-8")
    draw_points(points, best, folder / "strength.png")


@entry_point("sweep_strength")
def main(config: DictConfig) -> int:
    """Sweep."""
    console = Console()
    settings = build_settings(config)
    points, best = sweep(settings, console=console)
    console.print(render_points(points, best, max_forgetting=settings.retention.max_forgetting))
    folder = settings.report.dir or f"{settings.run.dir}/strength"
    console.print(f"report: {folder}/strength.json, strength.png", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    main()
