"""Score held-out sets through artefacts: tables, `report.json`, `predictions.jsonl` and `report.html`.

python scripts/evaluate.py artefact=runs/demo/export dataset=manifest dataset.test=test.jsonl
python scripts/evaluate.py artefact=[base,runs/a/export] dataset.test=[new.jsonl,old.jsonl] retention.targets=[new]
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from data.settings import DatasetSettings
from data.sources import Source
from infer.artefact import amend_record, load_artefact
from infer.decoding import DecodeSettings
from infer.score.contest import Duel, Entry, Forgetting, find_forgetting, hold_duels, render_contest
from infer.score.evaluation import Prediction, Score, score_predictions
from infer.score.held_out import transcribe_rows
from infer.score.metrics import compute_named_metrics
from infer.score.page.page import PageSettings, write_page
from infer.score.report import render_table, write_report
from infer.score.sets import HeldOutSet, name_artefacts, read_sets
from infer.transcriber import Transcriber, best_device
from scripts.settings import build, entry_point, to_plain
from train.tracked_report import track_report
from train.tracking import TrackerSettings


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


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    score: Score
    predictions: tuple[Prediction, ...]
    report: Path


@dataclass(frozen=True)
class Findings:
    """What a whole command found."""

    entries: tuple[Entry, ...]
    reports: tuple[Path, ...]
    duels: tuple[Duel, ...]
    forgetting: tuple[Forgetting, ...]
    page: Path | None


def build_settings(config: DictConfig) -> EvaluateSettings:
    """Check a composed configuration.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value.
    """
    return build(EvaluateSettings, to_plain(config), path="evaluate")


def evaluate_artefact(settings: EvaluateSettings, *, console: Console) -> Evaluation:
    """Evaluate one artefact and return its score over all sets.

    Raises:
        ValueError: for a set or an artefact that cannot be used whole.
    """
    found = evaluate_all(settings, console=console)
    return Evaluation(found.entries[0].score, found.entries[0].predictions, found.reports[0])


def evaluate_all(settings: EvaluateSettings, *, console: Console) -> Findings:
    """Transcribe every set through every artefact, score them and write the reports.

    Raises:
        ValueError: for a set or an artefact that cannot be used whole.
    """
    sources = settings.sources()
    sets = read_sets(sources)
    names = name_artefacts(settings.artefact)
    targets = find_targets(settings, [s.name for s in sets])
    folder = report_dir(settings, names)
    entries, reports = [], []
    for path, name in zip(settings.artefact, names, strict=True):
        entry = _evaluate_one(settings, path, name, sets, console=console)
        entries.append(entry)
        reports.append(_write(settings, entry, folder if len(names) == 1 else folder / name, sources))
        if settings.report.record:
            recorded = {"overall": entry.score.overall, "languages": entry.score.languages}
            amend_record(Path(path), evaluation={**recorded, **_facts(settings, sources)})
    duels = hold_duels(entries)
    forgetting = (
        find_forgetting(entries, targets=targets, max_forgetting=settings.retention.max_forgetting) if targets else []
    )
    if duels:
        comparison = {
            "duels": [duel.describe() for duel in duels],
            "retention": [lost.describe() for lost in forgetting],
            "settings": {**_facts(settings, sources), "targets": sorted(targets)},
        }
        text = json.dumps(comparison, ensure_ascii=False, indent=2, allow_nan=False)
        (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")
    page = None
    if settings.report.html:
        page = write_page(
            folder,
            entries,
            duels,
            forgetting,
            rows={row.id: row for held_out in sets for row in held_out.rows},
            settings=PageSettings(max_clips=settings.report.max_clips, max_mib=settings.report.max_mib),
        )
    track_report(settings.tracker, folder, entries, duels, forgetting, page=page, config=_facts(settings, sources))
    return Findings(tuple(entries), tuple(reports), tuple(duels), tuple(forgetting), page)


def find_targets(settings: EvaluateSettings, names: Sequence[str]) -> set[str]:
    """Return what the training was for: what was named, or `dataset.test` where `retention.sets` are given."""
    num_tested = len(settings.dataset.sources("test"))
    named = set(settings.retention.targets)
    return named or (set(names[:num_tested]) if settings.retention.sets else set())


def _evaluate_one(
    settings: EvaluateSettings, path: str, name: str, sets: Sequence[HeldOutSet], *, console: Console
) -> Entry:
    artefact = load_artefact(path, compute=settings.infer.compute, device=best_device())
    console.print(
        f"{artefact.path}: stored in {artefact.stored}, computing in {artefact.compute} on {artefact.model.device} "
        f"({artefact.reason}); sha256 {artefact.sha256[:12]}",
        highlight=False,
    )
    transcriber = Transcriber(artefact, settings.decoding, batch_size=settings.infer.batch_size)
    scores: dict[str, Score] = {}
    predictions: list[Prediction] = []
    times_s: list[float] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        for held_out in sets:
            task = bar.add_task(f"transcribing {held_out.name}", total=len(held_out.rows))
            found, processing_s = transcribe_rows(
                transcriber,
                held_out.rows,
                test_set=held_out.name,
                on_progress=partial(bar.advance, task),
            )
            if len(sets) > 1:
                scores[held_out.name] = score_predictions(found, processing_s=processing_s)
            predictions += found
            times_s.append(processing_s)
    score = score_predictions(predictions, processing_s=math.fsum(times_s))
    score.overall.update(compute_named_metrics(settings.scoring.metrics, predictions))
    return Entry(name, artefact.describe(), score, scores or {sets[0].name: score}, tuple(predictions))


def _write(settings: EvaluateSettings, entry: Entry, folder: Path, sources: Sequence[Source]) -> Path:
    """Write the report over all sets, and where there are several, one of each below `sets/`."""
    facts = _facts(settings, sources)
    if len(entry.sets) > 1:
        for name, score in entry.sets.items():
            own = [p for p in entry.predictions if p.test_set == name]
            write_report(folder / "sets" / name, score, own, artefact=entry.artefact, settings={**facts, "set": name})
    return write_report(folder, entry.score, entry.predictions, artefact=entry.artefact, settings=facts)


def _facts(settings: EvaluateSettings, sources: Sequence[Source]) -> dict[str, Any]:
    return {
        "decoding": asdict(settings.decoding),
        "batch_size": settings.infer.batch_size,
        "test": [source.path for source in sources],
    }


def report_dir(settings: EvaluateSettings, names: Sequence[str]) -> Path:
    """Return where the report goes."""
    if settings.report.dir is not None:
        return Path(settings.report.dir)
    artefact = Path(settings.artefact[-1]).absolute()
    if len(names) == 1 and (artefact.parent / "config.yaml").is_file():
        return artefact.parent / "report"
    return Path("runs") / f"report-{'-'.join(names) if len(names) > 1 else artefact.name}"


def show(findings: Findings, console: Console) -> None:
    """Print the tables, who is better, and what was forgotten."""
    if len(findings.entries) == 1:
        console.print(render_table(findings.entries[0].score))
        for name, score in findings.entries[0].sets.items():
            if len(findings.entries[0].sets) > 1:
                console.print(render_table(score, title=f"Held-out set {name}"))
    else:
        console.print(render_contest(findings.entries, findings.duels))
        for duel in findings.duels:
            console.print(duel.sentence, highlight=False)
    for lost in findings.forgetting:
        if lost.is_too_much:
            console.print(Panel(Text(lost.sentence), title=f"WARNING: {lost.after} forgets", border_style="bold red"))
        else:
            console.print(f"{lost.after}: {lost.sentence}", highlight=False)


@entry_point("evaluate")
def main(config: DictConfig) -> int:
    """Evaluate."""
    console = Console()
    findings = evaluate_all(build_settings(config), console=console)
    show(findings, console)
    for report in findings.reports:
        console.print(f"report: {report}", soft_wrap=True, highlight=False)
    if findings.page is not None:
        console.print(f"to look at: {findings.page}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    main()
