"""The report as one HTML file: no script, no network, light and dark, for a screen, a phone and paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from data.preflight.charts import draw_histogram
from data.preflight.columns import reason_of
from data.preflight.report import Report, write_lines
from data.preflight.writing import show_invisible

FOLDER = Path(__file__).parent
MAX_LISTED = 400  # characters of a transcript that are shown


@dataclass(frozen=True)
class Panel:
    """One histogram of the page."""

    quantity: str
    title: str
    unit: str
    remark: str


PANELS = (
    Panel("duration_s", "Clip length", "s", "Dashed: the window edges of the model."),
    Panel("label_tokens", "Label tokens a clip", "", "With language, task and end tokens; Whisper has 448 positions."),
    Panel(
        "characters_per_s", "Characters a second", "", "Beyond 25 or under 0.5, text and clip hardly belong together."
    ),
    Panel("rms_dbfs", "Loudness", "dBFS", "Root mean square of a clip; 0 dBFS is a mean square of full scale."),
    Panel("peak_dbfs", "Loudest sample", "dBFS", "Many clips at 0 dBFS are overdriven, or were normalised."),
    Panel("silence_percent", "Pauses", "%", "Share of 20 ms frames 35 dB under the loud ones."),
)


@dataclass(frozen=True)
class Heading:
    """What stands above the report."""

    title: str
    written: str
    """Date."""
    command: str
    """What to type next."""
    remark: str = ""
    """What could not be looked at, and why."""


def write_page(report_dir: Path, report: Report, heading: Heading) -> Path:
    """Write `report.html` and return its path.

    Whatever comes from the corpus is escaped by the template engine: a transcript is shown, never run.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["shown"] = _shown
    environment.filters["hours"] = format_hours
    environment.filters["per_cent"] = format_share
    environment.filters["language"] = lambda code: LANGUAGES.get(code, code).title()
    text = environment.get_template("page.html").render(
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        heading=heading,
        panels=[_panel(panel, report.record) for panel in PANELS if report.record["quantities"][panel.quantity]],
        bars=_language_bars(report.record["languages"]),
        window_bars=_window_bars(report.record["windows"]),
        reasons=_reasons(report.record["splits"]),
        **{**report.record, "findings": report.findings},
    )
    path = report_dir / "report.html"
    write_lines(path, iter([text]))
    return path


def format_hours(hours: float) -> str:
    """Return a length of time in the unit that a reader would choose."""
    if hours >= 100:
        return f"{hours:,.0f} h"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def _shown(text: str) -> str:
    cut = text if len(text) <= MAX_LISTED else f"{text[:MAX_LISTED]} …"
    return show_invisible(cut)


def _reasons(splits: Mapping[str, Any]) -> dict[str, str]:
    codes = sorted({code for split in splits.values() for code in split["codes"]})
    return {code: reason_of(code).message for code in codes}


def _panel(panel: Panel, record: Mapping[str, Any]) -> dict[str, Any]:
    found = record["quantities"][panel.quantity]
    marks = record["settings"]["edges_s"] if panel.quantity == "duration_s" else ()
    return {
        "panel": panel,
        "chart": draw_histogram(
            found["edges"],
            found["counts"],
            label=f"Histogram: {panel.title}",
            marks=marks,
            is_whole=panel.quantity == "label_tokens",
        ),
        "median": found["percentiles"]["p50"],
        "low": found["percentiles"]["p5"],
        "high": found["percentiles"]["p95"],
    }


def _language_bars(languages: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    sums = {name: sum(part["hours"] for part in parts.values()) for name, parts in languages.items()}
    longest = max(sums.values(), default=0.0) or 1.0
    return [
        {
            "language": name,
            "hours": sums[name],
            "clips": int(sum(part["clips"] for part in parts.values())),
            "parts": [(split, 100 * part["hours"] / longest) for split, part in parts.items()],
        }
        for name, parts in languages.items()
    ]


def _window_bars(windows: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if windows is None:
        return []
    rows: Sequence[tuple[str, float, float | None]] = [
        ("every clip padded to 30 s, as stock Whisper", windows["full_hours"], None),
        (f"window=bucketed, edges {_edges(windows['edges_s'])} s", windows["bucketed_hours"], windows["factor"]),
    ]
    if windows["suggested_edges_s"]:
        hours = windows["full_hours"] / windows["suggested_factor"]
        label = f"edges for this corpus, {_edges(windows['suggested_edges_s'])} s"
        rows = [*rows, (label, hours, windows["suggested_factor"])]
    rows = [*rows, ("the speech itself", windows["speech_hours"], None)]
    return [
        {"label": label, "hours": hours, "factor": factor, "width": 100 * hours / windows["full_hours"]}
        for label, hours, factor in rows
    ]


def _edges(edges_s: Sequence[float]) -> str:
    return " ".join(f"{edge:g}" for edge in edges_s)


def format_share(share: float) -> str:
    """Return a share as per cent; what is there is never 0.0 %."""
    if 0.0 < share < 0.0005:
        return "under 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.9995 else "100 %"
