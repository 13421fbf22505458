"""The comparison as tables: for the terminal and as Markdown, from the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

ABSENT = "–"
MIB = 2**20
Cells = list[str]


def lay_out_costs(record: Mapping[str, Any]) -> tuple[Cells, list[Cells]]:
    """Return the head and the rows of the first table: what each arithmetic costs, and what it hears."""
    card = record["device"]["kind"] == "cuda"
    head = [
        "arithmetic",
        "weights MiB",
        f"{'card' if card else 'peak'} MiB",
        "p50 ms",
        "p95 ms",
        "floor ms",
        "RTFx",
        "error %",
        "95 %",
        "same text %",
        "language %",
    ]
    return head, [_cost_cells(row) for row in record["rows"]]


def lay_out_languages(record: Mapping[str, Any]) -> tuple[Cells, list[Cells]]:
    """Return the head and the rows of the second table: headline rate and detection by language and arithmetic."""
    measured = [row for row in record["rows"] if "absent" not in row]
    head = ["language", "rate", *(f"{row['title']} %" for row in measured), "found FP32 %", "found, least %"]
    rows = []
    codes = sorted({code for row in measured for code in row["languages"]})
    for code in codes:
        figures = [row["languages"].get(code) for row in measured]
        known = [f for f in figures if f is not None]
        found = [f["language_accuracy"] for f in known if f["language_accuracy"] is not None]
        rows.append(
            [
                code,
                known[0]["headline_metric"].upper(),
                *(_with_interval(f) if f is not None else ABSENT for f in figures),
                _percent(known[0]["language_accuracy"], 1),
                _percent(min(found, default=None), 1),
            ]
        )
    return head, rows


def render_costs(record: Mapping[str, Any]) -> Table:
    """Draw the first table for the terminal."""
    head, rows = lay_out_costs(record)
    table = Table(title=Text(f"Arithmetics on {record['device']['name']}"), caption=Text(record["verdict"]["sentence"]))
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="left" if i == 0 else "right", no_wrap=True)
    for row, cells in zip(record["rows"], rows, strict=True):
        if "absent" in row:
            table.add_row(Text(row["title"], style="dim"), *[Text(ABSENT, style="dim")] * (len(head) - 1))
        else:
            table.add_row(*map(Text, cells))
    return table


def render_languages(record: Mapping[str, Any]) -> Table:
    """Draw the second table for the terminal."""
    head, rows = lay_out_languages(record)
    table = Table(title=Text("By language: headline rate and its 95 % interval"))
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="left" if i < 2 else "right")
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table


def absences(record: Mapping[str, Any]) -> list[str]:
    """Return a line for each arithmetic that is not there, with the reason."""
    return [f"{row['title']}: {row['absent']}" for row in record["rows"] if "absent" in row]


def to_markdown(record: Mapping[str, Any]) -> str:
    """Return the whole comparison as Markdown."""
    settings = record["settings"]
    lines = [
        f"# Precision of {record['artefact']['path']}",
        "",
        record["verdict"]["sentence"],
        "",
        f"On {record['device']['name']}; {record['utterances']:,} clips, {record['audio_s'] / 60:.1f} min; decoding "
        f"{settings['decoding']['name']}, batches of {settings['batch_size']}; weights sha256 "
        f"{record['artefact']['sha256'][:12]}.",
        "",
        *_markdown_table(*lay_out_costs(record)),
        "",
        *[f"- {line}" for line in (*absences(record), *record["legend"])],
        "",
        "## By language",
        "",
        *_markdown_table(*lay_out_languages(record)),
        "",
    ]
    return "\n".join(lines)


def _markdown_table(head: Cells, rows: Sequence[Cells]) -> list[str]:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)]


def _cost_cells(row: Mapping[str, Any]) -> Cells:
    if "absent" in row:
        return [row["title"], *[ABSENT] * 10]
    versus = row["versus"]
    return [
        row["title"],
        _mib(row["weights_bytes"]),
        _mib(row["peak_bytes"]),
        _ms(row["latency_p50_s"]),
        _ms(row["latency_p95_s"]),
        _ms(row["floor_s"]),
        f"{row['rtfx']:.1f}",
        _percent(row["headline"], 2),
        _ends(row["intervals"]["headline"]),
        ABSENT if versus is None else _percent(versus["identical"], 1),
        _percent(row["language_accuracy"], 1),
    ]


def _with_interval(figures: Mapping[str, Any]) -> str:
    return f"{_percent(figures['headline'], 1)} ({_ends(figures['intervals']['headline'], 1)})"


def _ends(interval: Sequence[float] | None, num_decimals: int = 2) -> str:
    if interval is None:
        return ABSENT
    return f"{100 * interval[0]:.{num_decimals}f}–{100 * interval[1]:.{num_decimals}f}"


def _percent(fraction: float | None, num_decimals: int) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.{num_decimals}f}"


def _mib(num_bytes: int | None) -> str:
    if num_bytes is None:
        return ABSENT
    mib = num_bytes / MIB
    return f"{mib:,.0f}" if mib >= 100 else f"{mib:.1f}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT
    ms = 1000 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"
