"""Score held-out sets through an artefact: a table, `report.json` and `predictions.jsonl`.

python scripts/evaluate.py artefact=runs/demo/export dataset=manifest dataset.test=test.jsonl
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.settings import DatasetSettings
from infer.artefact import amend_record, load_artefact
from infer.decoding import DecodeSettings
from infer.score.evaluation import Prediction, Score, score_predictions
from infer.score.held_out import read_held_out, transcribe_rows
from infer.score.metrics import compute_named_metrics
from infer.score.report import render_table, write_report
from infer.transcriber import Transcriber, best_device
from scripts.settings import build, entry_point, to_plain


@dataclass(frozen=True)
class InferSettings:
    """The `infer` group."""

    compute: str = "auto"
    batch_size: int = 32


@dataclass(frozen=True)
class ReportSettings:
    """The `report` group."""

    dir: str | None = None
    record: bool = False


@dataclass(frozen=True)
class ScoringSettings:
    """The `scoring` group."""

    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluateSettings:
    """One evaluation."""

    artefact: str
    dataset: DatasetSettings
    """Only `test` is looked at."""
    decoding: DecodeSettings
    scoring: ScoringSettings
    infer: InferSettings
    report: ReportSettings


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    score: Score
    predictions: tuple[Prediction, ...]
    report: Path


def build_settings(config: DictConfig) -> EvaluateSettings:
    """Check a composed configuration.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value.
    """
    return build(EvaluateSettings, to_plain(config), path="evaluate")


def evaluate_artefact(settings: EvaluateSettings, *, console: Console) -> Evaluation:
    """Transcribe the sets, score them and write the report.

    Raises:
        ValueError: for a set or an artefact that cannot be used whole.
    """
    rows = read_held_out(settings.dataset.sources("test"))
    artefact = load_artefact(settings.artefact, compute=settings.infer.compute, device=best_device())
    console.print(
        f"{artefact.path}: stored in {artefact.stored}, computing in {artefact.compute} on {artefact.model.device} "
        f"({artefact.reason}); sha256 {artefact.sha256[:12]}",
        highlight=False,
    )
    transcriber = Transcriber(artefact, settings.decoding, batch_size=settings.infer.batch_size)
    with Progress(
        TextColumn("transcribing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("transcribing", total=len(rows))
        predictions, processing_s = transcribe_rows(
            transcriber, rows, on_progress=lambda count: bar.advance(task, count)
        )
    score = score_predictions(predictions, processing_s=processing_s)
    score.overall.update(compute_named_metrics(settings.scoring.metrics, predictions))
    facts: dict[str, Any] = {
        "decoding": asdict(settings.decoding),
        "batch_size": settings.infer.batch_size,
        "test": [source.path for source in settings.dataset.sources("test")],
    }
    report = write_report(report_dir(settings), score, predictions, artefact=artefact.describe(), settings=facts)
    if settings.report.record:
        amend_record(artefact.path, evaluation={"overall": score.overall, "languages": score.languages, **facts})
    return Evaluation(score, tuple(predictions), report)


def report_dir(settings: EvaluateSettings) -> Path:
    """Return where the report goes."""
    if settings.report.dir is not None:
        return Path(settings.report.dir)
    artefact = Path(settings.artefact).absolute()
    if (artefact.parent / "config.yaml").is_file():
        return artefact.parent / "report"
    return Path("runs") / f"report-{artefact.name}"


@entry_point("evaluate")
def main(config: DictConfig) -> int:
    """Evaluate."""
    console = Console()
    evaluation = evaluate_artefact(build_settings(config), console=console)
    console.print(render_table(evaluation.score))
    console.print(f"report: {evaluation.report}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    main()
