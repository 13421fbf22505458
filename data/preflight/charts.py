"""Bars and histograms as inline SVG: sharp in print, coloured by the page's style sheet, readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 190  # of the view box; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 18, 30
NUM_TICKS = 6


def draw_histogram(
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    *,
    label: str,
    marks: Sequence[float] = (),
    is_whole: bool = False,
) -> Markup:
    """Draw a histogram whose bars are stacked by split.

    Args:
        edges: (num_bins + 1,) rising.
        counts: by split, (num_bins,) each.
        label: what is counted, for those who hear the page instead of seeing it.
        marks: places on the axis that get a dashed line, such as window edges.
        is_whole: whole numbers are counted, and named under their bars.
    """
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    highest = max(totals, default=0) or 1
    low, high = edges[0], edges[-1]
    width = (WIDTH - LEFT - RIGHT) / len(totals)
    plot_height = HEIGHT - TOP - BOTTOM

    def x_of(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [_gridline(plot_height, highest)]
    for i, total in enumerate(totals):
        bottom = float(HEIGHT - BOTTOM)
        for name, column in counts.items():
            height = plot_height * column[i] / highest
            if height > 0:
                bottom -= height
                parts.append(
                    f'<rect class="{escape(name)}" x="{LEFT + i * width + 0.5:.1f}" y="{bottom:.1f}" '
                    f'width="{max(width - 1, 0.5):.1f}" height="{height:.1f}"/>'
                )
        if total:
            span = f"{_short(edges[i])} to {_short(edges[i + 1])}: {total:,}"
            parts.append(
                f'<rect class="hover" x="{LEFT + i * width:.1f}" y="{TOP}" width="{width:.1f}" '
                f'height="{plot_height}"><title>{escape(span)}</title></rect>'
            )
    parts += [
        f'<line class="mark" x1="{x_of(mark):.1f}" x2="{x_of(mark):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        for mark in marks
        if low < mark < high
    ]
    middle = 0.5 if is_whole else 0.0
    ticks = nice_ticks(low, high, min_step=1.0 if is_whole else 0.0)
    parts += [_tick(x_of(value + middle), _short(value)) for value in ticks if value + middle <= high]
    return _figure(parts, label)


def nice_ticks(low: float, high: float, *, min_step: float = 0.0) -> list[float]:
    """Return about six round numbers between two others."""
    raw = max((high - low) / NUM_TICKS, min_step)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _gridline(plot_height: float, highest: int) -> str:
    base = TOP + plot_height
    return (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{TOP}" y2="{TOP}"/>'
        f'<text class="tick" x="{LEFT}" y="{TOP - 5}">{highest:,} clips</text>'
    )


def _tick(x: float, text: str) -> str:
    anchor = "start" if x < LEFT + 12 else "end" if x > WIDTH - RIGHT - 12 else "middle"
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def _figure(parts: Sequence[str], label: str) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'preserveAspectRatio="xMidYMid meet">{body}</svg>'
    )
