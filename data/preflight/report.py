"""The report on a corpus: verdict, findings and figures, as one record; and the files that it is written to."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.preflight.columns import CorpusScan
from data.preflight.figures import (
    QUANTITIES,
    describe_languages,
    describe_quantity,
    describe_splits,
    describe_windows,
)
from data.preflight.findings import LEVELS, Finding, where
from data.preflight.oddities import CHECKS, find_oddities
from data.preflight.overlap import find_overlaps
from data.preflight.unusable import find_unusable


@dataclass(frozen=True)
class ReportOptions:
    """What a corpus is judged by, beside itself."""

    edges_s: tuple[float, ...]
    """Window lengths of the model, in seconds, rising to 30."""
    full_share: float = 0.0
    """Share of training updates at 30 s."""
    speakers_disjoint: bool = False
    """The splits claim that they share no speaker."""
    on_bad: str = "quarantine"
    """What a training does with bad lines; see `data.ingest.admit`."""
    max_bad_share: float = 0.01
    """Share of bad lines or hours of a source above which a training stops."""


@dataclass(frozen=True)
class Report:
    """All that is said of a corpus."""

    scan: CorpusScan
    findings: tuple[Finding, ...]
    """Errors first, then warnings, then notes; within each the weightiest first."""
    record: dict[str, Any]
    """Everything in `report.json`."""

    @property
    def is_ready(self) -> bool:
        """True if nothing has to be mended first."""
        return not any(finding.level == "error" for finding in self.findings)


def build_report(scan: CorpusScan, options: ReportOptions) -> Report:
    """Judge a corpus.

    Args:
        scan: the corpus as it was found.
        options: what it is judged by.
    """
    found = [
        *find_unusable(scan, on_bad=options.on_bad, max_bad_share=options.max_bad_share),
        *find_overlaps(scan, speakers_disjoint=options.speakers_disjoint),
        *find_oddities(scan),
    ]
    findings = tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))
    splits = describe_splits(scan)
    durations_s = [split.figures["duration_s"][split.usable] for split in scan.splits if split.name == "train"]
    has_train = any(len(part) for part in durations_s)
    record: dict[str, Any] = {
        "verdict": _verdict(scan, findings),
        "totals": _totals(scan, splits),
        "splits": splits,
        "languages": describe_languages(scan),
        "windows": describe_windows(np.concatenate(durations_s), options.edges_s, full_share=options.full_share)
        if has_train
        else None,
        "overlap": _overlap_counts(scan, findings),
        "quantities": {name: describe_quantity(scan, name) for name in QUANTITIES},
        "findings": [finding.as_record() for finding in findings],
        "clean": _clean_checks(findings) if any(split.usable.any() for split in scan.splits) else [],
        "settings": {
            "edges_s": list(options.edges_s),
            "full_share": options.full_share,
            "speakers_disjoint": options.speakers_disjoint,
            "on_bad": options.on_bad,
            "max_bad_share": options.max_bad_share,
        },
    }
    return Report(scan, findings, record)


def _verdict(scan: CorpusScan, findings: Sequence[Finding]) -> dict[str, Any]:
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    purpose = "train" if any(split.name == "train" for split in scan.splits) else "score"
    if counts["error"]:
        level, headline = "not_ready", f"Not ready: {_number(counts['error'], 'thing')} to mend first"
    elif counts["warning"]:
        level, headline = "look", f"Ready to {purpose}, with {_number(counts['warning'], 'thing')} to look at"
    else:
        level, headline = "ready", f"Ready to {purpose}"
    return {"level": level, "headline": headline, **{f"{name}s": count for name, count in counts.items()}}


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _totals(scan: CorpusScan, splits: dict[str, Any]) -> dict[str, Any]:
    sums = {
        name: sum(split[name] for split in splits.values())
        for name in ("lines", "accepted", "quarantined", "rejected", "hours")
    }
    speakers = [np.unique(split.columns["speaker"][split.usable]) for split in scan.splits]
    languages = [np.unique(split.columns["language"][split.usable]) for split in scan.splits]
    joined = np.unique(np.concatenate([np.zeros(0, np.int32), *speakers]))
    return {
        **sums,
        "speakers": int((joined >= 0).sum()),
        "languages": len(np.unique(np.concatenate([np.zeros(0, np.int16), *languages]))),
        "measured": scan.num_measured,
    }


def _overlap_counts(scan: CorpusScan, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    counts = {finding.name: finding.count for finding in findings}
    kinds = ("pcm_leakage", "stretch_leakage", "recording_overlap", "speaker_overlap", "text_overlap")
    return [
        {
            "kept": kept.name,
            "held_out": held_out.name,
            "clips": int(held_out.usable.sum()),
            **{kind: counts.get(f"{kind}_{kept.name}_{held_out.name}", 0) for kind in kinds},
        }
        for kept, held_out in itertools.combinations(scan.splits, 2)
    ]


def _clean_checks(findings: Sequence[Finding]) -> list[str]:
    found = {finding.name for finding in findings}
    return [check.title for check in CHECKS if check.name not in found]


def write_report(report_dir: Path, report: Report) -> Path:
    """Write `report.json`, `quarantine.jsonl` and `findings.jsonl`, and return the path of the first.

    `quarantine.jsonl` has every line that cannot be used, with its reason; `findings.jsonl` every row of every finding.

    Raises:
        RuntimeError: if the folder cannot be written.
    """
    try:
        report_dir.mkdir(parents=True, exist_ok=True)
        write_lines(report_dir / "quarantine.jsonl", _quarantine_lines(report))
        write_lines(report_dir / "findings.jsonl", _finding_lines(report))
        text = json.dumps(report.record, indent=2, ensure_ascii=False, allow_nan=False)
        write_lines(report_dir / "report.json", iter([text]))
    except OSError as e:
        raise RuntimeError(
            f"the report cannot be written to {report_dir}: {e.strerror or e}; give another folder, report.dir=PATH"
        ) from e
    return report_dir / "report.json"


def write_lines(path: Path, lines: Iterator[str]) -> None:
    """Write lines beside the target and rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for line in lines:
                file.write(line + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


_dumps: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False).encode


def _quarantine_lines(report: Report) -> Iterator[str]:
    for split in report.scan.splits:
        for record in split.faults():
            yield _dumps({"split": split.name, **record.as_record()})


def _finding_lines(report: Report) -> Iterator[str]:
    for finding in report.findings:
        for name, indices in finding.places:
            for index in indices:
                row = report.scan[name].split.rows[int(index)]
                fields = {"finding": finding.name, "level": finding.level, "split": name, "id": row.id}
                place = {"where": where(row), "manifest": str(row.manifest), "line": row.line}
                yield _dumps({**fields, **place, "audio": str(row.audio), "text": row.text})
