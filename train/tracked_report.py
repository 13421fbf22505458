"""The tables of an evaluation in Weights & Biases: the same ones as in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infer.score.contest import Duel, Entry, Forgetting
from train.tracking import TrackerSettings, is_logged_in, without_secrets

Rows = list[list[Any]]
NUM_WORST = 50


def build_tables(
    entries: Sequence[Entry], duels: Sequence[Duel], forgetting: Sequence[Forgetting]
) -> dict[str, tuple[list[str], Rows]]:
    """Return head and rows of each table by its key."""
    languages: Rows = []
    confusion: Rows = []
    lengths: Rows = []
    worst: Rows = []
    for entry in entries:
        for part, score in {**entry.sets, "all": entry.score}.items():
            for code, figures in score.languages.items():
                low, high = figures["intervals"]["headline"] or (None, None)
                rates = [figures[key] for key in ("wer", "cer", "headline")]
                languages.append(
                    [
                        *(entry.name, part, code, figures["headline_metric"], *rates, low, high),
                        *(figures["language_accuracy"], figures["utterances"]),
                    ]
                )
        confusion += [
            [entry.name, spoken, detected, count]
            for spoken, found in entry.score.confusion.items()
            for detected, count in found.items()
        ]
        lengths += [
            [entry.name, row["low"], row["high"], row["utterances"], row["headline"]]
            for row in entry.score.error_by.get("duration_s", [])
        ]
        worst += [
            [entry.name, row["id"], row["language"], row["edits"], row["units"], row["reference"], row["hypothesis"]]
            for row in entry.score.worst[:NUM_WORST]
        ]
    changes: Rows = []
    for duel in duels:
        found = {**duel.overall.languages, **({"all": duel.overall.overall} if duel.overall.overall else {})}
        changes += [
            [duel.before, duel.after, code, c.before, c.after, c.difference, c.interval.low, c.interval.high, c.p]
            for code, c in found.items()
        ]
    kept: Rows = [
        [
            lost.after,
            name,
            c.before,
            c.after,
            c.difference,
            lost.retention.p_adjusted[name],
            name in lost.retention.lost,
        ]
        for lost in forgetting
        for name, c in lost.retention.kept.items()
    ]
    tables = {
        "languages": (
            ["artefact", "set", "language", "metric", "wer", "cer", "headline", "low", "high", "found", "utterances"],
            languages,
        ),
        "confusion": (["artefact", "spoken", "detected", "utterances"], confusion),
        "error_by_length": (["artefact", "from_s", "to_s", "utterances", "headline"], lengths),
        "worst": (["artefact", "id", "language", "edits", "units", "reference", "hypothesis"], worst),
        "changes": (
            ["before", "after", "language", "rate_before", "rate_after", "change", "low", "high", "p"],
            changes,
        ),
        "retention": (["artefact", "group", "rate_before", "rate_after", "change", "p_adjusted", "lost"], kept),
    }
    return {key: table for key, table in tables.items() if table[1]}


def track_report(
    settings: TrackerSettings,
    folder: Path,
    entries: Sequence[Entry],
    duels: Sequence[Duel],
    forgetting: Sequence[Forgetting],
    *,
    page: Path | None,
    config: Mapping[str, Any],
) -> None:
    """Send the tables and the page where a tracker is asked for; clips travel in the page only if `log_audio` is on.

    Args:
        settings: the `tracker` group.
        folder: of the report; an offline run is kept below it.
        entries: what was scored.
        duels: who is better.
        forgetting: what was lost.
        page: `report.html`.
        config: how it was decoded.
    """
    if settings.name == "none":
        return
    import wandb

    mode = settings.mode if settings.mode != "auto" else ("online" if is_logged_in() else "offline")
    run = wandb.init(
        project=settings.project,
        name=f"evaluate {' '.join(entry.name for entry in entries)}",
        job_type="evaluate",
        dir=str(folder),
        config=without_secrets({**config, "artefacts": [dict(entry.artefact) for entry in entries]}),
        mode="online" if mode == "online" else "offline",
        settings=wandb.Settings(silent=True, disable_git=True, x_disable_meta=True, disable_code=True),
    )
    for key, (head, rows) in build_tables(entries, duels, forgetting).items():
        run.log({f"evaluate/{key}": wandb.Table(columns=head, data=rows)})
    for entry in entries:
        for key in ("wer", "cer", "headline", "language_accuracy", "rtfx"):
            if entry.score.overall[key] is not None:
                run.summary[f"evaluate/{entry.name}/{key}"] = entry.score.overall[key]
    if page is not None and settings.log_audio:
        run.log({"evaluate/report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
    run.finish()
