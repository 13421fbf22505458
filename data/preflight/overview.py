"""A picture of a corpus: hours by language, clip lengths, loudness and speech rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#22303c", "#e6e9eb"
COLOURS = {"train": "#2f6f8f", "validation": "#d9a441", "test": "#b5442f"}
VERDICTS = {"ready": "#2f7246", "look": "#96650f", "not_ready": "#a93b27"}
MAX_LANGUAGES = 12  # bars; the rest is in the report
PANELS = (
    ("duration_s", "clip length, s"),
    ("rms_dbfs", "loudness, dBFS"),
    ("characters_per_s", "characters a second"),
)


def draw_overview(record: Mapping[str, Any], target: Path, *, title: str) -> Path:
    """Draw the figures of a report as a PNG.

    Args:
        record: what `report.json` holds.
        target: the picture.
        title: above it.
    """
    figure = Figure(figsize=(11, 6.2), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_languages(axes[0, 0], record["languages"])
    for axis, (quantity, label) in zip(axes.flat[1:], PANELS, strict=True):
        _draw_histogram(axis, record["quantities"][quantity], label)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    verdict = record["verdict"]
    figure.suptitle(f"{title}: {verdict['headline']}", color=VERDICTS[verdict["level"]], parse_math=False)
    figure.savefig(target)
    return target


def _draw_languages(axis: Axes, languages: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    names = list(languages)[:MAX_LANGUAGES]
    axis.set(xlabel="hours", title="Speech by language" if len(names) == len(languages) else "Most frequent languages")
    if not names:
        axis.text(0.5, 0.5, "no usable clip", ha="center", transform=axis.transAxes, color=INK)
        return
    left = [0.0] * len(names)
    for split, colour in COLOURS.items():
        hours = [languages[name].get(split, {}).get("hours", 0.0) for name in names]
        if any(hours):
            axis.barh(names, hours, left=left, color=colour, label=split)
        left = [a + b for a, b in zip(left, hours, strict=True)]
    axis.invert_yaxis()
    axis.grid(axis="x", color=GRID)
    axis.set_xlim(0, 1.3 * max(left))  # room for the legend
    axis.legend(frameon=False, fontsize="small", loc="lower right")


def _draw_histogram(axis: Axes, found: Mapping[str, Any] | None, label: str) -> None:
    axis.set(xlabel=label, ylabel="clips")
    axis.grid(axis="y", color=GRID)
    if found is None:
        axis.text(0.5, 0.5, "no usable clip", ha="center", transform=axis.transAxes, color=INK)
        return
    edges = found["edges"]
    bottom = [0] * (len(edges) - 1)
    for split, counts in found["counts"].items():
        axis.bar(edges[:-1], counts, width=edges[1] - edges[0], bottom=bottom, align="edge", color=COLOURS[split])
        bottom = [a + b for a, b in zip(bottom, counts, strict=True)]
    axis.set_xlim(edges[0], edges[-1])
