"""Bars with intervals as plain HTML rows, and error against length as SVG: no script, coloured by the style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from infer.score.contest import Entry

WIDTH, HEIGHT = 420, 200  # of the view box; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 16, 34
UNITS = {"duration_s": "s", "loudness_dbfs": "dBFS", "snr_db": "dB"}
TITLES = {
    "duration_s": "Error against length",
    "loudness_dbfs": "Error against loudness",
    "snr_db": "Error against noise",
}


@dataclass(frozen=True)
class Bar:
    """One bar: an artefact on one language of one set."""

    entry: int
    """Place of the artefact; it picks the colour."""
    name: str
    rate: float | None
    interval: Sequence[float] | None
    width: float
    """Per cent of the track."""
    whisker_left: float
    whisker_width: float


@dataclass(frozen=True)
class BarGroup:
    """The bars of one language."""

    language: str
    metric: str
    utterances: int
    bars: tuple[Bar, ...]


def lay_out_bars(scores: Sequence[tuple[int, str, Mapping[str, Mapping[str, Any]]]]) -> list[BarGroup]:
    """Return the bars of each language, all to one scale that begins at 0.

    Args:
        scores: place and name of each artefact, and its figures by language.
    """
    figures = [f for _, _, languages in scores for f in languages.values()]
    ends = [f["intervals"]["headline"][1] for f in figures if f["intervals"]["headline"] is not None]
    longest = max([*ends, *(f["headline"] or 0.0 for f in figures), 1e-4])
    groups = []
    for code in sorted({code for _, _, languages in scores for code in languages}):
        bars = []
        for place, name, languages in scores:
            if code not in languages:
                continue
            rate, interval = languages[code]["headline"], languages[code]["intervals"]["headline"]
            low, high = interval if interval is not None else (0.0, 0.0)
            bars.append(
                Bar(
                    entry=place,
                    name=name,
                    rate=rate,
                    interval=interval,
                    width=100 * (rate or 0.0) / longest,
                    whisker_left=100 * low / longest,
                    whisker_width=100 * (high - low) / longest,
                )
            )
        known = next(languages[code] for _, _, languages in scores if code in languages)
        groups.append(BarGroup(code, known["headline_metric"].upper(), known["utterances"], tuple(bars)))
    return groups


def draw_error_by(entries: Sequence[Entry], field: str) -> Markup | None:
    """Draw the headline rate in bins of a quantity, one bar an artefact, with intervals; None where there is no bin.

    Args:
        entries: artefacts.
        field: `duration_s`, `loudness_dbfs` or `snr_db`.
    """
    tables = [{(row["low"], row["high"]): row for row in entry.score.error_by.get(field, [])} for entry in entries]
    bins = sorted({key for table in tables for key in table}, key=lambda key: (key[0] is not None, key[0] or 0.0))
    rows = [row for table in tables for row in table.values() if row["headline"] is not None]
    if len(bins) < 2 or not rows:
        return None
    highest = max(max(row["headline"], (row["interval"] or (0, 0))[1]) for row in rows) or 0.01
    slot = (WIDTH - LEFT - RIGHT) / len(bins)
    width = 0.72 * slot / len(entries)
    parts = [_axis(highest)]
    for i, key in enumerate(bins):
        for place, table in enumerate(tables):
            row = table.get(key)
            if row is not None and row["headline"] is not None:
                x = LEFT + i * slot + 0.14 * slot + place * width
                parts.append(_bar(row, x, width, highest, place, _bin_name(key, field)))
        parts.append(
            f'<text class="tick" x="{LEFT + (i + 0.5) * slot:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">'
            f"{escape(_bin_name(key, field))}</text>"
        )
        count = max(table[key]["utterances"] for table in tables if key in table)
        parts.append(
            f'<text class="tick small" x="{LEFT + (i + 0.5) * slot:.1f}" y="{HEIGHT - BOTTOM + 27}" '
            f'text-anchor="middle">{count:,}</text>'
        )
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(TITLES[field])}">{"".join(parts)}</svg>'
    )


def _y(rate: float, highest: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / highest


def _axis(highest: float) -> str:
    base = HEIGHT - BOTTOM
    return (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{TOP}" y2="{TOP}"/>'
        f'<text class="tick" x="{LEFT - 4}" y="{TOP + 4}" text-anchor="end">{100 * highest:.3g}</text>'
        f'<text class="tick" x="{LEFT - 4}" y="{base + 4}" text-anchor="end">0</text>'
    )


def _bar(row: Mapping[str, Any], x: float, width: float, highest: float, place: int, name: str) -> str:
    top, base = _y(row["headline"], highest), HEIGHT - BOTTOM
    title = f"{name}: {100 * row['headline']:.2f} %, {row['utterances']:,} clips"
    parts = [
        f'<rect class="e{place % 4}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(base - top, 0.5):.1f}">'
        f"<title>{escape(title)}</title></rect>"
    ]
    if row["interval"] is not None:
        middle, low, high = x + width / 2, _y(row["interval"][0], highest), _y(row["interval"][1], highest)
        parts.append(f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    return "".join(parts)


def _bin_name(key: tuple[float | None, float | None], field: str) -> str:
    low, high = key
    unit = UNITS[field]
    if low is None:
        return f"< {high:g} {unit}"
    if high is None:
        return f"> {low:g} {unit}"
    return f"{low:g} to {high:g} {unit}" if low < 0 else f"{low:g}–{high:g} {unit}"
