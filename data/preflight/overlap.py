"""What two splits share, and what a split holds twice: sounds, stretches of a recording, speakers, texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from data.preflight.clip import SILENCE_DBFS
from data.preflight.columns import UNKNOWN, CorpusScan, SplitScan
from data.preflight.findings import Finding, Level, Places, build_finding, where

LONG_TEXT = 20  # characters; shorter texts (digits, commands, single words) repeat by nature, sentences do not
MIN_OVERLAP_S = 0.1  # of two stretches of one recording; cuts at a pause may share a few samples


def find_overlaps(scan: CorpusScan, *, speakers_disjoint: bool) -> Iterator[Finding]:
    """Yield what is shared between splits, then what occurs twice within one.

    Args:
        scan: the corpus.
        speakers_disjoint: the corpus claims that no speaker is in two splits, so that one who is counts as an error.
    """
    pairs = list(itertools.combinations(scan.splits, 2))
    for kept, held_out in pairs:
        yield from _shared_sounds(kept, held_out)
    for kept, held_out in pairs:
        yield from _shared_recordings(kept, held_out, speakers_disjoint)
        yield from _shared_speakers(kept, held_out, speakers_disjoint, scan.speakers)
        yield from _shared_texts(kept, held_out)
    for split in scan.splits:
        yield from _duplicates(split)


def _audible(scan: SplitScan) -> npt.NDArray[np.bool_]:
    """Return which rows have a sound that tells them from others: all digital silence is the same."""
    audible: npt.NDArray[np.bool_] = scan.usable & (scan.figures["rms_dbfs"] > SILENCE_DBFS)
    return audible


class _Partners:
    """Find for a row the first one of another split with the same value."""

    def __init__(self, scan: SplitScan, values: npt.NDArray[Any], rows: npt.NDArray[np.bool_]) -> None:
        self._scan = scan
        self._rows = np.flatnonzero(rows)
        self._order = np.argsort(values[self._rows], kind="stable")
        self._sorted = values[self._rows][self._order]

    def name(self, value: Any) -> str:
        place = self._rows[self._order[np.searchsorted(self._sorted, value)]]
        row = self._scan.split.rows[int(place)]
        return f"{where(row)} “{row.text}”" if row.text else where(row)


def _shared_sounds(kept: SplitScan, held_out: SplitScan) -> Iterator[Finding]:
    known = _audible(kept)
    rows = np.flatnonzero(_audible(held_out) & np.isin(held_out.figures["pcm"], kept.figures["pcm"][known]))
    if not len(rows):
        return
    partners = _Partners(kept, kept.figures["pcm"], known)
    yield build_finding(
        f"pcm_leakage_{kept.name}_{held_out.name}",
        code="M04",
        level="error",
        title=f"Clips of {held_out.name} that are also in {kept.name}, sample by sample",
        why=_why_leaked(kept, held_out),
        fix=f"Take these lines out of {kept.name}, or out of {held_out.name}; findings.jsonl lists them all.",
        places=[(held_out, rows)],
        total=int(held_out.usable.sum()),
        detail=lambda scan, index: f"same sound as {partners.name(scan.figures['pcm'][index])}",
    )


def _why_leaked(kept: SplitScan, held_out: SplitScan) -> str:
    if kept.name == "train":
        return f"A model that has heard the answers scores too well on {held_out.name}; the figure says nothing."
    return (
        f"The checkpoint is chosen on {kept.name}; clips of {held_out.name} among them make the final score too good."
    )


def _shared_recordings(kept: SplitScan, held_out: SplitScan, speakers_disjoint: bool) -> Iterator[Finding]:
    usable = held_out.usable & np.isin(held_out.columns["recording"], kept.columns["recording"][kept.usable])
    known = _audible(kept)
    same_sound = np.isin(held_out.figures["pcm"], kept.figures["pcm"][known])
    rows = np.flatnonzero(usable & ~same_sound)
    if not len(rows):
        return
    overlapping = _overlap_in_time(kept, held_out, rows)
    if overlapping.any():
        yield build_finding(
            f"stretch_leakage_{kept.name}_{held_out.name}",
            code="M04",
            level="error",
            title=f"Clips of {held_out.name} that overlap with clips of {kept.name} from the same recording",
            why=_why_leaked(kept, held_out),
            fix="Cut the recording once, and give each stretch to one split.",
            places=[(held_out, rows[overlapping])],
            total=int(held_out.usable.sum()),
            detail=_stretch,
        )
    if not overlapping.all():
        level: Level = "error" if speakers_disjoint else "note"
        yield build_finding(
            f"recording_overlap_{kept.name}_{held_out.name}",
            code="M04",
            level=level,
            title=f"Clips of {held_out.name} from recordings that {kept.name} also has clips of",
            why="Speaker, room and microphone are known from training; the score holds for such recordings only.",
            fix="Split by recording, if the model is meant for new ones.",
            places=[(held_out, rows[~overlapping])],
            total=int(held_out.usable.sum()),
            detail=_stretch,
        )


def _stretch(scan: SplitScan, index: int) -> str:
    start_s, duration_s = scan.columns["offset_s"][index], scan.figures["duration_s"][index]
    return f"{scan.split.rows[index].audio}, {start_s:.2f} to {start_s + duration_s:.2f} s"


def _overlap_in_time(kept: SplitScan, held_out: SplitScan, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which rows share time with a clip of `kept` from the same recording."""
    wanted = held_out.columns["recording"][rows]
    known = np.flatnonzero(kept.usable & np.isin(kept.columns["recording"], wanted))
    known = known[np.argsort(kept.columns["recording"][known], kind="stable")]
    recordings = kept.columns["recording"][known]
    starts_s = kept.columns["offset_s"][known]
    ends_s = starts_s + kept.figures["duration_s"][known]
    found = np.zeros(len(rows), dtype=np.bool_)
    for i, index in enumerate(rows):
        same = slice(np.searchsorted(recordings, wanted[i]), np.searchsorted(recordings, wanted[i], side="right"))
        start_s = held_out.columns["offset_s"][index]
        end_s = start_s + held_out.figures["duration_s"][index]
        shared_s = np.minimum(ends_s[same], end_s) - np.maximum(starts_s[same], start_s)
        found[i] = bool((shared_s > MIN_OVERLAP_S).any())
    return found


