"""What became of a source's lines, and whether that is good enough to go on.

accepted + quarantined + rejected = lines, always.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.reasons import Rejected, summarise
from data.rows import RowTable

logger = logging.getLogger(__name__)

MODES = ("strict", "quarantine", "report")


@dataclass(frozen=True)
class Ingest:
    """The account of one source."""

    path: Path
    num_lines: int
    num_accepted: int
    num_rejected: int
    """Lines that cannot be used as lines."""
    rejected: tuple[Rejected, ...]
    """Every line that is not accepted, and every part of a recording that is not, in the order of the lines."""
    accepted_s: float
    """Seconds of the lines that are accepted."""
    quarantined_s: float
    """Seconds of those that are not, rejected ones too, as far as their source says them or a look finds them."""

    @classmethod
    def of(cls, read: RowTable, checked: RowTable) -> Ingest:
        """Make the account of a source.

        Args:
            read: the rows as they were read, with their lengths where those could be found.
            checked: those that can be used, and all that cannot in `rejected`.
        """
        lines = np.unique(checked.column("line"))
        lost_s = read.durations_s[~np.isin(read.column("line"), lines)]
        accepted = set(lines.tolist())
        lost = {record.line: record for record in checked.rejected if record.line not in accepted}
        account = cls(
            path=read.path,
            num_lines=read.num_lines,
            num_accepted=len(lines),
            num_rejected=sum(record.is_line_fault for record in lost.values()),
            rejected=tuple(sorted(checked.rejected, key=lambda record: record.line)),
            accepted_s=float(np.nansum(checked.durations_s)),
            quarantined_s=float(np.nansum(lost_s)),
        )
        assert account.num_accepted + len(lost) == account.num_lines, "each line is accepted or listed"
        return account

    @property
    def num_quarantined(self) -> int:
        """Lines whose audio or text is bad."""
        return self.num_lines - self.num_accepted - self.num_rejected

    @property
    def bad_share(self) -> float:
        """Share of lines or of seconds that is lost, whichever is larger."""
        total_s = self.accepted_s + self.quarantined_s
        by_time = self.quarantined_s / total_s if total_s > 0 else 0.0
        return max(1.0 - self.num_accepted / self.num_lines, by_time)

    def describe(self) -> str:
        """Return the account as one line of text."""
        return (
            f"{self.path}: {self.num_lines} lines = {self.num_accepted} accepted + {self.num_quarantined} quarantined "
            f"+ {self.num_rejected} rejected"
        )


def admit(account: Ingest, *, on_bad: str, max_bad_share: float) -> None:
    """Go on, or stop where too much of a source is bad.

    Args:
        account: of the source.
        on_bad: `strict` stops at the first bad line, as held-out sets want it, where a missing item must never improve
            a score; `quarantine` stops above `max_bad_share`; `report` only says it.
        max_bad_share: largest share of bad lines, or of hours, from 0 to 1.

    Raises:
        ValueError: with the count by code and the first few lines.
    """
    if on_bad not in MODES:
        raise ValueError(f"dataset.on_bad={on_bad} must be one of {', '.join(MODES)}")
    if not account.rejected:
        return
    is_too_much = on_bad == "strict" or (on_bad == "quarantine" and account.bad_share > max_bad_share)
    if is_too_much or account.num_accepted == 0:
        why = (
            "every line must be good here"
            if on_bad == "strict"
            else f"more than dataset.max_bad_share={max_bad_share:g} of the lines or of the hours"
            if is_too_much
            else "nothing is left"
        )
        raise ValueError(
            f"{account.num_lines - account.num_accepted} of {account.num_lines} lines of {account.path} cannot be used "
            f"({why}): "
            f"{summarise(account.rejected)}"
        )
    logger.warning("%s: %s", account.describe(), summarise(account.rejected))


def admit_all(tables: Sequence[RowTable]) -> None:
    """Stop unless every line of every table is good: for held-out sets.

    Raises:
        ValueError: with the count by code and the first few lines.
    """
    for table in tables:
        admit(Ingest.of(table, table), on_bad="strict", max_bad_share=0.0)
