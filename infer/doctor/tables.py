"""What was found in a folder, for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from infer.doctor.converted import ConvertedModel
from infer.doctor.examination import Examination

STYLES = {"works": "green", "trouble": "yellow", "broken": "bold red"}


def render_verdicts(examination: Examination | ConvertedModel) -> Table:
    """Lay out one row a runtime."""
    table = Table(title=Text(f"{examination.path} in each runtime"))
    for heading in ("runtime", "verdict", "because of"):
        table.add_column(heading)
    for verdict in examination.verdicts:
        style = STYLES[verdict.level]
        table.add_row(verdict.runtime, Text(verdict.level, style=style), Text(", ".join(verdict.codes)))
    return table


def render_findings(examination: Examination | ConvertedModel) -> Table:
    """Lay out one row a finding: what was found, and what to type."""
    table = Table(title=Text(f"{len(examination.findings)} findings"), show_lines=True)
    for heading in ("check", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in examination.findings:
        style = STYLES["broken" if finding.breaks else "trouble"]
        table.add_row(Text(finding.code, style=style), Text(finding.found), Text(finding.advice))
    return table
