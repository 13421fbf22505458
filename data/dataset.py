"""Clips of one or more manifests, ready to be read: checked labels, known lengths, quarantine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.audio import MIN_DURATION_S, SAMPLING_RATE, AudioError, Waveform, load_waveform, probe_duration_s
from data.features import MAX_WINDOW_S
from data.labels import LabelBuilder, LabelError, Labels
from data.manifest import Manifest, Row, admit, read_manifest
from data.reasons import Reason, Rejected, reject

logger = logging.getLogger(__name__)

INT16_FULL_SCALE = 32767.0


@dataclass(frozen=True)
class Clips:
    """Rows that passed every check that needs no decoding, and what did not."""

    rows: tuple[Row, ...]
    labels: tuple[Labels, ...]
    durations_s: tuple[float, ...]
    rejected: tuple[Rejected, ...]

    @property
    def audio_s(self) -> float:
        """Seconds of speech."""
        return sum(self.durations_s)


def open_clips(
    manifests: Sequence[Path],
    label_builder: LabelBuilder,
    *,
    strict: bool,
    max_bad_share: float,
    max_duration_s: float | None = float(MAX_WINDOW_S),
) -> Clips:
    """Read manifests, check every row, and find the length of every clip.

    Args:
        manifests: JSONL files; their rows are joined.
        label_builder: makes the tokens, and so finds texts that do not fit.
        strict: any bad row stops; for held-out sets.
        max_bad_share: largest share of bad lines in a manifest that is tolerated otherwise, 0 to 1.
        max_duration_s: longest clip; None for sets that are decoded as long recordings.

    Raises:
        ValueError: if too much of a manifest is bad, with file, line and reason of the first few.
        FileNotFoundError: if a manifest does not exist.
    """
    rows: list[Row] = []
    labels: list[Labels] = []
    durations: list[float] = []
    rejected: list[Rejected] = []
    for path in manifests:
        manifest = read_manifest(path)
        taken, faults = _check_rows(manifest.rows, label_builder, max_duration_s)
        checked = Manifest(manifest.path, tuple(row for row, _, _ in taken), manifest.rejected + tuple(faults))
        admit(checked, strict=strict, max_bad_share=max_bad_share)
        rows += [row for row, _, _ in taken]
        labels += [item for _, item, _ in taken]
        durations += [duration_s for _, _, duration_s in taken]
        rejected += checked.rejected
    return Clips(tuple(rows), tuple(labels), tuple(durations), tuple(rejected))


def _check_rows(
    rows: Sequence[Row], label_builder: LabelBuilder, max_duration_s: float | None
) -> tuple[list[tuple[Row, Labels, float]], list[Rejected]]:
    taken: list[tuple[Row, Labels, float]] = []
    rejected: list[Rejected] = []
    with ThreadPoolExecutor() as pool:
        durations = list(pool.map(_duration_or_error, rows))
    for row, duration in zip(rows, durations, strict=True):
        try:
            if isinstance(duration, AudioError):
                raise duration
            if max_duration_s is not None and round((duration - max_duration_s) * SAMPLING_RATE) > 0:
                raise AudioError(Reason.AUDIO_TOO_LONG, row.audio, f"{duration:.2f} s")
            if duration < MIN_DURATION_S:
                reason = Reason.AUDIO_EMPTY if duration == 0 else Reason.AUDIO_TOO_SHORT
                raise AudioError(reason, row.audio, f"{duration:.3f} s")
            taken.append((row, label_builder.build(row), duration))
        except AudioError as e:
            rejected.append(_reject_row(row, e.reason, e.detail))
        except LabelError as e:
            rejected.append(_reject_row(row, e.reason, str(e)))
    return taken, rejected


def _duration_or_error(row: Row) -> float | AudioError:
    try:
        if row.duration_s is not None:
            return row.duration_s
        return probe_duration_s(row.audio) - (row.offset_s or 0.0)
    except AudioError as e:
        return e


def _reject_row(row: Row, reason: Reason, detail: str) -> Rejected:
    return reject(reason, manifest=row.manifest, line=row.line, id=row.id, audio=row.audio, detail=detail)


class ClipReader:
    """Decode clips, and keep them in memory as 16-bit samples up to a limit."""

    def __init__(self, clips: Clips, *, cache_gib: float, max_duration_s: float | None = float(MAX_WINDOW_S)) -> None:
        """Remember the rows; nothing is read yet.

        Args:
            clips: the rows.
            cache_gib: memory for decoded clips, in GiB, in each loader process; 0 decodes every time,
                and leaves the samples as they are.
            max_duration_s: longest clip that is accepted.
        """
        self.clips = clips
        self.max_duration_s = max_duration_s
        self._cache: dict[int, npt.NDArray[np.int16]] = {}
        self._is_caching = cache_gib > 0
        self._cache_left = int(cache_gib * 2**30)
        self._failed: dict[int, Rejected] = {}

    def read(self, index: int) -> Waveform | Rejected:
        """Return the waveform of a row, (num_samples,) float32 at 16 kHz, or why there is none."""
        kept = self._cache.get(index)
        if kept is not None:
            return (kept / np.float32(INT16_FULL_SCALE)).astype(np.float32)
        if index in self._failed:  # a clip that could not be read is not tried again in a later epoch
            return self._failed[index]
        row = self.clips.rows[index]
        try:
            waveform = load_waveform(
                row.audio,
                offset_s=row.offset_s,
                duration_s=row.duration_s,
                max_duration_s=self.max_duration_s,
            )
        except AudioError as e:
            self._failed[index] = _reject_row(row, e.reason, e.detail)
            return self._failed[index]
        if not self._is_caching:
            return waveform
        # Rounded whether or not there is room: each worker fills a cache of its own, and neither their number nor the
        # place where a run was taken up again may change a sample.
        samples = np.round(np.clip(waveform, -1.0, 1.0) * INT16_FULL_SCALE).astype(np.int16)
        if self._cache_left >= samples.nbytes:
            self._cache[index] = samples
            self._cache_left -= samples.nbytes
        return (samples / np.float32(INT16_FULL_SCALE)).astype(np.float32)

    def reject_duration(self, index: int, found_s: float) -> Rejected:
        """Return the record of a row whose audio is longer than its manifest says, and so than its window."""
        stated_s = self.clips.durations_s[index]
        detail = f"{found_s:.2f} s found, {stated_s:.2f} s in the manifest"
        return _reject_row(self.clips.rows[index], Reason.AUDIO_DURATION, detail)
