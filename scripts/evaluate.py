"""Score held-out sets through artefacts: tables, `report.json`, `predictions.jsonl` and `report.html`.

python scripts/evaluate.py artefact=runs/demo/export dataset=manifest dataset.test=test.jsonl
python scripts/evaluate.py artefact=[base,runs/a/export] dataset.test=[new.jsonl,old.jsonl] retention.targets=[new]
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from infer.artefact import load_artefact
from infer.score.contest import Entry, find_forgetting, hold_duels, render_contest
from infer.score.evaluation import Prediction, Score, score_predictions
from infer.score.held_out import transcribe_rows, verify_task
from infer.score.levels import with_levels
from infer.score.metrics import compute_named_metrics
from infer.score.report import render_table
from infer.score.sets import HeldOutSet, name_artefacts, read_sets, verify_targets
from infer.score.sharing import Share
from infer.transcriber import Transcriber, best_device
from scripts.evaluate_reports import Findings, report_dir, write_all
from scripts.evaluate_settings import EvaluateSettings
from scripts.settings import build, entry_point, to_plain


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
    """Evaluate one artefact and return its score over all sets.

    Raises:
        ValueError: for a set or an artefact that cannot be used whole.
    """
    found = evaluate_all(settings, console=console)
    return Evaluation(found.entries[0].score, found.entries[0].predictions, found.reports[0])


def evaluate_all(settings: EvaluateSettings, *, console: Console, share: Share | None = None) -> Findings:
    """Transcribe every set through every artefact, score them and write the reports.

    Args:
        settings: what to evaluate.
        console: where it is said.
        share: what this process takes of each set; the first process writes.

    Raises:
        ValueError: for a set or an artefact that cannot be used whole.
    """
    share = share or Share()
    sources = settings.sources()
    sets = read_sets(sources)
    names = name_artefacts(settings.artefact)
    targets = find_targets(settings, [s.name for s in sets])
    verify_targets(targets, sets)
    for held_out in sets:
        verify_task(held_out.rows, settings.decoding.task)
    folder = report_dir(settings, names)
    entries = []
    for path, name in zip(settings.artefact, names, strict=True):
        own = folder if len(names) == 1 else folder / name
        entries.append(_evaluate_one(settings, path, name, sets, console=console, share=share, folder=own))
    bootstrap = settings.scoring.bootstrap
    duels = hold_duels(entries, bootstrap)
    forgetting = (
        find_forgetting(entries, targets=targets, max_forgetting=settings.retention.max_forgetting, bootstrap=bootstrap)
        if targets
        else []
    )
    findings = Findings(tuple(entries), (), tuple(duels), tuple(forgetting), None)
    return findings if share.rank else write_all(settings, findings, folder, sets, sources, targets)


def find_targets(settings: EvaluateSettings, names: Sequence[str]) -> set[str]:
    """Return what the training was for: what was named, or `dataset.test` where `retention.sets` are given."""
    num_tested = len(settings.dataset.sources("test"))
    named = set(settings.retention.targets)
    return named or (set(names[:num_tested]) if settings.retention.sets else set())


def _evaluate_one(
    settings: EvaluateSettings,
    path: str,
    name: str,
    sets: Sequence[HeldOutSet],
    *,
    console: Console,
    share: Share,
    folder: Path,
) -> Entry:
    artefact = load_artefact(path, compute=settings.infer.compute, device=_device(share))
    console.print(
        f"{artefact.path}: stored in {artefact.stored}, computing in {artefact.compute} on {artefact.model.device} "
        f"({artefact.reason}); sha256 {artefact.sha256[:12]}",
        highlight=False,
    )
    transcriber = Transcriber(
        artefact,
        settings.decoding,
        batch_size=settings.infer.batch_size,
        batch_audio_s=settings.infer.batch_audio_s,
    )
    transcriber.warm_up()
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
                share=share,
                partial_dir=folder if artefact.sha256 else None,  # what was heard so far is kept if this is stopped
            )
            if settings.scoring.levels and share.rank == 0:
                found = with_levels(found, held_out.rows)
            if len(sets) > 1:
                scores[held_out.name] = score_predictions(
                    found, processing_s=processing_s, bootstrap=settings.scoring.bootstrap
                )
            predictions += found
            times_s.append(processing_s)
    score = score_predictions(predictions, processing_s=math.fsum(times_s), bootstrap=settings.scoring.bootstrap)
    score.overall.update(compute_named_metrics(settings.scoring.metrics, predictions))
    return Entry(name, artefact.describe(), score, scores or {sets[0].name: score}, tuple(predictions))


def _device(share: Share) -> torch.device:
    if share.world_size > 1 and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", share.rank)))
    return best_device()


def find_share() -> Share:
    """Return what this process takes where `accelerate launch` or torchrun started several, else all."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Share()
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    return Share(state.process_index, state.num_processes, gather=lambda item: list(gather_object([item])))


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
    share = find_share()
    console = Console(width=None if sys.stdout.isatty() else 100, quiet=share.rank > 0)
    findings = evaluate_all(build_settings(config), console=console, share=share)
    show(findings, console)
    for report in findings.reports:
        console.print(f"report: {report}", soft_wrap=True, highlight=False)
    if findings.page is not None:
        console.print(f"to look at: {findings.page}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    main()
