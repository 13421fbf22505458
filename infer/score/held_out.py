"""A held-out set through the transcriber, timed: what evaluation and validation both score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data.manifest import Row, admit, read_manifest
from infer.score.evaluation import Prediction
from infer.transcriber import Clip, Stopwatch, Transcriber


def read_held_out(manifests: Sequence[Path]) -> tuple[Row, ...]:
    """Read held-out sets whole.

    Raises:
        ValueError: if a line cannot be used, or an id stands in two sets: a missing item must never improve a score.
        FileNotFoundError: if a manifest does not exist.
    """
    if not manifests:
        raise ValueError("dataset.test= names no manifest; type dataset.test=test.jsonl")
    rows = [row for path in manifests for row in admit(read_manifest(path), strict=True, max_bad_share=0.0)]
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.id, row)
        if other is not row:
            raise ValueError(f"id {row.id!r} stands in {other.manifest}:{other.line} and in {row.manifest}:{row.line}")
    return tuple(rows)


def transcribe_rows(
    transcriber: Transcriber, rows: Sequence[Row], *, on_progress: Callable[[int], None] | None = None
) -> tuple[list[Prediction], float]:
    """Transcribe rows with the language detected or fixed as the transcriber's settings say.

    Returns:
        Predictions in the order of the rows, and the seconds that decoding audio, features, search and text took.

    Raises:
        AudioError: if a clip cannot be read.
    """
    with Stopwatch(transcriber.artefact.model.device) as watch:
        transcripts = transcriber.transcribe(
            [Clip(row.audio, row.offset_s, row.duration_s) for row in rows], on_progress=on_progress
        )
    predictions = [
        Prediction(
            id=row.id,
            language=row.language,
            detected_language=transcript.detected_language,
            reference=row.text,
            hypothesis=transcript.text,
            duration_s=transcript.duration_s,
        )
        for row, transcript in zip(rows, transcripts, strict=True)
    ]
    return predictions, watch.elapsed_s
