"""One pass over a corpus: what every row says and what every clip sounds like, kept in columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.audio import AudioError
from data.labels import LabelBuilder, LabelError
from data.preflight.cache import ScanCache, clip_key, figures_record
from data.preflight.clip import ClipFigures, ClipJob, measure_clip
from data.preflight.columns import COLUMNS, MAX_CLIP_S, UNKNOWN, CorpusScan, Split, SplitScan
from data.preflight.pool import Measure, measure_clips
from data.preflight.writing import find_text_faults, hash_text
from data.recordings import cut_recording
from data.rows import Row, encoded

FEW_CLIPS = 400  # below it the start of worker processes costs more than they save
Progress = Callable[[str, int, int], None]
"""Called with the stage, how many rows are done, and how many there are."""


@dataclass
class _Numbering:
    """Names in the order in which they came."""

    places: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str) -> int:
        return self.places.setdefault(name, len(self.places))


def scan_corpus(
    splits: Sequence[Split],
    *,
    cache_path: Path,
    label_builder: LabelBuilder | None = None,
    num_workers: int | None = None,
    on_progress: Progress = lambda stage, completed, total: None,
    measure: Measure = measure_clip,
) -> CorpusScan:
    """Read every row and decode every clip once; what an earlier scan measured is not decoded again.

    Args:
        splits: the corpus.
        cache_path: JSON lines, one a clip, written as the scan goes; a scan that was stopped goes on from there.
        label_builder: counts label tokens and finds texts that do not fit; None leaves both out.
        num_workers: processes that decode; None takes all cores for a corpus of some size.
        on_progress: called now and then.
        measure: what to do with each clip.

    Returns:
        The columns of each split.
    """
    languages, speakers = _Numbering(), _Numbering()
    total = sum(len(split.rows) for split in splits)
    scans: list[SplitScan] = []
    num_read = num_done = num_measured = 0
    for split in splits:
        columns, details = np.zeros(len(split.rows), dtype=COLUMNS), {}
        for index, row in enumerate(split.rows):
            columns[index], fault = _read_row(row, split, languages, speakers, label_builder)
            if fault:
                details[index] = fault
            num_read += 1
            if num_read % 256 == 0 or num_read == total:
                on_progress("reading texts", num_read, total)
        scans.append(SplitScan(split, columns, details))
    cache = ScanCache(cache_path)
    with cache:
        for scan in scans:
            known = _recall(scan, cache)
            num_done += int(known.sum())
            unknown = np.flatnonzero(~known)
            workers = _num_workers(len(unknown)) if num_workers is None else num_workers
            firsts, twins = _find_twins(scan.columns["key"], unknown)
            jobs = _jobs(scan.split, firsts) if len(firsts) else ()
            for chunk in measure_clips(jobs, num_workers=workers, measure=measure):
                for job, found in chunk:
                    for index in (job.index, *twins.get(job.index, ())):
                        _keep(scan, index, found)
                        num_done += 1
                    if key := int(scan.columns["key"][job.index]):
                        cache.append(key, found)
                cache.flush()
                num_measured += len(chunk)
                on_progress("decoding clips", num_done, total)
            if scan.split.is_windowed:
                _find_uncuttable(scan, label_builder)
    return CorpusScan(tuple(scans), tuple(languages.places), tuple(speakers.places), num_measured)


def hash_name(name: str) -> int:
    """Return 64 bits that stand for a name."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _read_row(
    row: Row, split: Split, languages: _Numbering, speakers: _Numbering, label_builder: LabelBuilder | None
) -> tuple[tuple[Any, ...], str]:
    """Return the columns of a row that need no decoding, and what is wrong with its labels."""
    figures, detail, num_label_tokens = ClipFigures(), "", UNKNOWN
    if label_builder is not None:
        try:
            num_label_tokens = label_builder.build(row).num_label_tokens
        except LabelError as e:
            if split.is_windowed and not row.segments:  # a recording is never one label; nobody builds it
                figures, detail = ClipFigures(code=e.reason.code), str(e)
    columns = (
        clip_key(row, split.max_duration_s(row)),
        languages(row.language),
        speakers(row.speaker) if row.speaker else UNKNOWN,
        hash_name(str(row.audio)),
        row.offset_s or 0.0,
        hash_text(row.text),
        len(row.text),
        num_label_tokens,
        int(find_text_faults(row.text, row.language)),
        isinstance(row.audio, Path) and _is_outside(str(row.audio), str(row.manifest.parent)),
        row.no_speech,
        bool(row.segments),
        False,
        figures_record(figures),
    )
    return columns, detail


