"""From measured arithmetics to rows that can be compared, and the answer: is half precision safe?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer.compare.arithmetic import REFERENCE, SHIPPED, Arithmetic
from infer.score.comparison import compare_scores
from infer.score.evaluation import Prediction, Score, score_predictions
from infer.score.statistics import BootstrapSettings, Comparison, as_plain

LANGUAGE_KEYS = ("headline_metric", "headline", "wer", "cer", "language_accuracy", "utterances", "intervals")
FIGURE_KEYS = ("wer", "cer", "headline", "language_accuracy", "utterances", "audio_s", "intervals")


@dataclass(frozen=True)
class Verdict:
    """Whether one arithmetic may stand in for the reference."""

    level: str
    """`safe`, `undecided`, `unsafe` or `unknown`."""
    sentence: str


def build_rows(
    arithmetics: Sequence[Arithmetic],
    found: Mapping[str, Mapping[str, Any]],
    *,
    margin: float,
    bootstrap: BootstrapSettings | None = None,
) -> list[dict[str, Any]]:
    """Return one row an arithmetic, ready for JSON: figures, or `absent` with the reason.

    Args:
        arithmetics: in the order of the table.
        found: by name, what `measure` returned, or `absent` or `failed` with a reason.
        margin: loss of the headline rate that counts as none, as a fraction.
        bootstrap: how intervals are drawn.
    """
    scores = {
        name: score_predictions(_predictions(row), processing_s=row["processing_s"], bootstrap=bootstrap)
        for name, row in found.items()
        if "predictions" in row
    }
    rows = []
    for arithmetic in arithmetics:
        row = found[arithmetic.name]
        head = {"name": arithmetic.name, "title": arithmetic.title}
        if arithmetic.name not in scores:
            rows.append({**head, "absent": row.get("absent") or row["failed"], "is_failure": "failed" in row})
            continue
        score, reference = scores[arithmetic.name], scores.get(REFERENCE)
        versus = None
        if reference is not None and arithmetic.name != REFERENCE:
            versus = _compare(reference, score, margin, bootstrap, title=arithmetic.title)
        rows.append({**head, **_speed(row), **_quality(score), "versus": versus, "artefact": row["artefact"]})
    return rows


def judge(comparison: Comparison | None, *, margin: float, name: str, same: str) -> Verdict:
    """Say whether an arithmetic loses less than the margin.

    A difference that is not significant is no proof of safety: few clips make every difference insignificant. So the
    whole interval has to lie below the margin.

    Args:
        comparison: of the headline rate, the reference being what was before.
        margin: as a fraction.
        name: of the arithmetic.
        same: how many texts are the same, in words.
    """
    if comparison is None:
        return Verdict("unknown", f"{name} cannot be judged: there is nothing to divide by.")
    low, high = 100 * comparison.interval.low, 100 * comparison.interval.high
    points = f"{100 * comparison.difference:+.2f} points ({low:+.2f} to {high:+.2f})"
    if comparison.interval.high <= margin:
        return Verdict("safe", f"{name} is safe: {points} against FP32, within the margin of {100 * margin:g}; {same}.")
    if comparison.interval.low > 0 and comparison.difference > margin:
        return Verdict(
            "unsafe", f"{name} is not safe: {points} against FP32, beyond the margin of {100 * margin:g}; {same}."
        )
    return Verdict(
        "undecided",
        f"{name} is not shown to be safe: {points} against FP32 reaches beyond the margin of {100 * margin:g}; "
        f"{same}. More clips would tell.",
    )


def shipped_verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the verdict on the arithmetic that ships, or why there is none."""
    for row in rows:
        if row["name"] == SHIPPED:
            if "absent" in row:
                return {"level": "unknown", "sentence": f"FP16 was not measured: {row['absent']}"}
            if row["versus"] is not None:
                return dict(row["versus"]["verdict"])
    return {"level": "unknown", "sentence": "FP16 was not compared with FP32."}


def _predictions(row: Mapping[str, Any]) -> list[Prediction]:
    return [Prediction(**prediction) for prediction in row["predictions"]]


def _compare(
    reference: Score, score: Score, margin: float, bootstrap: BootstrapSettings | None, *, title: str
) -> dict[str, Any]:
    paired = compare_scores(reference, score, bootstrap)
    texts = {u.prediction.id: u.prediction.hypothesis for u in reference.utterances}
    num_same = sum(texts[u.prediction.id] == u.prediction.hypothesis for u in score.utterances)
    same = f"{num_same:,} of {len(texts):,} texts are identical"
    verdict = judge(paired.overall, margin=margin, name=title, same=same)
    return {
        "identical": num_same / len(texts),
        "overall": None if paired.overall is None else as_plain(paired.overall),
        "verdict": {"level": verdict.level, "sentence": verdict.sentence},
    }


def _speed(row: Mapping[str, Any]) -> dict[str, Any]:
    latency_s = np.array(row["latency_s"])
    p50, p95 = (float(np.percentile(latency_s, q)) for q in (50, 95))
    floor = dict(row["floor"])
    floor_s = floor.get("floor_s")
    if floor_s is not None and floor_s > p50:  # nothing is faster than it can be: the rates are wrong, not the clock
        floor["absent"] = "the rates were measured while other programs used the device"
        floor_s = None
    return {
        "weights_bytes": row["memory"]["weights_bytes"],
        "peak_bytes": row["memory"]["growth_bytes"],
        "memory": row["memory"],
        "load_s": row["load_s"],
        "latency_p50_s": p50,
        "latency_p95_s": p95,
        "floor_s": floor_s,
        "floor": floor,
        "rtfx": row["audio_s"] / row["processing_s"],
    }


def _quality(score: Score) -> dict[str, Any]:
    return {
        **{key: score.overall[key] for key in FIGURE_KEYS},
        "languages": {code: {key: figures[key] for key in LANGUAGE_KEYS} for code, figures in score.languages.items()},
    }
