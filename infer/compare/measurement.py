"""One arithmetic measured in a process of its own: memory, latency, speed, texts.

A process of its own, since memory once taken is seldom given back, since TF32 is a switch of the whole process, and so
that an arithmetic that crashes costs one row.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.rows import Row
from data.sources import Source
from infer.artefact import load_artefact
from infer.compare.arithmetic import ARITHMETICS, Arithmetic, apply_arithmetic, compute_type, inspect_device
from infer.compare.floor import ITEM_BYTES, count_work, describe_floor, measure_rates
from infer.compare.memory import MemoryMeter, weights_bytes
from infer.decoding import DecodeSettings
from infer.score.held_out import read_held_out, transcribe_rows
from infer.timing import Stopwatch
from infer.transcriber import Clip, Transcriber

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Request:
    """What a process is asked to measure."""

    arithmetic: str
    artefact: str
    sources: tuple[Mapping[str, Any], ...]
    """Of the held-out set, as mappings of `Source`."""
    decoding: Mapping[str, Any]
    device: str
    batch_size: int
    latency_clips: int
    repeats: int
    """How often each of the latency clips is timed."""
    num_threads: int
    converted: Mapping[str, str] = field(default_factory=dict)
    """CTranslate2 folders by what they store."""


def measure_in_process(request: Request, folder: Path) -> dict[str, Any]:
    """Measure in a new process and return its figures; a crash is returned as `failed`, with its last words.

    Args:
        request: what to measure.
        folder: for the question and the answer; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    question, answer = folder / f"{request.arithmetic}.request.json", folder / f"{request.arithmetic}.json"
    answer.unlink(missing_ok=True)
    question.write_text(json.dumps(asdict(request), ensure_ascii=False), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "infer.compare.measurement", str(question), str(answer)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0 or not answer.is_file():
        return {"failed": last_words(finished.stderr, finished.returncode)}
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def last_words(stderr: str, code: int) -> str:
    """Return why a process ended, from the last line that it wrote."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    why = lines[-1] if lines else "it said nothing"
    return f"the process ended with {code}: {why}"


def measure(request: Request) -> dict[str, Any]:
    """Measure one arithmetic here and now.

    Returns:
        `artefact`, `memory`, `latency_s`, `processing_s`, `floor`, `predictions`.
    """
    arithmetic, device = ARITHMETICS[request.arithmetic], torch.device(request.device)
    torch.set_num_threads(request.num_threads)
    apply_arithmetic(arithmetic)
    rows = read_held_out([Source(**source) for source in request.sources])
    meter = MemoryMeter(device)
    start = time.perf_counter()
    transcriber = _open(request, arithmetic, device)
    load_s = time.perf_counter() - start
    gc.collect()
    chosen = spread(rows, request.latency_clips)
    clips = [Clip(row.audio, row.offset_s, row.duration_s) for row in chosen]
    with meter:
        transcriber.transcribe(clips)  # the first calls allocate, and pick their kernels
        latency_s = _time_one_by_one(transcriber, clips, request.repeats, device)
        predictions, processing_s = transcribe_rows(transcriber, rows)
    num_frames = [transcriber.artefact.windows.num_frames(min(p.duration_s, 30.0)) for p in predictions]
    floor = _floor(request, arithmetic, transcriber, float(np.mean(num_frames)), [p.hypothesis for p in predictions])
    return {
        "artefact": transcriber.artefact.describe(),
        "load_s": load_s,
        "memory": {"weights_bytes": weights_bytes(transcriber.artefact, arithmetic), **meter.figures()},
        "latency_s": latency_s,
        "processing_s": processing_s,
        "audio_s": sum(p.duration_s for p in predictions),
        "floor": floor,
        "predictions": [asdict(prediction) for prediction in predictions],
    }


def _open(request: Request, arithmetic: Arithmetic, device: torch.device) -> Transcriber:
    decoding: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request.decoding.items()}
    settings = DecodeSettings(**decoding)
    if arithmetic.runtime == "torch":
        artefact = load_artefact(request.artefact, compute=arithmetic.dtype, device=device)
        return Transcriber(artefact, settings, batch_size=request.batch_size)
    from infer.backends.ctranslate2 import CTranslate2Decoder, load_ctranslate2

    folder, source = (
        Path(request.converted["int8" if arithmetic.dtype == "int8" else "float16"]),
        Path(request.artefact),
    )
    loaded = load_ctranslate2(
        folder,
        source,
        compute_type=compute_type(arithmetic, inspect_device(device)),
        device=device.type,
        num_threads=request.num_threads,
    )
    return Transcriber(
        loaded, settings, batch_size=request.batch_size, decoder=CTranslate2Decoder(loaded, artefact_dir=source)
    )


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Return rows evenly from the shortest to the longest; all of them if there are no more."""
    ordered = sorted(rows, key=lambda row: (row.duration_s or 0.0, row.id))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i)] for i in np.linspace(0, len(ordered) - 1, count)]


def _time_one_by_one(
    transcriber: Transcriber, clips: Sequence[Clip], repeats: int, device: torch.device
) -> list[float]:
    seconds: list[float] = []
    for _ in range(repeats):
        for clip in clips:
            with Stopwatch(device) as watch:
                transcriber.transcribe([clip])
            seconds.append(watch.elapsed_s)
    return seconds


def _floor(
    request: Request, arithmetic: Arithmetic, transcriber: Transcriber, num_frames: float, texts: Sequence[str]
) -> dict[str, Any]:
    """Count the floor for the mean window and the mean text, or say why there is none."""
    config = transcriber.artefact.model.config
    tokenizer = transcriber.artefact.tokenizer
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    is_half = arithmetic.runtime == "ctranslate2" and request.device.startswith("cuda") and arithmetic.dtype == "fp32"
    dtype = "fp16" if is_half else arithmetic.dtype
    work = count_work(
        config,
        num_frames=2 * round(num_frames / 2),
        num_prefix=4,
        num_tokens=round(float(np.mean(lengths))),
        item_bytes=ITEM_BYTES[dtype],
    )
    try:
        positions = max(32, round(num_frames / 2))
        rates = measure_rates(
            dtype,
            torch.device(request.device),
            decoder_bytes=work.step_bytes,
            shapes=[
                (positions, config.d_model, config.encoder_ffn_dim),
                (positions, config.encoder_ffn_dim, config.d_model),
            ],
        )
    except RuntimeError as e:
        return {"absent": f"no {dtype} matmul to measure: {str(e).splitlines()[0]}"}
    return {"num_frames": num_frames, "num_tokens": float(np.mean(lengths)), **describe_floor(work, rates)}


def main(arguments: Sequence[str]) -> int:
    """Answer one question from a file into a file."""
    question, answer = map(Path, arguments)
    asked = json.loads(question.read_text(encoding="utf-8"))
    found = measure(Request(**{**asked, "sources": tuple(asked["sources"])}))
    answer.write_text(json.dumps(found, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    sys.exit(main(sys.argv[1:]))
