"""What an evaluation found, and where it is written: a report an artefact, one comparison, and the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data.sources import Source
from infer.artefact import amend_record
from infer.score.contest import Duel, Entry, Forgetting
from infer.score.page.page import PageSettings, write_page
from infer.score.report import write_report
from infer.score.sets import HeldOutSet
from scripts.evaluate_settings import EvaluateSettings
from train.tracked_report import track_report


@dataclass(frozen=True)
class Findings:
    """What a whole command found."""

    entries: tuple[Entry, ...]
    reports: tuple[Path, ...]
    duels: tuple[Duel, ...]
    forgetting: tuple[Forgetting, ...]
    page: Path | None


def write_all(
    settings: EvaluateSettings,
    findings: Findings,
    folder: Path,
    sets: Sequence[HeldOutSet],
    sources: Sequence[Source],
    targets: set[str],
) -> Findings:
    """Write and track everything, and return the findings with where it stands.

    Args:
        settings: what was evaluated.
        findings: what was found.
        folder: of the reports; of several artefacts each has one of its own below it.
        sets: that were transcribed.
        sources: where they came from.
        targets: languages and sets that the training was for.
    """
    facts = _facts(settings, sources)
    reports = []
    for path, entry in zip(settings.artefact, findings.entries, strict=True):
        own = folder if len(findings.entries) == 1 else folder / entry.name
        reports.append(_write(entry, own, facts))
        if settings.report.record:
            recorded = {"overall": entry.score.overall, "languages": entry.score.languages}
            amend_record(Path(path), evaluation={**recorded, **facts, "artefact_sha256": entry.artefact["sha256"]})
    if findings.duels:
        comparison = {
            "duels": [duel.describe() for duel in findings.duels],
            "retention": [lost.describe() for lost in findings.forgetting],
            "settings": {**facts, "targets": sorted(targets)},
        }
        text = json.dumps(comparison, ensure_ascii=False, indent=2, allow_nan=False)
        (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")
    page = None
    if settings.report.html:
        page = write_page(
            folder,
            findings.entries,
            findings.duels,
            findings.forgetting,
            rows={row.id: row for held_out in sets for row in held_out.rows},
            settings=PageSettings(max_clips=settings.report.max_clips, max_mib=settings.report.max_mib),
        )
    track_report(
        settings.tracker, folder, findings.entries, findings.duels, findings.forgetting, page=page, config=facts
    )
    return replace(findings, reports=tuple(reports), page=page)


def _write(entry: Entry, folder: Path, facts: dict[str, Any]) -> Path:
    """Write the report over all sets, and where there are several, one of each below `sets/`."""
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
