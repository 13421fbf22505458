"""The gate's record as tables: for the terminal and as Markdown, from the same cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from infer.gate.verdict import percent

ABSENT = "–"
MIB = 2**20
HEAD = (
    *("runtime", "format", "windows", "WER %", "CER %", "language %", "same text %"),
    *("p50 ms", "p95 ms", "RTFx", "peak MiB", "weights MiB", "verdict"),
)
LEGEND = (
    "WER over the languages that are judged by words; same text: identical, letter by letter, to ours at the same "
    "windows; p50, p95: one clip at a time, from the file to the text; peak: growth of the process"
)
STYLES = {"passed": "green", "missed": "bold red", "failed": "bold red", "reference": "dim", "not run": "dim"}


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one runtime."""
    head = [str(row["client"]), str(row["format"]), str(row["windows"])]
    if "wer" not in row:
        return [*head, *[ABSENT] * (len(HEAD) - len(head) - 1), str(row["verdict"])]
    return [
        *head,
        percent(row["wer"]),
        percent(row["cer"]),
        percent(row["language_accuracy"], 1),
        percent(row["identical"], 1),
        _scaled(row.get("latency_p50_s"), 1e3, 0),
        _scaled(row.get("latency_p95_s"), 1e3, 0),
        _scaled(row.get("rtfx"), 1.0, 1),
        _scaled(row.get("peak_bytes"), 1 / MIB, 0),
        _scaled(row.get("weights_bytes"), 1 / MIB, 1),
        str(row["verdict"]),
    ]


def _scaled(value: float | None, factor: float, digits: int) -> str:
    return ABSENT if value is None else f"{value * factor:,.{digits}f}"


def render_runtimes(record: Mapping[str, Any]) -> Table:
    """Draw the table of runtimes for the terminal."""
    table = Table(title=Text("Every runtime on the same clips, with the same decode profile"), caption=Text(LEGEND))
    for i, heading in enumerate(HEAD):
        table.add_column(Text(heading), justify="left" if i < 3 or i == len(HEAD) - 1 else "right")
    for row in record["runtimes"]:
        *cells, verdict = row_cells(row)
        table.add_row(*map(Text, cells), Text(verdict, style=STYLES.get(str(row["verdict"]), "")))
    return table


def render_parity(record: Mapping[str, Any]) -> Table:
    """Draw P1 to P5 and what became of times, one line each."""
    table = Table(title=Text("Parity with the FP32 masters"))
    for heading in ("part", "found", "verdict"):
        table.add_column(heading, overflow="fold")
    missed = {miss["part"] for miss in record["misses"]}
    for part, sentence in parity_lines(record):
        is_missed = part in missed
        table.add_row(
            part,
            Text(sentence),
            Text("missed" if is_missed else "passed", style=STYLES["missed" if is_missed else "passed"]),
        )
    return table


def parity_lines(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what each part found, in words."""
    parity, lines = record["parity"], []
    static = parity["P1"]
    masters = "held against the masters" if static["masters"] else "masters not known"
    lines.append(("P1", f"{static['weights']['num_values']:,} weights, {len(static['findings'])} findings; {masters}"))
    if "P2" in parity and "identical" in parity["P2"]:
        found = parity["P2"]
        lines.append(("P2", f"{found['num_identical']} of {found['num_clips']} texts identical in a fresh process"))
    if "P3" in parity:
        found = parity["P3"]
        lines.append(
            (
                "P3",
                f"{found['clips']} clips: "
                f"same token {percent(found['forced']['top1'])} %, {found['forced']['kl']:.1e} nats a token; at 30 s "
                f"{percent(found['forced_30_s']['top1'])} %; WER {100 * found['texts']['wer']:+.2f} points, "
                f"{percent(found['texts']['identical'], 1)} % of texts identical",
            )
        )
    if "P4" in parity:
        worst = max(parity["P4"], key=lambda name: parity["P4"][name]["share_of_max"])
        hits = sum(head["clamp_hits"] for head in parity["P4"].values())
        share = parity["P4"][worst]["share_of_max"]
        lines.append(("P4", f"largest activation {percent(share)} % of FP16's largest, on {worst}; {hits} clamp hits"))
    if "P5" in parity:
        lines.append(("P5", _manifest_line(parity["P5"])))
    if record.get("windows"):
        lines.append(("windows", record["windows"]["sentence"]))
    if record.get("long_form"):
        lines.append(("timestamps", record["long_form"]["sentence"]))
    return lines


def _manifest_line(found: Mapping[str, Any]) -> str:
    """Say what figures the manifest had, and that it gets those of the gate."""
    weights = found["artefact_sha256"][:12]
    if not found["claimed"]:
        return f"no figures in the manifest before; the gate writes those of {weights}"
    if not found.get("names_weights", True):
        return f"the manifest's figures did not say of which weights; the gate writes those of {weights}"
    compared = "" if found["same_set"] else ", on other clips, so not compared"
    return f"the manifest's figures are of {weights}{compared}"


def remarks(record: Mapping[str, Any]) -> list[str]:
    """Return why runtimes were not run, and what a runtime does without."""
    lines = [f"{r['client']} ({r['format']}): {r['reason']}" for r in record["runtimes"] if r.get("reason")]
    lines += [
        f"{r['client']} ({r['format']}) cannot be given the artefact's {' and '.join(r['lacks'])}"
        for r in record["runtimes"]
        if r.get("lacks")
    ]
    return lines


def runtimes_markdown(record: Mapping[str, Any]) -> str:
    """Return the table of runtimes as Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    lines += [f"| {' | '.join(row_cells(row))} |" for row in record["runtimes"]]
    clips = record["clips"]
    return "\n".join([*lines, "", f"{clips['clips']} clips, {clips['audio_s']:.0f} s of audio. {LEGEND}."])


def to_markdown(record: Mapping[str, Any]) -> str:
    """Return the whole record as Markdown."""
    lines = [f"# The gate: {record['verdict']}", "", "| part | found |", "|---|---|"]
    lines += [f"| {part} | {sentence} |" for part, sentence in parity_lines(record)]
    lines += ["", runtimes_markdown(record), ""]
    if record["misses"]:
        lines += ["## What missed its tolerance", ""]
        for miss in record["misses"]:
            about = f" ({', '.join(miss['formats'])})" if miss["formats"] else ""
            lines.append(f"- {miss['part']}{about}: {miss['sentence']}")
        lines.append("")
    if remarks(record):
        lines += [*(f"- {line}" for line in remarks(record)), ""]
    return "\n".join(lines)
