"""The numbers of a corpus: hours by language, histograms, and what windows by length save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data.preflight.clip import SILENCE_DBFS
from data.preflight.columns import MAX_CLIP_S, UNKNOWN, CorpusScan, SplitScan
from data.preflight.oddities import characters_per_s

NUM_BINS = 40
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
EDGE_STEP_S = 0.1  # suggested window edges are multiples of it
MIN_GAIN = 1.1  # of suggested edges over the model's own, below which there is nothing to suggest

Values = Callable[[SplitScan], npt.NDArray[Any]]


def _duration_s(scan: SplitScan) -> npt.NDArray[Any]:
    durations_s: npt.NDArray[Any] = scan.figures["duration_s"][scan.usable]
    return durations_s


def _label_tokens(scan: SplitScan) -> npt.NDArray[Any]:
    tokens: npt.NDArray[Any] = scan.columns["num_label_tokens"][scan.usable]
    counted: npt.NDArray[Any] = tokens[tokens != UNKNOWN]
    return counted


def _characters_per_s(scan: SplitScan) -> npt.NDArray[Any]:
    rates: npt.NDArray[Any] = characters_per_s(scan)[scan.usable & ~scan.columns["no_speech"]]
    return rates


def _rms_dbfs(scan: SplitScan) -> npt.NDArray[Any]:
    levels: npt.NDArray[Any] = scan.figures["rms_dbfs"][scan.usable]
    return levels


def _silence_share(scan: SplitScan) -> npt.NDArray[Any]:
    heard = scan.usable & (scan.figures["rms_dbfs"] > SILENCE_DBFS)
    shares: npt.NDArray[Any] = 100 * scan.figures["silence_share"][heard]
    return shares


def _peak_dbfs(scan: SplitScan) -> npt.NDArray[Any]:
    levels: npt.NDArray[Any] = 20 * np.log10(np.maximum(scan.figures["peak"][scan.usable], 1e-6))
    return levels


QUANTITIES: dict[str, Values] = {
    "duration_s": _duration_s,
    "label_tokens": _label_tokens,
    "characters_per_s": _characters_per_s,
    "rms_dbfs": _rms_dbfs,
    "peak_dbfs": _peak_dbfs,
    "silence_percent": _silence_share,
}


def describe_splits(scan: CorpusScan) -> dict[str, Any]:
    """Return lines, clips, hours and speakers of each split; accepted + quarantined + rejected = lines."""
    return {split.name: _describe_split(split) for split in scan.splits}


def _describe_split(split: SplitScan) -> dict[str, Any]:
    codes: Counter[str] = Counter()
    num_rejected = 0
    for record in split.split.rejected:
        codes[record.code] += 1
        num_rejected += record.is_line_fault
    usable = split.usable
    for code, count in zip(*np.unique(split.figures["code"][~usable], return_counts=True), strict=True):
        codes[str(code)] += int(count)
    speakers = np.unique(split.columns["speaker"][usable])
    num_lines, num_accepted = split.split.num_lines, int(usable.sum())
    return {
        "sources": [str(table.path) for table in split.split.rows.tables],
        "lines": num_lines,
        "accepted": num_accepted,
        "quarantined": num_lines - num_accepted - num_rejected,
        "rejected": num_rejected,
        "codes": dict(sorted(codes.items())),
        "hours": float(split.figures["duration_s"][usable].sum()) / 3600,
        "speakers": int((speakers != UNKNOWN).sum()),
        "languages": len(np.unique(split.columns["language"][usable])),
        "texts": len(np.unique(split.columns["text"][usable])),
    }


def describe_languages(scan: CorpusScan) -> dict[str, dict[str, dict[str, float]]]:
    """Return clips and hours by language and split, the language with most hours first."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for split in scan.splits:
        languages = split.columns["language"][split.usable]
        clips = np.bincount(languages, minlength=len(scan.languages))
        hours = np.bincount(languages, weights=_duration_s(split), minlength=len(scan.languages)) / 3600
        for place, name in enumerate(scan.languages):
            if clips[place]:
                table.setdefault(name, {})[split.name] = {"clips": int(clips[place]), "hours": float(hours[place])}
    return dict(sorted(table.items(), key=lambda item: -sum(part["hours"] for part in item[1].values())))


