"""The gate: what was exported, held against what was trained, before anybody can take it for the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.features import MAX_WINDOW_S
from data.rows import Row
from infer.artefact import load_artefact
from infer.decode_settings import DecodeSettings
from infer.gate.clips import GateClips, LongRecording, join_clips, open_long, write_clips
from infer.gate.parity import check_parity
from infer.gate.runtimes import Candidate, compare_runtimes
from infer.gate.settings import GateSettings
from infer.gate.timestamps import judge_times, read_long
from infer.gate.verdict import Miss

PASSED, MISSED = "passed", "missed"


def run_gate(
    artefact: Path,
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    decoding: DecodeSettings,
    settings: GateSettings,
    *,
    scratch: Path,
    masters: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Judge an artefact and all that was made of it.

    Args:
        artefact: in Hugging Face's format, stored in FP16.
        candidates: every exported format; the artefact is one of them.
        rows: held-out clips.
        decoding: the profile that all runtimes are given.
        settings: how many clips, and what passes.
        scratch: for clips, questions and answers.
        masters: FP32 weights, adapters merged, if they are known.
        device: where ours runs.
        on_step: told what is done next.

    Returns:
        The record, ready for JSON: `verdict`, `misses`, `parity`, `runtimes`, `windows`, `long_form`, `evaluation`,
        `clips`, `decoding`, `tolerance`, `settings`, `date`.

    Raises:
        ValueError: if there are no clips.
        AudioError: if one cannot be read.
    """
    on_step("writing the clips")
    clips = write_clips(rows, scratch / "clips", count=settings.clips)
    on_step("P1 to P5: every weight, a fresh process, half beside strict FP32, headroom, the manifest")
    parity = check_parity(artefact, clips, decoding, settings, scratch=scratch, masters=masters, device=device)
    misses = list(parity.misses)
    runtimes: list[dict[str, Any]] = []
    windows, long_form = None, None
    if parity.evaluation:  # else the artefact cannot even be loaded
        on_step("every runtime on the same clips")
        runtimes, missed, windows = compare_runtimes(
            artefact, candidates, clips, decoding, settings, scratch=scratch / "clients"
        )
        misses += missed
        on_step("a long recording by timestamps")
        long_form, missed = _long_form(artefact, clips, decoding, settings, device)
        misses += missed
    return {
        "verdict": MISSED if misses else PASSED,
        "misses": [miss.describe() for miss in misses],
        "parity": parity.figures,
        "runtimes": runtimes,
        "windows": windows,
        "long_form": long_form,
        "evaluation": parity.evaluation,
        "clips": {
            "sha256": clips.sha256,
            "clips": len(clips.rows),
            "audio_s": sum(row.duration_s or 0.0 for row in clips.rows),
        },
        "decoding": asdict(decoding),
        "tolerance": asdict(settings.tolerance),
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("tolerance", "enabled")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def misses_of(record: Mapping[str, Any]) -> list[Miss]:
    """Return what missed, of a record that may have been read back."""
    return [Miss(m["part"], m["sentence"], tuple(m["formats"])) for m in record["misses"]]


def _long_form(
    artefact: Path, clips: GateClips, decoding: DecodeSettings, settings: GateSettings, device: torch.device | str
) -> tuple[dict[str, Any], list[Miss]]:
    """Read a long recording with the artefact and with its base, and say what was lost."""
    recording = _recording(clips, settings)
    if recording.duration_s <= MAX_WINDOW_S:
        sentence = (
            f"not tried: the clips joined make {recording.duration_s:.0f} s, and a long recording is over "
            f"{MAX_WINDOW_S} s; give gate.long_recording=talk.wav, or more clips"
        )
        return {"sentence": sentence}, []
    loaded = load_artefact(artefact, device=device)
    tuned = read_long(loaded, recording, decoding, batch_size=settings.batch_size)
    base = None
    base_dir = _base_dir(loaded.record, settings)
    if base_dir is not None:
        base = read_long(load_artefact(base_dir, device=device), recording, decoding, batch_size=settings.batch_size)
    found = judge_times(tuned, base, tolerance=settings.tolerance.long_form_wer)
    found |= {"duration_s": recording.duration_s, "language": recording.language}
    if found["is_lost"] and not settings.tolerance.lost_timestamps:
        return found, [Miss("timestamps", f"{found['sentence']} (gate.tolerance.lost_timestamps=true lets it pass)")]
    return found, []


def _recording(clips: GateClips, settings: GateSettings) -> LongRecording:
    if settings.long_recording is not None:
        return open_long(Path(settings.long_recording))
    return join_clips(clips, long_s=settings.long_s)


def _base_dir(record: Mapping[str, Any], settings: GateSettings) -> Path | None:
    """Return the folder of the base, if it is on this machine."""
    if settings.base is not None:
        return Path(settings.base)
    path = (record.get("source") or {}).get("path")
    return Path(path) if path and (Path(path) / "config.json").is_file() else None
