"""The gate within an export: clips and masters are found, and all is judged where it was built, before it is moved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from data.sources import Source
from infer.decode_settings import DecodeSettings
from infer.doctor.folder import Weights
from infer.export.hub import HubSettings
from infer.gate.publish import publish
from infer.gate.runtimes import Candidate
from infer.gate.settings import GateSettings
from scripts.gate import finish, judge, read_training
from train.export import DTYPES, export_run
from train.settings import TrainSettings


def find_clips(given: Sequence[Source], run: TrainSettings | None, artefact: Path) -> tuple[Source, ...]:
    """Return the held-out sets that were given, else those of the run: its test sets, or what chose its best step.

    Args:
        given: of the command.
        run: that is exported, if it is one.
        artefact: whose run is looked for beside it.
    """
    if given:
        return tuple(given)
    if run is not None:
        return run.dataset.sources("test") or run.dataset.sources("validation")
    dataset = (read_training(artefact) or {}).get("dataset") or {}
    return tuple(
        Source(entry) for entry in dataset.get("test") or dataset.get("validation") or [] if isinstance(entry, str)
    )


def open_masters(
    run: TrainSettings | None, step: int | None, given: str | None, staged: Path
) -> Mapping[str, Tensor] | None:
    """Return the FP32 weights: of the run's checkpoint, never from what is judged; or of a folder; None if unknown.

    Args:
        run: that is exported, if it is one.
        step: of the checkpoint.
        given: a folder with FP32 weights.
        staged: where those of a run are kept for as long as the gate takes.
    """
    if run is not None:
        return Weights.open(export_run(run, staged / "masters", dtype=DTYPES["fp32"], step=step))
    return None if given is None else Weights.open(Path(given))


def judge_and_publish(
    artefact: Path,
    candidates: Sequence[Candidate],
    targets: Mapping[str, Path],
    clips: Sequence[Source],
    decoding: DecodeSettings,
    gate: GateSettings,
    *,
    masters: Mapping[str, Tensor] | None,
    run: TrainSettings | None,
    report_dir: Path,
    force: bool,
    hub: HubSettings,
    console: Console,
) -> int:
    """Judge what was built, move it to its place or to `rejected/`, and return the exit code.

    Args:
        artefact: in FP16, that all was made of.
        candidates: what was built, in the staging folder.
        targets: the place of each.
        clips: held-out sets.
        decoding: the profile for every runtime.
        gate: what passes.
        masters: FP32 weights, if they are known.
        run: for the card.
        report_dir: for `gate.json` and `gate.md`.
        force: publish what missed, with a mark.
        hub: whether to push.
        console: where it is said.
    """
    record = judge(artefact, candidates, clips, decoding, gate, masters=masters, console=console)
    done = publish(candidates, targets, record, artefact=artefact, force=force)
    training: dict[str, Any] | None = None if run is None else json.loads(json.dumps(run.config, default=str))
    return finish(
        done.rejected.get("hf") or done.published.get("hf"),
        record,
        done,
        report_dir=report_dir,
        training=training,
        hub=hub,
        console=console,
    )
