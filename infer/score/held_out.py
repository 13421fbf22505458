"""A held-out set through the transcriber, timed: what evaluation and validation both score."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from data.ingest import admit_all
from data.rows import Row
from data.sources import Source, read_source
from infer.score.evaluation import Prediction
from infer.score.partial import Known, PartialPredictions
from infer.score.sharing import Share
from infer.transcriber import Clip, Transcriber, Transcript

SECONDS_BETWEEN_WRITES = 2.0
ARTEFACT_KEYS = ("sha256", "compute", "device", "windows_s")
"""What the text depends on; where the folder lies is no part of it."""


def read_held_out(sources: Sequence[Source]) -> tuple[Row, ...]:
    """Read held-out sets whole.

    Raises:
        ValueError: if a line cannot be used, an id stands in two sets, or a set is to be cut: a missing item must never
            improve a score.
        FileNotFoundError: if a source does not exist.
    """
    if not sources:
        raise ValueError("dataset.test= names no set; type dataset.test=test.jsonl")
    for source in sources:
        if (source.max_clips, source.max_hours) != (None, None):
            raise ValueError(f"max_clips and max_hours cap training data; {source.path} is scored whole: drop them")
    tables = [read_source(source) for source in sources]
    admit_all(tables)
    rows = [row for table in tables for row in table]
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.id, row)
        if other is not row:
            raise ValueError(f"id {row.id!r} stands in {other.manifest}:{other.line} and in {row.manifest}:{row.line}")
    return tuple(rows)


def verify_task(rows: Sequence[Row], task: str) -> None:
    """Refuse rows whose text is not what the decoder is asked for: a translation is no transcript.

    Raises:
        ValueError: for the first such row.
    """
    for row in rows:
        if row.task != task:
            raise ValueError(
                f"{row.manifest}:{row.line}: the task is {row.task}, and the set is decoded with decoding.task={task}; "
                f"type decoding.task={row.task}, or evaluate these rows in a set of their own"
            )


def transcribe_rows(
    transcriber: Transcriber,
    rows: Sequence[Row],
    *,
    test_set: str | None = None,
    on_progress: Callable[[int], None] | None = None,
    share: Share | None = None,
    partial_dir: Path | None = None,
) -> tuple[list[Prediction], float]:
    """Transcribe rows with the language detected or fixed as the transcriber's settings say.

    Args:
        transcriber: the artefact and how to decode; one that was warmed up gives an honest time.
        rows: of one set.
        test_set: name of the set, written beside each prediction.
        on_progress: called with the number of windows done after each batch, by this process.
        share: what this process takes of the set; None takes all.
        partial_dir: where predictions are kept as they come, and found again by the same evaluation if this one is
            stopped; None keeps nothing.

    Returns:
        Predictions in the order of the rows, and the seconds of wall time that features, search and text took, by the
        protocol of the Open ASR Leaderboard: the device at a stop at both ends, files read before. Of several
        processes the longest time counts; of several starts the sum.

    Raises:
        AudioError: if a clip cannot be read.
        RuntimeError: if an earlier start left a damaged file, or the processes were not given the same set.
    """
    share = share or Share()
    partial = None
    known = Known({}, 0.0)
    if partial_dir is not None:
        partial = PartialPredictions(
            partial_dir,
            rows,
            artefact={key: transcriber.artefact.describe().get(key) for key in ARTEFACT_KEYS},
            settings={**asdict(transcriber.settings), "test_set": test_set},
            rank=share.rank,
        )
        # What the first process found counts for all, and nobody writes before everybody has it.
        known = share.gather(partial.read())[0]
    left = [i for i, row in enumerate(rows) if row.id not in known.predictions]
    own = [left[i] for i in share.part([rows[i].duration_s or 0.0 for i in left])]
    done = {i: known.predictions[row.id] for i, row in enumerate(rows) if row.id in known.predictions}
    done = done if share.rank == 0 else {}
    if on_progress is not None and done:
        on_progress(len(done))
    waiting: list[Prediction] = []
    begin_s = written_s = transcriber.processing_s
    kept = time.monotonic()
    clips = [Clip(rows[i].audio, rows[i].offset_s, rows[i].duration_s) for i in own]
    try:
        for place, transcript in transcriber.stream(clips, on_progress=on_progress):
            index = own[place]
            done[index] = _prediction(rows[index], transcript, test_set)
            waiting.append(done[index])
            if partial is not None and time.monotonic() - kept > SECONDS_BETWEEN_WRITES:
                partial.append(waiting, processing_s=transcriber.processing_s - written_s)
                waiting, written_s, kept = [], transcriber.processing_s, time.monotonic()
    finally:
        if partial is not None and waiting:
            partial.append(waiting, processing_s=transcriber.processing_s - written_s)
    predictions = share.whole(done, len(rows))
    processing_s = known.processing_s + max(share.gather(transcriber.processing_s - begin_s))
    if partial is not None and share.rank == 0:
        partial.remove()
    return predictions, processing_s


def _prediction(row: Row, transcript: Transcript, test_set: str | None) -> Prediction:
    return Prediction(
        id=row.id,
        language=row.language,
        detected_language=transcript.detected_language if transcript.is_detected else None,
        reference=row.text,
        hypothesis=transcript.text,
        duration_s=transcript.duration_s,
        task=row.task,
        speaker=row.speaker or None,
        test_set=test_set,
        no_speech=row.no_speech,
        is_cut=transcript.is_cut,
    )
