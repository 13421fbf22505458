"""P1 to P5: is the FP16 artefact what the FP32 masters were, in every weight, in text, and in what is said of it?

P1 looks at every tensor. P2 reads the folder in a fresh process and wants the text of the half model in memory. P3
gives the same text to half and to strict FP32 arithmetic and compares what each expects, and what each says by itself.
P4 looks at how large values become in half arithmetic, also on silence, noise and music. P5 holds the figures in the
manifest against those of the artefact.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.rows import Row
from data.windows import Windows, full_windows
from infer.artefact import Artefact, load_artefact
from infer.compare.arithmetic import ARITHMETICS, apply_arithmetic
from infer.compare.measurement import Request, measure_in_process
from infer.decode_settings import DecodeSettings
from infer.doctor.examination import Examination, examine
from infer.doctor.findings import OURS
from infer.gate.arithmetic import judge_arithmetic, judge_headroom
from infer.gate.clips import GateClips, made_sounds
from infer.gate.forced import HeadroomMeter, compare_forced, measure_headroom
from infer.gate.settings import GateSettings
from infer.gate.texts import compare_texts
from infer.gate.verdict import Miss, percent
from infer.half import RejectedError, cast_to_half
from infer.score.evaluation import Score, score_predictions
from infer.score.held_out import transcribe_rows
from infer.score.normalise import describe_scoring
from infer.score.utterances import Prediction
from infer.transcriber import Transcriber

FULL_CLIPS = 8
"""For activations at 30 s; a CPU takes a second a clip for a small model in half arithmetic."""
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Parity:
    """What P1 to P5 found."""

    misses: tuple[Miss, ...]
    figures: dict[str, Any]
    """By part, for JSON."""
    evaluation: dict[str, Any]
    """Figures of the artefact with all that they depend on, for its manifest."""
    predictions: tuple[Prediction, ...]
    """Of the artefact, in the windows it was trained with."""
    examination: Examination


def check_parity(
    path: Path,
    clips: GateClips,
    decoding: DecodeSettings,
    settings: GateSettings,
    *,
    scratch: Path,
    masters: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Parity:
    """Hold an artefact against its masters.

    Args:
        path: the folder, stored in FP16.
        clips: held out.
        decoding: the profile.
        settings: how many clips, and what passes.
        scratch: for questions and answers of other processes.
        masters: FP32 weights, adapters merged; without them FP32 arithmetic over the stored weights is the reference,
            and a wrong cast is not seen.
        device: where it runs.
    """
    device = torch.device(device)
    examination = examine(path, masters=masters)
    misses = list(_judge_static(examination))
    figures: dict[str, Any] = {"P1": examination.describe()}
    if OURS in {runtime for finding in examination.findings for runtime in finding.breaks}:
        return Parity(tuple(misses), figures, {}, (), examination)
    artefact = load_artefact(path, device=device)
    shipped = _in_memory(path, masters, artefact.compute, device)
    predictions, _ = transcribe_rows(_transcriber(shipped, decoding, settings), clips.rows)
    answer = _reload(path, clips, decoding, settings, scratch, device)
    parts = [
        _round_trip(predictions, answer),
        *_half_and_strict(path, masters, clips, decoding, settings, device),
    ]
    reloaded = [Prediction(**found) for found in answer.get("predictions", [])]
    score = score_predictions(reloaded or predictions, processing_s=answer.get("processing_s", 0.0))
    evaluation = describe_evaluation(artefact, score, clips, decoding)
    parts.append(_manifest(artefact, evaluation))
    for name, found, missed in parts:
        figures[name] = found
        misses += missed
    return Parity(tuple(misses), figures, evaluation, tuple(reloaded or predictions), examination)


Part = tuple[str, dict[str, Any], list[Miss]]


def _judge_static(examination: Examination) -> list[Miss]:
    return [
        Miss("P1", f"{finding.code}: {finding.found}; {finding.advice}")
        for finding in examination.findings
        if finding.breaks
    ]


def _in_memory(path: Path, masters: Mapping[str, Tensor] | None, compute: str, device: torch.device) -> Artefact:
    """Return the half model as training has it: made of the masters, never from the folder's weights."""
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    artefact = load_artefact(path, compute=names[compute], device=device)
    if masters is None:
        return artefact
    artefact.model.load_state_dict(cast_to_half(masters), strict=False)
    artefact.model.tie_weights()
    return replace(artefact, sha256="")


def _transcriber(artefact: Artefact, decoding: DecodeSettings, settings: GateSettings) -> Transcriber:
    return Transcriber(artefact, decoding, batch_size=settings.batch_size)


def _reload(
    path: Path,
    clips: GateClips,
    decoding: DecodeSettings,
    settings: GateSettings,
    scratch: Path,
    device: torch.device,
) -> dict[str, Any]:
    request = Request(
        arithmetic="fp32" if device.type == "cpu" else "fp16",
        artefact=str(path),
        sources=(asdict(clips.source),),
        decoding=asdict(decoding),
        device=device.type,
        batch_size=settings.batch_size,
        latency_clips=settings.latency_clips,
        repeats=1,
        num_threads=torch.get_num_threads(),
    )
    return measure_in_process(request, scratch)


