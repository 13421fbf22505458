"""Clips of one or more sources, ready to be read: known lengths, texts that fit, and a list of what was left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.audio import MIN_DURATION_S, SAMPLING_RATE, AudioError, Waveform, load_waveform
from data.features import MAX_WINDOW_S
from data.ingest import Ingest, admit
from data.labels import PREFIX_LENGTH, LabelBuilder, LabelError
from data.lengths import Faults, find_durations, find_lost_s
from data.packing import Packing, arrange_tables, pack_rows
from data.reasons import Reason, Rejected
from data.recordings import cut_recording
from data.records import stamp_of, table_of_rows
from data.rows import JoinedRows, Row, RowTable, encoded, reject_row
from data.sources import Source, read_source

SILENT_LEVEL = 1e-3  # -60 dBFS


@dataclass(frozen=True)
class Clips:
    """What a model is trained or validated on: each clip is a row, or several neighbours joined."""

    rows: JoinedRows
    bounds: npt.NDArray[np.int64]
    """(num_clips + 1): clip i is made of the rows from bounds[i] to bounds[i + 1]."""
    durations_s: npt.NDArray[np.float64]
    """(num_clips,) seconds, pauses included."""
    gaps_s: npt.NDArray[np.float64]
    """(num_clips,) seconds of pause between the rows of a clip."""
    ingest: tuple[Ingest, ...]
    """What became of each source's lines."""

    def __len__(self) -> int:
        return len(self.durations_s)

    @property
    def audio_s(self) -> float:
        """Seconds of speech."""
        return float(self.durations_s.sum())

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Lines and clips that were left out."""
        return tuple(record for ingest in self.ingest for record in ingest.rejected)

    @property
    def source_of(self) -> npt.NDArray[np.int64]:
        """(num_clips,) place of each clip's source."""
        return self.rows.table_of(self.bounds[:-1])

    @property
    def languages(self) -> npt.NDArray[np.str_]:
        """(num_clips,) language of each clip."""
        return self.rows.languages[self.bounds[:-1]]

    @property
    def no_speech(self) -> npt.NDArray[np.bool_]:
        """(num_clips,) whether nothing is said in a clip."""
        return self.rows.column("no_speech").astype(bool)[self.bounds[:-1]]

    def members(self, clip: int) -> range:
        """Return the places of a clip's rows."""
        return range(int(self.bounds[clip]), int(self.bounds[clip + 1]))


def load_row(row: Row, *, max_duration_s: float | None = float(MAX_WINDOW_S)) -> Waveform:
    """Decode the clip of a row, (num_samples,) float32 at 16 kHz.

    Raises:
        AudioError: if it cannot be used.
    """
    _verify_unchanged(row)
    waveform = load_waveform(
        encoded(row.audio),
        offset_s=row.offset_s,
        duration_s=row.duration_s,
        max_duration_s=max_duration_s,
        name=str(row.audio),
    )
    # The deviation leaves a constant offset out. A model that is taught words for silence says them to silence.
    if not row.no_speech and float(waveform.std()) < SILENT_LEVEL:
        raise AudioError(Reason.AUDIO_SILENT, str(row.audio), "under -60 dBFS")
    return waveform


def _verify_unchanged(row: Row) -> None:
    """Refuse a file that is no longer the one whose length the run knows; a missing one is seen when it is read."""
    if row.stamp is None or not isinstance(row.audio, Path):
        return
    try:
        status = row.audio.stat()
    except OSError:
        return
    if stamp_of(status) != row.stamp:
        raise AudioError(Reason.AUDIO_CHANGED, row.audio, f"{status.st_size} bytes, changed {_clock(status.st_mtime)}")


def _clock(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).astimezone().isoformat(" ", "seconds")