def describe_quantity(scan: CorpusScan, name: str) -> dict[str, Any] | None:
    """Return the histogram of a quantity by split, its percentiles and its mean; None where there is nothing to count.

    The bins reach from the 0.1st to the 99.9th percentile, so that one odd clip does not flatten the rest; what lies
    outside is counted in the outer bins.
    """
    values = {split.name: QUANTITIES[name](split) for split in scan.splits}
    joined = np.concatenate([np.zeros(0), *values.values()])
    if not len(joined):
        return None
    low, high = np.percentile(joined, [0.1, 99.9])
    step = _round_step(max(float(high - low), 1e-3) / NUM_BINS)
    if name == "label_tokens":
        step = max(1.0, round(step))
    first, last = int(np.floor(low / step)), int(np.floor(high / step)) + 1
    edges = step * np.arange(first, last + 1)
    inside = {split: np.clip(found, edges[0], np.nextafter(edges[-1], -np.inf)) for split, found in values.items()}
    return {
        "edges": [round(float(edge), 6) for edge in edges],
        "counts": {split: np.histogram(found, edges)[0].tolist() for split, found in inside.items()},
        "percentiles": {f"p{p}": float(np.percentile(joined, p)) for p in PERCENTILES},
        "mean": float(joined.mean()),
        "min": float(joined.min()),
        "max": float(joined.max()),
    }


def _round_step(step: float) -> float:
    """Round a bin width up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999))


def describe_windows(
    durations_s: npt.NDArray[np.float64], edges_s: Sequence[float], *, full_share: float
) -> dict[str, Any]:
    """Return what the encoder is fed when every clip is padded to 30 s, and when it is padded to the next edge.

    Args:
        durations_s: (num_clips,) of the training split. A recording that is longer than a window counts as the windows
            that it is cut into.
        edges_s: window lengths in seconds, rising to 30.
        full_share: share of the updates that are padded to 30 s all the same.
    """
    parts_s = _cut_to_windows(durations_s)
    full_s = MAX_CLIP_S * len(parts_s)
    bucketed_s = padded_s(parts_s, edges_s)
    mixed_s = full_share * full_s + (1 - full_share) * bucketed_s
    suggested = suggest_edges(parts_s, num_edges=len(edges_s))
    suggested_s = padded_s(parts_s, suggested)
    is_better = bucketed_s / suggested_s >= MIN_GAIN
    return {
        "speech_hours": float(parts_s.sum()) / 3600,
        "full_hours": full_s / 3600,
        "bucketed_hours": bucketed_s / 3600,
        "factor": full_s / bucketed_s,
        "full_share": full_share,
        "factor_with_full_share": full_s / mixed_s,
        "edges_s": list(edges_s),
        "suggested_edges_s": suggested if is_better else None,
        "suggested_factor": full_s / suggested_s if is_better else None,
    }


def _cut_to_windows(durations_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    whole, rest = np.divmod(durations_s, MAX_CLIP_S)
    rest = rest[rest > 0]
    return np.concatenate([np.full(int(whole.sum()), MAX_CLIP_S), rest])


def padded_s(durations_s: npt.NDArray[np.float64], edges_s: Sequence[float]) -> float:
    """Return the seconds of clips that are each padded to the smallest edge that holds them."""
    edges = np.asarray(edges_s, dtype=np.float64)
    # A clip of exactly an edge must not pass it by a rounding error of its duration.
    return float(edges[np.searchsorted(edges, durations_s - 1e-6)].sum())


def suggest_edges(durations_s: npt.NDArray[np.float64], *, num_edges: int) -> list[float]:
    """Return the window edges that waste least on these clips, in seconds, the last one 30.

    Found exactly, by dynamic programming over edges in steps of 0.1 s.

    Args:
        durations_s: (num_clips,) at most 30 s each.
        num_edges: how many; each is a shape that the device has to know.
    """
    num_steps = round(MAX_CLIP_S / EDGE_STEP_S)
    steps = np.clip(np.ceil(durations_s / EDGE_STEP_S - 1e-6).astype(np.int64), 1, num_steps)
    below = np.concatenate([[0], np.cumsum(np.bincount(steps, minlength=num_steps + 1)[1:])])  # clips of up to i steps
    # cost[i]: least padded steps of all clips of up to i steps, when i is an edge
    places = np.arange(num_steps + 1)
    cost = (below * places).astype(np.float64)
    chosen: list[npt.NDArray[np.int64]] = []
    for _ in range(num_edges - 1):
        by_last = cost[:, None] + (below[None, :] - below[:, None]) * places[None, :]
        by_last[places[:, None] > places[None, :]] = np.inf
        chosen.append(np.argmin(by_last, axis=0))
        cost = by_last.min(axis=0)
    edges, place = [num_steps], num_steps
    for last in reversed(chosen):
        place = int(last[place])
        edges.append(place)
    return [round(edge * EDGE_STEP_S, 1) for edge in sorted({edge for edge in edges if edge > 0})]