def _round_trip(predictions: Sequence[Prediction], answer: Mapping[str, Any]) -> Part:
    if "failed" in answer:
        return "P2", dict(answer), [Miss("P2", f"a fresh process cannot run the folder: {answer['failed']}")]
    found = compare_texts(predictions, [Prediction(**p) for p in answer["predictions"]])
    misses = []
    if found.num_identical < found.num_clips:
        misses.append(
            Miss(
                "P2",
                f"{found.num_clips - found.num_identical} of {found.num_clips} texts differ between the half model in "
                "memory and the folder in a fresh process; they must be the same program",
            )
        )
    return "P2", found.describe(), misses


def _half_and_strict(
    path: Path,
    masters: Mapping[str, Tensor] | None,
    clips: GateClips,
    decoding: DecodeSettings,
    settings: GateSettings,
    device: torch.device,
) -> list[Part]:
    """Run P3 and P4 together, since both run the half model."""
    apply_arithmetic(ARITHMETICS["fp32"])  # cuDNN's convolutions take TF32 unless told otherwise
    half = load_artefact(path, compute="fp16", device=device)
    strict = load_artefact(path, compute="fp32", device=device)
    if masters is not None:
        strict.model.load_state_dict(dict(masters), strict=False)
        strict.model.tie_weights()
    rows, waveforms = _some(clips, settings.half_clips_on(device.type))
    with HeadroomMeter(half.model) as found:
        agreement = compare_forced(half, strict, rows, waveforms, windows=half.windows, batch_size=settings.batch_size)
        if not half.windows.is_stock:  # other runtimes run it so
            few_rows, few_waveforms = rows[:: -(-len(rows) // FULL_CLIPS)], waveforms[:: -(-len(rows) // FULL_CLIPS)]
            full = compare_forced(
                half, strict, few_rows, few_waveforms, windows=full_windows(), batch_size=settings.batch_size
            )
    sounds = {name: measure_headroom(half, [sound], rows[0]) for name, sound in made_sounds().items()}
    low, _ = transcribe_rows(_transcriber(half, decoding, settings), rows)
    high, _ = transcribe_rows(_transcriber(strict, decoding, settings), rows)
    texts = compare_texts(high, low)
    figures = {
        "clips": len(rows),
        "reference": "FP32 masters" if masters is not None else "FP32 arithmetic over the stored weights",
        "forced": agreement.describe(),
        "forced_30_s": agreement.describe() if half.windows.is_stock else full.describe(),
        "texts": texts.describe(),
    }
    heads = {"clips": found, **sounds}
    return [
        ("P3", figures, judge_arithmetic(agreement, texts, settings)),
        ("P4", {name: head.describe() for name, head in heads.items()}, judge_headroom(heads, settings)),
    ]


def _some(clips: GateClips, count: int) -> tuple[list[Row], list[Any]]:
    step = max(1, -(-len(clips.rows) // count))
    return list(clips.rows[::step]), clips.waveforms()[::step]


def describe_evaluation(
    artefact: Artefact, score: Score, clips: GateClips, decoding: DecodeSettings, *, windows: Windows | None = None
) -> dict[str, Any]:
    """Return figures with all that they depend on: a number without these is nobody's."""
    return {
        "overall": score.overall,
        "languages": score.languages,
        "artefact_sha256": artefact.sha256,
        "set": {"sha256": clips.sha256, "clips": len(clips.rows)},
        "scoring": describe_scoring(sorted(score.languages)),
        "decoding": asdict(decoding),
        "stored": artefact.stored,
        "compute": artefact.compute,
        "device": artefact.model.device.type,
        "backend": "torch",
        "windows_s": list((windows or artefact.windows).edges_s),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _manifest(artefact: Artefact, evaluation: Mapping[str, Any]) -> Part:
    """Hold what the manifest says against what was measured."""
    claimed = artefact.record.get("evaluation") or {}
    misses = []
    sha256 = claimed.get("artefact_sha256")
    if sha256 not in (None, artefact.sha256):
        misses.append(f"the manifest's figures are of other weights ({sha256[:12]}, these are {artefact.sha256[:12]})")
    is_same = claimed.get("set", {}).get("sha256") == evaluation["set"]["sha256"]
    # As JSON, where a tuple has become a list.
    if is_same and claimed.get("decoding") == json.loads(json.dumps(evaluation["decoding"])):
        for name in ("wer", "cer"):
            said, found = claimed["overall"].get(name), evaluation["overall"].get(name)
            if said != found:
                misses.append(f"the manifest says {name} {percent(said)} %, the artefact has {percent(found)} %")
    names = {"claimed": bool(claimed), "names_weights": sha256 is not None}
    found = {**names, "same_set": is_same, "artefact_sha256": artefact.sha256}
    return "P5", found, [Miss("P5", sentence) for sentence in misses]


def verify_castable(masters: Mapping[str, Tensor]) -> list[Miss]:
    """Return why masters cannot be cast, before anything is written."""
    try:
        cast_to_half(masters)
    except RejectedError as e:
        return [Miss("P1", str(e))]
    return []
