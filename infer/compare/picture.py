"""The comparison as a picture: memory, latency beside its floor, speed, error with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID, SOFT = "#22303c", "#e6e9eb", "#9fb4c0"
COLOURS = {"torch": "#2f6f8f", "ctranslate2": "#d9a441"}
VERDICTS = {"safe": "#2f7246", "undecided": "#96650f", "unsafe": "#a93b27", "unknown": INK}


def draw_comparison(record: Mapping[str, Any], target: Path) -> Path:
    """Draw the figures of a comparison as a PNG and return its path."""
    rows = [row for row in record["rows"] if "absent" not in row]
    figure = Figure(figsize=(11, 6.4), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2)
    _bars(axes[0, 0], rows, lambda row: (row["peak_bytes"] or 0) / 2**20, "memory, MiB (dark: weights)")
    _overlay(axes[0, 0], rows, lambda row: row["weights_bytes"] / 2**20)
    _bars(axes[0, 1], rows, lambda row: 1000 * row["latency_p50_s"], "one clip, ms: p50, p95; dotted: floor")
    _latency_marks(axes[0, 1], rows)
    _bars(axes[1, 0], rows, lambda row: row["rtfx"], "RTFx in batches: more is faster")
    _bars(axes[1, 1], rows, lambda row: 100 * (row["headline"] or 0), "error, %, with its 95 % interval")
    _error_marks(axes[1, 1], rows)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.grid(axis="x", color=GRID)
    verdict = record["verdict"]
    figure.suptitle(
        f"{record['device']['name']}\n{verdict['sentence']}",
        color=VERDICTS[verdict["level"]],
        fontsize=11,
        parse_math=False,
        wrap=True,
    )
    figure.savefig(target)
    return target


def _bars(
    axis: Axes, rows: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float], title: str
) -> None:
    values = [value(row) for row in rows]
    colours = [COLOURS["ctranslate2" if row["name"].startswith("ctranslate2") else "torch"] for row in rows]
    bars = axis.barh([row["title"] for row in rows], values, color=colours, alpha=0.75)
    axis.bar_label(bars, [f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in values], padding=4, fontsize="small")
    axis.set_title(title, fontsize="medium", color=INK)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.25 * max([*values, 1e-9]))


def _overlay(axis: Axes, rows: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> None:
    axis.barh([row["title"] for row in rows], [value(row) for row in rows], color=INK, height=0.35)


def _latency_marks(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for i, row in enumerate(rows):
        p50, p95 = 1000 * row["latency_p50_s"], 1000 * row["latency_p95_s"]
        axis.plot([p50, p95], [i + 0.3, i + 0.3], color=INK, linewidth=1.2, marker="|")
        if row["floor_s"] is not None:
            axis.plot([1000 * row["floor_s"]] * 2, [i - 0.4, i + 0.4], color=INK, linestyle=":", linewidth=1.6)
    axis.set_xlim(0, max(axis.get_xlim()[1], 1.08 * max(1000 * row["latency_p95_s"] for row in rows)))


def _error_marks(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    highest = axis.get_xlim()[1]
    for i, row in enumerate(rows):
        ends = row["intervals"]["headline"]
        if ends is not None:
            axis.plot([100 * ends[0], 100 * ends[1]], [i + 0.3, i + 0.3], color=INK, linewidth=1.2, marker="|")
            highest = max(highest, 110 * ends[1])
    axis.set_xlim(0, highest)
