"""After the verdict: what passed goes to its place, what missed to `rejected/` beside it, with the reason in it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.artefact import RECORD_NAME, amend_record
from infer.gate.gate import misses_of
from infer.gate.runtimes import Candidate
from infer.gate.tables import to_markdown
from infer.gate.verdict import reasons_for

REJECTED = "rejected"
COMPANIONS = (".tiktoken",)
"""Suffixes of what an export writes beside its file."""
KEPT_IN_MANIFEST = ("verdict", "misses", "clips", "tolerance", "long_form", "date")


@dataclass(frozen=True)
class Published:
    """Where everything went."""

    published: dict[str, Path]
    """By name of the candidate."""
    rejected: dict[str, Path]
    is_forced: bool
    """Whether something was published that missed."""

    @property
    def exit_code(self) -> int:
        """0 where everything passed; 1 where something was rejected, or published by force."""
        return 1 if self.rejected or self.is_forced else 0


def publish(
    candidates: Sequence[Candidate],
    targets: Mapping[str, Path],
    record: Mapping[str, Any],
    *,
    artefact: Path | None = None,
    force: bool = False,
) -> Published:
    """Move every candidate to its place, or to `rejected/` beside it.

    Args:
        candidates: as they were judged, on the disk of their places, or there already.
        targets: the place of each, by name; what stands there is replaced when the new one is whole.
        record: of the gate.
        artefact: the candidate whose figures the record holds; they go into its manifest.
        force: publish what missed, too, with a mark in the manifest.

    Raises:
        RuntimeError: if something cannot be moved.
    """
    published: dict[str, Path] = {}
    rejected: dict[str, Path] = {}
    is_forced = False
    for candidate in candidates:
        target = targets[candidate.name]
        reasons = reasons_for(candidate.name, misses_of(record))
        mark = {**{key: record[key] for key in KEPT_IN_MANIFEST if key in record}, "forced": bool(reasons) and force}
        if reasons and not force:
            place = target.parent / REJECTED / target.name
            _write_reason(candidate.path, reasons, record)
            _move(candidate.path, place)
            _move_companions(candidate.path, place)
            if candidate.path.with_name(_reason_name(candidate.path)).is_file():
                _move(candidate.path.with_name(_reason_name(candidate.path)), place.with_name(_reason_name(place)))
            rejected[candidate.name] = place
            continue
        is_forced = is_forced or bool(reasons)
        if (candidate.path / RECORD_NAME).is_file():
            is_judged = candidate.path == artefact and bool(record["evaluation"])
            evaluation = {"evaluation": record["evaluation"]} if is_judged else {}
            amend_record(candidate.path, gate=mark, **evaluation)
        _move(candidate.path, target)
        _move_companions(candidate.path, target)
        published[candidate.name] = target
    return Published(published, rejected, is_forced)


def _write_reason(path: Path, reasons: Sequence[str], record: Mapping[str, Any]) -> None:
    content = {"reasons": list(reasons), "clips": record["clips"], "date": record["date"]}
    file = path / "reason.json" if path.is_dir() else path.with_name(_reason_name(path))
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _reason_name(path: Path) -> str:
    return f"{path.name}.reason.json"


def _move(source: Path, target: Path) -> None:
    """Put a file or a folder in place of another; the old one is gone only when the new one stands there."""
    if source == target:
        return
    retired = target.with_name(f".old-{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            target.rename(retired)
        try:
            os.replace(source, target)
        except OSError:
            if retired.exists():
                retired.rename(target)
            raise
    except OSError as e:
        raise RuntimeError(f"cannot move {source} to {target}: {e.strerror or e}") from e
    shutil.rmtree(retired, ignore_errors=True)


def _move_companions(source: Path, target: Path) -> None:
    """Move what belongs to a file and lies beside it, such as the ranks of openai's; of a folder there is nothing."""
    if target.is_file():
        for suffix in COMPANIONS:
            if source.with_suffix(suffix).is_file():
                _move(source.with_suffix(suffix), target.with_suffix(suffix))


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write `gate.json` and `gate.md` into a folder, and return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / "gate.json").write_text(text + "\n", encoding="utf-8")
    file = folder / "gate.md"
    file.write_text(to_markdown(record), encoding="utf-8")
    return file
