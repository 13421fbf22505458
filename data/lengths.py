"""How long clips are whose source does not say it, also of those that are lost: hours count as lines do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.audio import AudioError
from data.probe import probe_duration_s
from data.reasons import Reason
from data.rows import LostClip, Row, RowTable, StoredAudio, encoded

Faults = dict[int, tuple[Reason, str]]
"""Place of a row in its table, and why it cannot be used."""
PROBES_AT_ONCE = 4096  # rows whose length is looked up between two looks at the memory


def find_durations(table: RowTable) -> tuple[RowTable, Faults]:
    """Look up the length of rows whose source does not say it; also return what is wrong with those that have none."""
    durations_s = table.durations_s.copy()
    faults: Faults = {}
    unknown = np.flatnonzero(np.isnan(durations_s))
    for i, found in zip(unknown, _probe_all(table[int(i)] for i in unknown), strict=True):
        if isinstance(found, AudioError):
            faults[int(i)] = (found.reason, found.detail)
        else:
            durations_s[i] = found
    place = table.table.schema.get_field_index("duration_s")
    known = table.table.set_column(place, "duration_s", pa.array(durations_s))
    return table.replace(known, table.rejected), faults


def find_lost_s(lost: Sequence[LostClip]) -> float:
    """Return the seconds of clips whose lines became no rows, as far as their source says them or a look finds them."""
    stated = [clip.duration_s for clip in lost if clip.duration_s is not None]
    found = _probe_all(clip for clip in lost if clip.duration_s is None)
    return math.fsum(stated) + math.fsum(length for length in found if not isinstance(length, AudioError))


def _probe_all(clips: Iterable[Row | LostClip]) -> Iterator[float | AudioError]:
    clips = iter(clips)
    with ThreadPoolExecutor() as pool:
        while some := [(clip.audio, clip.offset_s) for clip in islice(clips, PROBES_AT_ONCE)]:
            yield from pool.map(_probe, some)


def _probe(clip: tuple[Path | StoredAudio, float | None]) -> float | AudioError:
    audio, offset_s = clip
    try:
        return probe_duration_s(encoded(audio), offset_s=offset_s, name=str(audio))
    except AudioError as e:
        return e