def _shared_speakers(
    kept: SplitScan, held_out: SplitScan, speakers_disjoint: bool, speakers: tuple[str, ...]
) -> Iterator[Finding]:
    known = np.unique(kept.columns["speaker"][kept.usable])
    declared = held_out.usable & (held_out.columns["speaker"] != UNKNOWN)
    rows = np.flatnonzero(declared & np.isin(held_out.columns["speaker"], known))
    if not len(rows):
        return
    num_speakers = len(np.unique(held_out.columns["speaker"][rows]))
    num_declared = len(np.unique(held_out.columns["speaker"][declared]))
    if speakers_disjoint:
        fix = f"Give all clips of a speaker to one split; findings.jsonl lists the lines of {held_out.name}."
    else:
        fix = "Nothing, if that is meant. If the splits claim different speakers, type prepare.speakers_disjoint=true."
    yield build_finding(
        f"speaker_overlap_{kept.name}_{held_out.name}",
        code="M04",
        level="error" if speakers_disjoint else "note",
        title=f"Clips of {held_out.name} by speakers who are also in {kept.name}, {num_speakers} of {num_declared}",
        why="The score holds for voices that the model was trained on. New voices are harder.",
        fix=fix,
        places=[(held_out, rows)],
        total=int(declared.sum()),
        detail=lambda scan, index: f"speaker {speakers[scan.columns['speaker'][index]]}",
    )


def _shared_texts(kept: SplitScan, held_out: SplitScan) -> Iterator[Finding]:
    spoken = held_out.usable & ~held_out.columns["no_speech"]
    known = kept.usable & ~kept.columns["no_speech"]
    rows = np.flatnonzero(spoken & np.isin(held_out.columns["text"], kept.columns["text"][known]))
    if not len(rows):
        return
    long = rows[held_out.columns["num_characters"][rows] >= LONG_TEXT]
    partners = _Partners(kept, kept.columns["text"], known)
    yield build_finding(
        f"text_overlap_{kept.name}_{held_out.name}",
        code="M04",
        level="warning" if len(long) else "note",
        title=f"Texts of {held_out.name} that are also in {kept.name}",
        why="A sentence that was read in training is easier, whoever says it. "
        f"Those under {LONG_TEXT} characters (digits, commands) repeat by nature; {len(long):,} are longer.",
        fix=f"If {held_out.name} is meant to hold new sentences, take these lines out; findings.jsonl lists them.",
        places=[(held_out, np.concatenate([long, np.setdiff1d(rows, long)]))],
        total=int(spoken.sum()),
        detail=lambda scan, index: f"same text as {partners.name(scan.columns['text'][index])}",
    )


def _duplicates(scan: SplitScan) -> Iterator[Finding]:
    rows = np.flatnonzero(_audible(scan))
    pcm, text = scan.figures["pcm"][rows], scan.columns["text"][rows]
    _, first, group = np.unique(pcm, return_index=True, return_inverse=True)
    is_copy = np.ones(len(rows), dtype=np.bool_)
    is_copy[first] = False
    differs = is_copy & (text != text[first[group]])
    first_of = dict(zip(rows[is_copy].tolist(), rows[first[group[is_copy]]].tolist(), strict=True))

    def partner(scan: SplitScan, index: int) -> str:
        row = scan.split.rows[first_of[index]]
        return f"same sound as {where(row)} “{row.text}”"

    def places(mask: npt.NDArray[np.bool_]) -> Places:
        return [(scan, rows[mask])]

    if differs.any():
        yield build_finding(
            f"conflicting_copies_{scan.name}",
            code="M03",
            level="warning",
            title=f"Clips of {scan.name} that repeat an earlier sound with another text",
            why="At least one of the two texts is wrong, and the model is told both.",
            fix="Listen, and keep the line whose text is right.",
            places=places(differs),
            total=len(rows),
            detail=partner,
        )
    same = is_copy & ~differs
    if same.any():
        yield build_finding(
            f"copies_{scan.name}",
            code="M03",
            level="warning",
            title=f"Clips of {scan.name} that repeat an earlier one, sound and text",
            why="They weigh double in training, or in the score.",
            fix="Take the repeated lines out; findings.jsonl lists them.",
            places=places(same),
            total=len(rows),
            detail=partner,
        )
