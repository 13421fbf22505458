"""An export that is judged before it stands in its place: made beside it, moved there, or to `rejected/`."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data.sources import Source
from infer.artefact import RejectedError
from infer.decode_settings import DecodeSettings
from infer.doctor.folder import Weights
from infer.export.hub import HubSettings
from infer.gate.publish import REJECTED, publish
from infer.gate.runtimes import Candidate
from infer.gate.settings import GateSettings
from scripts.gate import finish, judge
from train.export import DTYPES, export_run
from train.settings import TrainSettings


def export_through_gate(
    run: TrainSettings,
    target: Path,
    *,
    step: int | None,
    sources: Sequence[Source],
    decoding: DecodeSettings,
    gate: GateSettings,
    force: bool,
    hub: HubSettings,
    console: Console,
    others: Mapping[str, tuple[Candidate, Path]] | None = None,
) -> int:
    """Export a run in FP16, judge it, publish or reject it, and return the exit code.

    The FP32 weights that it is held against are exported beside it for as long as that takes: they are read from the
    checkpoint, never from what is judged.

    Args:
        run: settings of the run.
        target: where the artefact goes.
        step: of the checkpoint; None takes the one that was exported.
        sources: held-out sets; none takes those of the run.
        decoding: the profile for every runtime.
        gate: what passes.
        force: publish what missed, with a mark.
        hub: whether to push.
        console: where it is said.
        others: further formats by name: what was made, and where it goes.

    Raises:
        FileNotFoundError: if the run is not finished, or has no such checkpoint.
        ValueError: if there are no held-out clips.
        RejectedError: if the weights do not fit FP16; the reason then stands in `rejected/`.
    """
    clips = sources or held_out_of(run)
    if not clips:
        raise ValueError("the gate needs held-out clips; type dataset.test=test.jsonl, or gate.enabled=false")
    staging = target.parent / f".gate-{target.name}-{uuid.uuid4().hex[:8]}"
    staging.mkdir(parents=True)
    try:
        console.print("exporting in FP16, and in FP32 to compare with", highlight=False)
        made = export_run(run, staging / target.name, dtype=DTYPES["fp16"], step=step)
        masters = export_run(run, staging / "masters", dtype=DTYPES["fp32"], step=step)
        candidates = [Candidate("hf", "hf", "float16", made)]
        targets = {"hf": target}
        for name, (candidate, place) in (others or {}).items():
            candidates.append(candidate)
            targets[name] = place
        record = judge(made, candidates, clips, decoding, gate, masters=Weights.open(masters), console=console)
        done = publish(candidates, targets, record, force=force)
    except RejectedError:
        _keep_reason(staging, target)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    place = done.rejected.get("hf", target)
    return finish(place, record, done, report_dir=None, training=_plain(run), hub=hub, console=console)


def held_out_of(run: TrainSettings) -> tuple[Source, ...]:
    """Return the test sets of a run, or where it has none, those that chose its best step."""
    return run.dataset.sources("test") or run.dataset.sources("validation")


def _plain(run: TrainSettings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(run.config, default=str))
    return found


def _keep_reason(staging: Path, target: Path) -> None:
    """Put the reason beside the target: what does not fit FP16 was never written."""
    reason = staging / REJECTED / "reason.json"
    if reason.is_file():
        place = target.parent / REJECTED
        place.mkdir(parents=True, exist_ok=True)
        shutil.move(str(reason), str(place / "reason.json"))