def _is_outside(audio: str, folder: str) -> bool:
    if "/../" in audio:
        audio = os.path.normpath(audio)
    return not audio.startswith(f"{folder.rstrip('/')}/")


def _jobs(split: Split, indices: npt.NDArray[np.int64]) -> Iterator[ClipJob]:
    wanted = np.zeros(len(split.rows), dtype=np.bool_)
    wanted[indices] = True
    for index, row in enumerate(split.rows):  # in order: a table gives its rows a hundred times faster than one by one
        if not wanted[index]:
            continue
        name = str(row.audio)
        try:
            audio = encoded(row.audio)
        except AudioError:
            audio = Path(name)  # which then is found missing, under its own name
        yield ClipJob(index, audio, name, row.offset_s, row.duration_s, split.max_duration_s(row))


def _find_twins(
    keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], dict[int, list[int]]]:
    """Return the first row of each clip, and by it the others that name the same one, which needs no second look."""
    _, firsts, group = np.unique(keys[rows], return_index=True, return_inverse=True)
    is_first = keys[rows] == 0  # nothing is known of them
    is_first[firsts] = True
    twins: dict[int, list[int]] = {}
    for place in np.flatnonzero(~is_first):
        twins.setdefault(int(rows[firsts[group[place]]]), []).append(int(rows[place]))
    return rows[is_first], twins


def _recall(scan: SplitScan, cache: ScanCache) -> npt.NDArray[np.bool_]:
    """Take over what an earlier scan measured, and return of which rows."""
    known, figures = cache.find(scan.columns["key"])
    label_faults = scan.figures["code"].copy()
    scan.columns["figures"][known] = figures[known]
    for index in np.flatnonzero(known & ~scan.usable):
        scan.details[int(index)] = cache.detail(int(scan.columns["key"][index]))
    kept = known & scan.usable
    scan.columns["figures"]["code"][kept] = label_faults[kept]
    return known


def _keep(scan: SplitScan, index: int, found: ClipFigures) -> None:
    """Keep what was measured; a fault of the labels stays where the audio has none."""
    label_fault = str(scan.figures["code"][index])
    scan.columns["figures"][index] = figures_record(found)
    if found.code:
        scan.details[index] = found.detail
    else:
        scan.columns["figures"]["code"][index] = label_fault


def _find_uncuttable(scan: SplitScan, label_builder: LabelBuilder | None) -> None:
    """Cut recordings at their segments, as a training does, and keep which of them lose any."""
    fits = None if label_builder is None else label_builder.fits_window
    wanted = scan.columns["has_segments"] & scan.usable
    if not wanted.any():
        return
    for index, row in enumerate(scan.split.rows):
        if wanted[index]:
            duration_s = float(scan.figures["duration_s"][index])
            cut = cut_recording(row, duration_s=duration_s, window_s=MAX_CLIP_S, fits=fits)
            scan.columns["loses_segments"][index] = bool(cut.rejected)
            if cut.rejected and not cut.windows:
                scan.columns["figures"]["code"][index] = cut.rejected[0].code
                scan.details[index] = cut.rejected[0].message


def _num_workers(num_clips: int) -> int:
    return 0 if num_clips < FEW_CLIPS else os.cpu_count() or 1
