"""Clips found bad on the way: listed once, never used again, and too many of them stop the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.batches import BadRow, SpeechBatch
from data.reasons import Reason, Rejected, reject, summarise

logger = logging.getLogger(__name__)


class Quarantine:
    """Rows that are out, by the keys of their references."""

    def __init__(
        self, path: Path, *, on_bad: str, max_bad_share: float, refused: Sequence[Rejected], writes: bool = True
    ) -> None:
        """Begin with none.

        Args:
            path: `quarantine.jsonl` of the run.
            on_bad: `strict`, `quarantine` or `report`; see `data.ingest.admit`.
            max_bad_share: share of all lines, or of all hours, above which `quarantine` stops.
            refused: what was left out when the sources were opened.
            writes: whether this process is the one that keeps the file.
        """
        self.path = path
        self.on_bad = on_bad
        self.max_bad_share = max_bad_share
        self.num_refused = len(refused)
        self.refused_s = _sum_s(refused)
        self.writes = writes
        self.known: dict[int, Rejected] = {}

    def add(self, bad: Sequence[BadRow], *, num_rows: int, audio_s: float) -> None:
        """List rows that are new here.

        Args:
            bad: what was found.
            num_rows: rows of the data set, or of a stream so far.
            audio_s: seconds of these rows.

        Raises:
            ValueError: if there are too many.
        """
        fresh = {item.key: item.record for item in bad if item.key not in self.known}
        if not fresh:
            return
        self.known.update(fresh)
        if self.writes:
            append_quarantine(self.path, list(fresh.values()))
        logger.warning("quarantined: %s", summarise(fresh.values()))
        num_bad, num_lines = len(self.known) + self.num_refused, num_rows + self.num_refused
        bad_s, all_s = _sum_s(self.known.values()) + self.refused_s, audio_s + self.refused_s
        bad_share = max(num_bad / num_lines, bad_s / all_s if all_s > 0 else 0.0)
        if self.on_bad == "strict" or (self.on_bad == "quarantine" and bad_share > self.max_bad_share):
            raise ValueError(
                f"{num_bad} of {num_lines} clips, {bad_s:.0f} of {all_s:.0f} s, cannot be used, more than "
                f"dataset.max_bad_share={self.max_bad_share:g} or dataset.on_bad=strict allow; they are listed in "
                f"{self.path}"
            )

    def without(self, micro_batches: Sequence[SpeechBatch]) -> list[SpeechBatch]:
        """Return the batches without the clips whose loss was not finite; those that cannot be read never come."""
        code = Reason.LOSS_NOT_FINITE.code
        bad = {key for key, record in self.known.items() if record.code == code}
        if not bad:
            return list(micro_batches)
        kept = [
            [i for i, members in enumerate(batch.members) if bad.isdisjoint(row.key for row in members)]
            for batch in micro_batches
        ]
        return [batch.select(keep) if keep else batch.blank() for batch, keep in zip(micro_batches, kept, strict=True)]

    def state(self) -> list[list[Any]]:
        """Return it as JSON."""
        return [[key, asdict(record)] for key, record in self.known.items()]

    def load_state(self, state: Sequence[Sequence[Any]]) -> None:
        """Read it back."""
        self.known = {int(key): Rejected(**record) for key, record in state}


def _sum_s(records: Iterable[Rejected]) -> float:
    return sum(record.duration_s or 0.0 for record in records)


def non_finite_rows(micro_batches: Sequence[SpeechBatch], clips: Sequence[int]) -> list[BadRow]:
    """Return the rows of clips whose loss was not finite."""
    if not clips:
        return []
    return [
        BadRow(
            row.key,
            reject(Reason.LOSS_NOT_FINITE, manifest=row.manifest, line=row.line, id=row.id, audio=row.audio),
        )
        for batch in micro_batches
        for clip, members in zip(batch.clips, batch.members, strict=True)
        if clip in clips
        for row in members
    ]


def append_quarantine(path: Path, rejected: Sequence[Rejected]) -> None:
    """Append records to `quarantine.jsonl`, one JSON object a line."""
    if rejected:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for record in rejected:
                file.write(json.dumps(record.as_record(), ensure_ascii=False) + "\n")
