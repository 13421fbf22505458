"""A held-out set through the transcriber, timed: what evaluation and validation both score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.ingest import admit_all
from data.rows import Row
from data.sources import Source, read_source
from infer.score.evaluation import Prediction
from infer.transcriber import Clip, Stopwatch, Transcriber


def read_held_out(sources: Sequence[Source]) -> tuple[Row, ...]:
    """Read held-out sets whole.

    Raises:
        ValueError: if a line cannot be used, or an id stands in two sets: a missing item must never improve a score.
        FileNotFoundError: if a source does not exist.
    """
    if not sources:
        raise ValueError("dataset.test= names no set; type dataset.test=test.jsonl")
    tables = [read_source(source) for source in sources]
    admit_all(tables)
    rows = [row for table in tables for row in table]
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.id, row)
        if other is not row:
            raise ValueError(f"id {row.id!r} stands in {other.manifest}:{other.line} and in {row.manifest}:{row.line}")
    return tuple(rows)


def transcribe_rows(
    transcriber: Transcriber,
    rows: Sequence[Row],
    *,
    test_set: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[Prediction], float]:
    """Transcribe rows with the language detected or fixed as the transcriber's settings say.

    Args:
        transcriber: the artefact and how to decode.
        rows: of one set.
        test_set: name of the set, written beside each prediction.
        on_progress: called with the number of windows done after each batch.

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
            task=row.task,
            speaker=row.speaker or None,
            test_set=test_set,
            no_speech=row.no_speech,
            is_cut=transcript.is_cut,
        )
        for row, transcript in zip(rows, transcripts, strict=True)
    ]
    return predictions, watch.elapsed_s
