"""Judge an artefact and what was made of it on held-out clips: a table of runtimes, and a verdict with reasons.

python scripts/gate.py artefact=runs/demo/export masters=runs/demo/export-fp32 dataset.test=test.jsonl
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from data.settings import DatasetSettings
from data.sources import Source
from infer.artefact import RECORD_NAME
from infer.clients.client import CLIENTS
from infer.decode_settings import DecodeSettings
from infer.doctor.folder import Weights
from infer.export.card import write_card
from infer.export.hub import HubSettings, push_folder
from infer.gate.gate import run_gate
from infer.gate.publish import Published, publish, write_record
from infer.gate.runtimes import Candidate
from infer.gate.settings import GateSettings
from infer.gate.tables import remarks, render_parity, render_runtimes
from infer.score.held_out import read_held_out
from infer.transcriber import best_device
from scripts.settings import build, entry_point, to_plain

TABLE_WIDTH = 160


@dataclass(frozen=True)
class MadeFormat:
    """A format that was made of the artefact."""

    format: str
    path: str
    stored: str = "float16"

    def __post_init__(self) -> None:
        known = sorted({kind.format for kind in CLIENTS.values()})
        if self.format not in known:
            raise ValueError(f"formats: {self.format} must be one of {', '.join(known)}")


@dataclass(frozen=True)
class ReportFolder:
    """The `report` group."""

    dir: str | None = None


@dataclass(frozen=True)
class GateRequest:
    """One judgement."""

    artefact: str
    dataset: DatasetSettings
    """Only `test` is looked at."""
    decoding: DecodeSettings
    gate: GateSettings
    masters: str | None = None
    formats: tuple[MadeFormat, ...] = ()
    reject: bool = False
    force: bool = False
    report: ReportFolder = field(default_factory=ReportFolder)
    hub: HubSettings = field(default_factory=HubSettings)

    def __post_init__(self) -> None:
        if self.force and not self.reject:
            raise ValueError("force=true marks what reject=true would move; type both, or neither")

    def candidates(self) -> list[Candidate]:
        """Return the artefact and every other format, by the name of its file or folder."""
        made = [Candidate(Path(m.path).name, m.format, m.stored, Path(m.path)) for m in self.formats]
        return [Candidate("hf", "hf", "float16", Path(self.artefact)), *made]


def build_settings(config: DictConfig) -> GateRequest:
    """Check a composed configuration.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value.
    """
    return build(GateRequest, to_plain(config), path="gate")


def judge(
    artefact: Path,
    candidates: Sequence[Candidate],
    sources: Sequence[Source],
    decoding: DecodeSettings,
    settings: GateSettings,
    *,
    masters: Mapping[str, Tensor] | None,
    console: Console,
) -> dict[str, Any]:
    """Run the gate, show what it found, and return its record.

    Raises:
        ValueError: for a set that cannot be used whole.
    """
    rows = read_held_out(sources)
    with tempfile.TemporaryDirectory(prefix="gate-") as scratch, console.status("the gate") as status:
        record = run_gate(
            artefact,
            candidates,
            rows,
            decoding,
            settings,
            scratch=Path(scratch),
            masters=masters,
            device=best_device(),
            on_step=lambda step: status.update(f"the gate: {step}"),
        )
    show(record, console)
    return record


def show(record: Mapping[str, Any], console: Console) -> None:
    """Print both tables and what missed."""
    console.print(render_parity(record))
    if record["runtimes"]:
        console.print(render_runtimes(record))
    for line in remarks(record):
        console.print(line, highlight=False, soft_wrap=True)
    for miss in record["misses"]:
        console.print(f"missed: {miss['part']}: {miss['sentence']}", style="red", highlight=False, soft_wrap=True)


def finish(
    artefact: Path | None,
    record: Mapping[str, Any],
    done: Published,
    *,
    report_dir: Path,
    training: Mapping[str, Any] | None,
    hub: HubSettings,
    console: Console,
) -> int:
    """Write the record and the card, push where asked, say where everything went, and return the exit code.

    Args:
        artefact: where the artefact is now, published or rejected; None where it was not exported.
        record: of the gate.
        done: what went where.
        report_dir: for `gate.json` and `gate.md`.
        training: configuration of the run, for the card.
        hub: whether to push.
        console: where it is said.

    Raises:
        RuntimeError: if what was rejected is to be pushed, or the hub refuses.
    """
    table = write_record(report_dir, record)
    if artefact is not None and (artefact / RECORD_NAME).is_file():
        write_card(artefact, training=training, gate={**record, "forced": done.is_forced}, license_name=hub.license)
    for name, path in done.published.items():
        console.print(f"published: {name}: {path}", soft_wrap=True, highlight=False)
    for name, path in done.rejected.items():
        console.print(f"rejected: {name}: {path}; force=true publishes it with a mark", soft_wrap=True, style="red")
    console.print(f"table: {table}", soft_wrap=True, highlight=False)
    if hub.push:
        if artefact is None or "hf" in done.rejected or (record["verdict"] != "passed" and not done.is_forced):
            raise RuntimeError("what missed its tolerance is not pushed; mend it, or type force=true")
        pushed = push_folder(artefact, hub)
        console.print(f"pushed: {pushed.repo}, {len(pushed.files)} files, {len(pushed.kept_back)} kept back")
    return done.exit_code


@entry_point("gate")
def main(config: DictConfig) -> int:
    """Judge."""
    request = build_settings(config)
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    artefact = Path(request.artefact)
    candidates = request.candidates()
    record = judge(
        artefact,
        candidates,
        request.dataset.sources("test"),
        request.decoding,
        request.gate,
        masters=None if request.masters is None else Weights.open(Path(request.masters)),
        console=console,
    )
    missed = record["verdict"] != "passed"
    done = Published({c.name: c.path for c in candidates}, {}, False)
    if request.reject:
        places = {c.name: c.path for c in candidates}
        done = publish(candidates, places, record, artefact=artefact, force=request.force)
    place = done.rejected.get("hf", artefact)
    report_dir = place if request.report.dir is None else Path(request.report.dir)
    code = finish(
        place, record, done, report_dir=report_dir, training=read_training(artefact), hub=request.hub, console=console
    )
    return max(code, int(missed))


def read_training(artefact: Path) -> dict[str, Any] | None:
    """Return the configuration of the run that an artefact lies in, or None."""
    file = artefact.absolute().parent / "config.yaml"
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))  # a run writes its YAML as JSON
    except ValueError:
        return None
    return found


if __name__ == "__main__":
    main()
