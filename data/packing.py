"""Short clips joined with their neighbours into windows of up to 30 s, so that an encoder hears speech, not padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from data.audio import SAMPLING_RATE, Waveform
from data.features import MAX_WINDOW_S
from data.rows import Row, RowTable, Segment
from data.texts import join_texts

POSITIONS_PER_CLIP = 3  # two timestamps, and the space before the text
ORDERS = ("manifest", "speaker")
GAP_STEP_S = 0.01
GAP_LEVEL = 1e-4  # of full scale: white noise between clips, since digital silence is heard nowhere


@dataclass(frozen=True)
class Packing:
    """How the rows of a source are joined."""

    max_duration_s: float = float(MAX_WINDOW_S)
    """Longest pack, gaps included."""
    order: str = "manifest"
    """`manifest` joins neighbours alone; `speaker` first brings the rows of one language and speaker together."""
    gaps_s: tuple[float, float] = (0.0, 0.0)
    """Least and greatest pause between the clips of a pack; each pack has its own."""

    def __post_init__(self) -> None:
        if not 0.0 < self.max_duration_s <= MAX_WINDOW_S:
            raise ValueError(f"pack_s={self.max_duration_s:g} must be above 0 and at most {MAX_WINDOW_S}")
        if self.order not in ORDERS:
            raise ValueError(f"dataset.pack_order={self.order} must be one of {', '.join(ORDERS)}")
        if len(self.gaps_s) != 2 or not 0.0 <= self.gaps_s[0] <= self.gaps_s[1] < self.max_duration_s:
            shown = ", ".join(f"{gap:g}" for gap in self.gaps_s)
            raise ValueError(f"dataset.pack_gaps_s=[{shown}] must be least and greatest seconds, such as [0, 1]")

    def draw_gaps(self, num_packs: int) -> npt.NDArray[np.float64]:
        """Return (num_packs,) seconds of pause between the clips of each pack; the same for the same number."""
        least, greatest = self.gaps_s
        drawn = np.random.default_rng(0).uniform(least, greatest, num_packs)
        return np.round(drawn / GAP_STEP_S) * GAP_STEP_S


def arrange_tables(tables: Sequence[RowTable], packings: Sequence[Packing | None]) -> list[RowTable]:
    """Return the tables with their rows in the order in which they are joined; () leaves all as they are."""
    pairs = zip(tables, packings or [None] * len(tables), strict=True)
    return [table if packing is None else _arrange(table, packing) for table, packing in pairs]


def _arrange(table: RowTable, packing: Packing) -> RowTable:
    """Return the rows in the order in which they are joined.

    With `order=speaker` those of one language and speaker stand together, where the first of them stood, and among
    themselves in their old order, so that what follows in a recording still follows.
    """
    if packing.order == "manifest":
        return table
    named = zip(table.languages, table.column("speaker"), strict=True)
    speakers = [f"{language}\t{speaker}" for language, speaker in named]
    _, first, place = np.unique(speakers, return_index=True, return_inverse=True)
    return table.replace(table.table.take(np.argsort(first[place], kind="stable")), table.rejected)


def pack_rows(
    durations_s: npt.NDArray[np.float64],
    *,
    groups: Sequence[npt.ArrayLike],
    num_tokens: npt.NDArray[np.int64],
    is_packable: npt.NDArray[np.bool_] | None = None,
    max_duration_s: float = 30.0,
    max_tokens: int = 444,
    gap_s: float = 0.0,
) -> npt.NDArray[np.int64]:
    """Join neighbouring rows, each pack as long as it may be, in the order of the rows.

    A row with another language between two of one keeps them apart: order is kept, because neighbours in a corpus are
    often of one speaker, and a pack of another order than the recording's would tell a wrong story.

    Args:
        durations_s: (num_rows,) seconds; rows of unknown length (NaN) stay alone.
        groups: columns of (num_rows,) each: source, language, task, and whatever else a pack must not mix, such as
            the speaker.
        num_tokens: (num_rows,) tokens of each text or an upper bound of them: the UTF-8 bytes, or what
            `LabelBuilder.count_tokens` gives.
        is_packable: (num_rows,) False for rows that stay alone: without speech, or with an open segment.
        max_duration_s: longest pack, in seconds, gaps included.
        max_tokens: most tokens of a pack, three more a row counted for its times: the label positions less the
            prefix of four.
        gap_s: silence between two clips, in seconds.

    Returns:
        Bounds, (num_packs + 1,) int64: pack i is made of the rows from bounds[i] to bounds[i + 1].

    Raises:
        ValueError: if a column has another length than `durations_s`.
    """
    num_rows = len(durations_s)
    columns = [np.asarray(column) for column in (*groups, num_tokens, *([] if is_packable is None else [is_packable]))]
    if any(column.shape != (num_rows,) for column in columns):
        raise ValueError(f"{num_rows} rows, but columns of {[column.shape for column in columns]}")
    if num_rows == 0:
        return np.zeros(1, dtype=np.int64)
    # In whole samples: sums of seconds would let three clips of 10 s be longer than 30.
    gap = round(gap_s * SAMPLING_RATE)
    is_known = np.isfinite(durations_s)
    samples = np.round(np.where(is_known, durations_s, 0.0) * SAMPLING_RATE).astype(np.int64) + gap
    is_alone = ~is_known if is_packable is None else ~(is_known & is_packable)

    is_border = is_alone.copy()
    is_border[1:] |= is_alone[:-1]
    for column in columns[: len(groups)]:
        is_border[1:] |= column[1:] != column[:-1]
    # A pack may go on to the next border, to the last row that its window holds, or to the last that its labels hold.
    borders = np.append(np.flatnonzero(is_border), num_rows)
    rows = np.arange(num_rows)
    stops = borders[np.searchsorted(borders, rows, side="right")]
    for amounts, limit in (
        (samples, round(max_duration_s * SAMPLING_RATE) + gap),
        (num_tokens + POSITIONS_PER_CLIP, max_tokens),
    ):
        sums = np.concatenate([[0], np.cumsum(amounts)])
        stops = np.minimum(stops, np.searchsorted(sums, sums[:-1] + limit, side="right") - 1)
    following = np.maximum(stops, rows + 1).tolist()  # a row that is too much by itself is one pack all the same
    bounds = [0]
    while bounds[-1] < num_rows:
        bounds.append(following[bounds[-1]])
    return np.array(bounds, dtype=np.int64)


def join_rows(rows: Sequence[Row], *, starts_s: Sequence[float], durations_s: Sequence[float]) -> Row:
    """Return the row of a pack, for `LabelBuilder.build`: the texts joined, each clip a segment, the first's prompt.

    Args:
        rows: members of the pack, in order.
        starts_s: where each begins in the pack, in seconds, as `join_waveforms` gives it.
        durations_s: length of each, in seconds.

    Returns:
        A row whose clip is the pack, `offset_s` None: times count from its beginning. A member with segments of its
        own brings those, another is one segment from its beginning to its end.

    Raises:
        ValueError: if there is none, or one with an open segment has another behind it.
    """
    if not rows:
        raise ValueError("a pack has at least one row")
    if len(rows) == 1:
        return rows[0]
    segments: list[Segment] = []
    for row, start_s, duration_s in zip(rows, starts_s, durations_s, strict=True):
        if row.open_start_s is not None:
            raise ValueError(f"{row.id} ends within a segment: it cannot be joined with others; leave it alone")
        if not row.no_speech:
            segments += _placed(row, start_s, duration_s)
    return replace(
        rows[0],
        id="+".join([rows[0].id, rows[-1].id]),
        text=join_texts((row.text for row in rows), rows[0].language),
        segments=tuple(segments),
        offset_s=None,
        duration_s=starts_s[-1] + durations_s[-1],
        no_speech=all(row.no_speech for row in rows),
    )


def join_waveforms(waveforms: Sequence[Waveform], *, gap_s: float = 0.0) -> tuple[Waveform, tuple[float, ...]]:
    """Join clips, with a pause between them.

    Args:
        waveforms: (num_samples,) float32 at 16 kHz each.
        gap_s: of very soft noise between two clips, in seconds.

    Returns:
        The pack, (num_samples,) float32, and where each clip begins in it, in seconds.
    """
    num_gap = round(gap_s * SAMPLING_RATE) if len(waveforms) > 1 else 0
    gap = np.zeros(0, dtype=np.float32)
    if num_gap:  # drawn only then: most clips stand alone
        gap = (GAP_LEVEL * np.random.default_rng(0).standard_normal(num_gap)).astype(np.float32)
    parts: list[Waveform] = []
    starts_s: list[float] = []
    num_samples = 0
    for waveform in waveforms:
        if parts:
            parts.append(gap)
            num_samples += len(gap)
        starts_s.append(num_samples / SAMPLING_RATE)
        parts.append(waveform)
        num_samples += len(waveform)
    return np.concatenate(parts), tuple(starts_s)


def _placed(row: Row, start_s: float, duration_s: float) -> list[Segment]:
    """Return a member's segments in the time of the pack."""
    if not row.segments:
        return [Segment(start_s, start_s + duration_s, row.text)]
    shift_s = start_s - (row.offset_s or 0.0)
    return [Segment(segment.start_s + shift_s, segment.end_s + shift_s, segment.text) for segment in row.segments]
