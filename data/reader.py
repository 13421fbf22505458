"""Waveforms of rows, decoded once and kept in memory up to a limit; a bad one is reported and never tried again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from data.audio import AudioError, Waveform
from data.dataset import load_row
from data.features import MAX_WINDOW_S
from data.reasons import Reason, Rejected
from data.rows import JoinedRows, reject_row

INT16_FULL_SCALE = 32767.0


class ClipReader:
    """Decode the rows of a data set, and keep them in memory as 16-bit samples up to a limit."""

    def __init__(
        self, rows: JoinedRows, *, cache_gib: float, max_duration_s: float | None = float(MAX_WINDOW_S)
    ) -> None:
        """Remember the rows; nothing is read yet.

        Args:
            rows: of the data set.
            cache_gib: memory for decoded clips, in GiB, in each loader process; 0 decodes every time,
                and leaves the samples as they are.
            max_duration_s: longest clip that is accepted.
        """
        self.rows = rows
        self.max_duration_s = max_duration_s
        self._cache: dict[int, npt.NDArray[np.int16]] = {}
        self._is_caching = cache_gib > 0
        self._cache_left = int(cache_gib * 2**30)
        self._failed: dict[int, Rejected] = {}
        self._left_out: frozenset[int] = frozenset()

    def leave_out(self, rows: Iterable[int]) -> None:
        """Never read these rows again: they were found bad before the run was taken up again."""
        self._left_out = frozenset(rows)

    def read(self, row: int) -> Waveform | Rejected | None:
        """Return the waveform of a row, (num_samples,) float32 at 16 kHz; why there is none; None if it is left out."""
        if row in self._left_out:
            return None
        kept = self._cache.get(row)
        if kept is not None:
            return (kept / np.float32(INT16_FULL_SCALE)).astype(np.float32)
        if row in self._failed:  # a clip that could not be read is not tried again in a later epoch
            return self._failed[row]
        try:
            waveform = load_row(self.rows[row], max_duration_s=self.max_duration_s)
        except AudioError as e:
            self._failed[row] = reject_row(self.rows[row], e.reason, e.detail)
            return self._failed[row]
        if not self._is_caching:
            return waveform
        # Rounded whether or not there is room: each worker fills a cache of its own, and neither their number nor the
        # place where a run was taken up again may change a sample.
        samples = np.round(np.clip(waveform, -1.0, 1.0) * INT16_FULL_SCALE).astype(np.int16)
        if self._cache_left >= samples.nbytes:
            self._cache[row] = samples
            self._cache_left -= samples.nbytes
        return (samples / np.float32(INT16_FULL_SCALE)).astype(np.float32)

    def reject_length(self, row: int, found_s: float) -> Rejected:
        """Give up a row whose audio is longer than its source says, and so than its window."""
        found = self.rows[row]
        detail = f"{found_s:.2f} s found, {found.duration_s:.2f} s stated"
        self._failed[row] = reject_row(found, Reason.AUDIO_DURATION, detail)
        return self._failed[row]