def open_clips(
    sources: Sequence[Source],
    label_builder: LabelBuilder,
    *,
    on_bad: str,
    max_bad_share: float,
    max_duration_s: float = float(MAX_WINDOW_S),
    packings: Sequence[Packing | None] = (),
) -> Clips:
    """Read sources, check every row, and find the length of every clip.

    Args:
        sources: their rows are joined.
        label_builder: finds texts that do not fit.
        on_bad: `strict`, `quarantine` or `report`; see `admit`.
        max_bad_share: largest share of bad lines or hours of a source that `quarantine` tolerates, 0 to 1.
        max_duration_s: longest clip; recordings with segments are cut to it.
        packings: one a source, how its rows are joined, None where they are not; () joins none.

    Raises:
        ValueError: if too much of a source is bad, with file, line and reason of the first few.
        FileNotFoundError: if a source does not exist.
    """
    opened = [
        open_source(source, label_builder, on_bad=on_bad, max_bad_share=max_bad_share, max_duration_s=max_duration_s)
        for source in sources
    ]
    return join_tables(
        arrange_tables([table for table, _ in opened], packings),
        label_builder,
        packings=packings,
        ingest=[account for _, account in opened],
    )


def open_source(
    source: Source,
    label_builder: LabelBuilder,
    *,
    on_bad: str,
    max_bad_share: float,
    max_duration_s: float = float(MAX_WINDOW_S),
) -> tuple[RowTable, Ingest]:
    """Read one source; see `open_clips`.

    Returns:
        Its rows, each with its length, up to the source's cap; and what became of its lines.
    """
    read, faults = find_durations(read_source(source))
    checked = _check(read, faults, label_builder, max_duration_s)
    account = Ingest.of(read, checked)
    if account.bad_share <= max_bad_share:  # above it, it does not matter how long the lost ones are
        account = dataclasses.replace(account, quarantined_s=account.quarantined_s + find_lost_s(read.lost))
    admit(account, on_bad=on_bad, max_bad_share=max_bad_share)
    return _cap(checked, source), account


def join_tables(
    tables: Sequence[RowTable],
    label_builder: LabelBuilder,
    *,
    packings: Sequence[Packing | None],
    ingest: Sequence[Ingest] = (),
) -> Clips:
    """Make clips of checked rows, one of each, or of several.

    Args:
        tables: one a source.
        label_builder: counts tokens.
        packings: one a source, how its rows are joined, None where they are not; () joins none.
        ingest: what became of each source's lines.
    """
    rows = JoinedRows(tables)
    sizes: list[npt.NDArray[np.int64]] = []
    gaps_s: list[npt.NDArray[np.float64]] = []
    for table, packing in zip(tables, packings or [None] * len(tables), strict=True):
        if packing is None:
            sizes.append(np.ones(len(table), dtype=np.int64))
            gaps_s.append(np.zeros(len(table)))
        else:
            sizes.append(np.diff(_pack(table, label_builder, packing)))
            gaps_s.append(packing.draw_gaps(len(sizes[-1])))
    counts, gaps = np.concatenate([np.zeros(0, np.int64), *sizes]), np.concatenate([np.zeros(0), *gaps_s])
    bounds = np.concatenate([[0], np.cumsum(counts)])
    spoken_s = np.add.reduceat(rows.durations_s, bounds[:-1]) if len(rows) else np.zeros(0)
    return Clips(rows, bounds, spoken_s + gaps * (counts - 1), gaps, tuple(ingest))


def check_rows(table: RowTable, label_builder: LabelBuilder, max_duration_s: float = float(MAX_WINDOW_S)) -> RowTable:
    """Return the rows that can be used, each with its length; recordings with segments become their windows."""
    return _check(*find_durations(table), label_builder, max_duration_s)


def _check(table: RowTable, faults: Faults, label_builder: LabelBuilder, max_duration_s: float) -> RowTable:
    """Check rows whose lengths are known, but for those that have a fault already."""
    durations_s = table.durations_s
    faults = dict(faults)
    is_long = np.round((durations_s - max_duration_s) * SAMPLING_RATE) > 0
    is_recording = (table.num_segments > 0) | (is_long & table.column("no_speech").astype(bool))
    for i in np.flatnonzero(is_long & ~is_recording):
        faults[int(i)] = (Reason.AUDIO_TOO_LONG, f"{durations_s[i]:.2f} s and no segments to cut it at")
    for i in np.flatnonzero(durations_s < MIN_DURATION_S):
        reason = Reason.AUDIO_EMPTY if durations_s[i] == 0 else Reason.AUDIO_TOO_SHORT
        faults.setdefault(int(i), (reason, f"{durations_s[i]:.3f} s"))
    faults |= _find_text_faults(table, ~is_recording, label_builder)
    rejected = [reject_row(table[i], *fault) for i, fault in sorted(faults.items())]
    windows: list[Row] = []
    stored: list[int | None] = []
    for i in np.flatnonzero(is_recording):
        if int(i) not in faults:
            parts, lost = _cut(table[int(i)], max_duration_s, label_builder)
            windows += parts
            stored += [table.table["stored"][int(i)].as_py()] * len(parts)
            rejected += lost
    is_kept = ~is_recording
    is_kept[list(faults)] = False
    kept = table.table.filter(pa.array(is_kept))
    if windows:
        kept = pa.concat_tables([kept, table_of_rows(windows, stored)]).unify_dictionaries()
        kept = kept.take(pa.array(np.argsort(kept["line"].to_numpy(), kind="stable")))
    return table.replace(kept, [*table.rejected, *rejected])


def _cut(row: Row, max_duration_s: float, label_builder: LabelBuilder) -> tuple[list[Row], list[Rejected]]:
    """Return the windows of a recording, and what is lost of it."""
    assert row.duration_s is not None, "looked up before"
    cut = cut_recording(row, duration_s=row.duration_s, window_s=max_duration_s, fits=label_builder.fits_window)
    windows: list[Row] = []
    lost = list(cut.rejected)
    for window in cut.windows:
        try:
            label_builder.verify(window)
            windows.append(window)
        except LabelError as e:
            lost.append(reject_row(window, e.reason, str(e)))
    return windows, lost


def _find_text_faults(table: RowTable, is_looked_at: npt.NDArray[np.bool_], label_builder: LabelBuilder) -> Faults:
    """Build the labels of rows that a look at whole columns cannot clear, and return what is wrong with them."""
    text, prompt = table.table["text"], table.table["prompt"]
    may_hold_control = pc.or_(pc.match_substring(text, "<|"), pc.match_substring(prompt, "<|")).to_numpy()
    languages = table.languages
    foreign = [language for language in np.unique(languages) if not label_builder.knows(str(language))]
    doubtful = pc.binary_length(text).to_numpy() > label_builder.max_sure_bytes
    doubtful |= may_hold_control | np.isin(languages, foreign)
    faults: Faults = {}
    for i in np.flatnonzero(doubtful & is_looked_at):
        try:
            label_builder.verify(table[int(i)])
        except LabelError as e:
            faults[int(i)] = (e.reason, str(e))
    return faults


def _cap(table: RowTable, source: Source) -> RowTable:
    """Leave out rows beyond the source's limits; those that stay are spread evenly over all."""
    keep = len(table) if source.max_clips is None else min(len(table), source.max_clips)
    if source.max_hours is not None and (hours := table.durations_s.sum() / 3600) > source.max_hours:
        keep = min(keep, max(1, int(len(table) * source.max_hours / hours)))
    if keep == len(table):
        return table
    return table.replace(table.table.take(pa.array(np.arange(keep) * len(table) // keep)), table.rejected)


def _pack(table: RowTable, label_builder: LabelBuilder, packing: Packing) -> npt.NDArray[np.int64]:
    texts = table.column("text")
    counts = [label_builder.count_tokens(texts[i : i + 4096].tolist()) for i in range(0, len(texts), 4096)]
    is_whole = ~table.column("no_speech").astype(bool) & np.isnan(table.column("open_start_s").astype(np.float64))
    return pack_rows(
        table.durations_s,
        groups=(table.languages, table.column("task"), table.column("speaker")),
        num_tokens=np.concatenate([np.zeros(0, np.int64), *counts]),
        is_packable=is_whole,
        max_duration_s=packing.max_duration_s,
        gap_s=packing.gaps_s[1],
        max_tokens=label_builder.max_positions - PREFIX_LENGTH,
    )
