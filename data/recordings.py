"""Long recordings with segment times: cut into windows between segments, as Whisper's own training data was.

A segment that begins in a window and goes on behind it (it straddles the border) belongs to the next window, which
begins where the segment does. Of the window before, only its start is labelled, with timestamps; without them that
window's audio ends there. So everything that is said carries loss exactly once, and no audio is heard without its text.

Source: windows and straddling segments as in Radford et al. 2022, arXiv:2212.04356, sections 2.1 and 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from data.audio import MIN_DURATION_S
from data.reasons import Reason, Rejected
from data.rows import Row, Segment, reject_row
from data.texts import join_texts

MIN_GAP_S = 10.0  # silence from which on it makes windows of its own
MARGIN_S = 1.0  # of such a silence, left to the speech on either side: segment times are seldom exact
MAX_PROMPT_CHARACTERS = 1500  # 223 tokens of English are about 1000; the labels cut what is too much
TOLERANCE_S = 0.02  # one timestamp step: what times may disagree by

Fits = Callable[[Sequence[str]], bool]


@dataclass(frozen=True)
class Cut:
    """What a recording became: its windows, and the segments that are in none."""

    windows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class _Window:
    start_s: float
    end_s: float
    segments: tuple[Segment, ...] = ()
    open_start_s: float | None = None


def cut_recording(row: Row, *, duration_s: float, window_s: float = 30.0, fits: Fits | None = None) -> Cut:
    """Cut a recording into windows that end between segments.

    Segments may come in any order. Those that overlap become one, since timestamp tokens cannot go back; those without
    text are silence. Silences of 10 s and more become windows without speech.

    Args:
        row: times of its segments count from the start of the file.
        duration_s: length of the recording, from `row.offset_s` on.
        window_s: longest window, in seconds.
        fits: tells whether segments with these texts can stand in one window, `LabelBuilder.fits_window`; None sets no
            limit but the time.

    Returns:
        Windows in the order of time, with ids `ID#0000`, `ID#0001`, ...: their segments, the text of those, and the
        text before them as prompt. A recording that is no longer than a window, and of which no segment is rejected,
        stays one row with its id.
        Rejected, each with its times and text: segments longer than a window (A10), with more text than one can hold
        (T04), without length or outside the recording (T11), too short to be heard alone (A11). No window reaches into
        them. A long recording in which no segment has text is rejected as a whole (A10).
    """
    begin_s = row.offset_s or 0.0
    end_s = begin_s + duration_s
    is_short = duration_s <= window_s
    segments = _join_overlapping(row, begin_s, end_s)
    faults = [_find_fault(segment, begin_s, end_s, window_s, fits) for segment in segments]
    rejected = [_reject(row, *fault) for fault in faults if fault is not None]
    if is_short and not rejected:
        return Cut((replace(row, segments=tuple(segments)),), ())
    if not segments and not row.no_speech:
        return Cut((), (_reject(row, Reason.AUDIO_TOO_LONG, f"{duration_s:.2f} s, and no segments to cut it at"),))

    windows: list[_Window] = []
    silences = [(begin_s, end_s)]
    if segments:
        stretches, silences = _split(segments, [fault is not None for fault in faults], begin_s, end_s)
        for window in (window for stretch in stretches for window in _cut_stretch(stretch, window_s, fits)):
            if window.end_s - window.start_s >= MIN_DURATION_S:
                windows.append(window)
            else:
                rejected += [_reject(row, Reason.AUDIO_TOO_SHORT, _describe(segment)) for segment in window.segments]
    windows += [window for silence in silences for window in _cut_silence(*silence, window_s)]
    windows.sort(key=lambda window: window.start_s)
    return Cut(tuple(_build_rows(row, segments, windows)), tuple(rejected))


def heard_duration_s(row: Row, *, with_timestamps: bool) -> float | None:
    """Return how much of a row's clip its labels speak of, in seconds; None where its length is not known.

    Less than the clip only without timestamps, where a segment straddles its end: its start cannot be labelled then.
    """
    if with_timestamps or row.open_start_s is None:
        return row.duration_s
    return row.open_start_s - (row.offset_s or 0.0)


def _join_overlapping(row: Row, begin_s: float, end_s: float) -> list[Segment]:
    """Order the segments that have text; times that are off by one step are put right."""
    joined: list[Segment] = []
    spoken = [segment for segment in row.segments if segment.text.strip()]
    for segment in sorted(spoken, key=lambda segment: (segment.start_s, segment.end_s)):
        start_s = begin_s if begin_s - TOLERANCE_S <= segment.start_s < begin_s else segment.start_s
        stop_s = end_s if end_s < segment.end_s <= end_s + TOLERANCE_S else segment.end_s
        last = joined[-1] if joined else None
        if last is None or start_s >= last.end_s:
            joined.append(Segment(start_s, stop_s, segment.text))
        elif last.end_s - start_s <= TOLERANCE_S and stop_s > last.end_s:
            joined.append(Segment(last.end_s, stop_s, segment.text))
        else:
            text = join_texts([last.text, segment.text], row.language)
            joined[-1] = Segment(last.start_s, max(last.end_s, stop_s), text)
    return joined


def _find_fault(
    segment: Segment, begin_s: float, end_s: float, window_s: float, fits: Fits | None
) -> tuple[Reason, str] | None:
    name = _describe(segment)
    if segment.end_s <= segment.start_s:
        return Reason.SEGMENT_TIME, f"{name} has no length"
    if segment.start_s < begin_s or segment.end_s > end_s:
        return Reason.SEGMENT_TIME, f"{name} is not within the recording, {begin_s:.2f} to {end_s:.2f} s"
    if segment.end_s - segment.start_s > window_s:
        return Reason.AUDIO_TOO_LONG, f"{name} is longer than the window of {window_s:g} s; give it shorter segments"
    if fits is not None and not fits([segment.text]):
        return Reason.TEXT_TOO_LONG, f"{name} has {len(segment.text)} characters; give it shorter segments"
    return None


@dataclass(frozen=True)
class _Stretch:
    """Segments without a long silence or a rejected one between them, and the audio that may be heard with them."""

    segments: tuple[Segment, ...]
    start_s: float
    end_s: float


def _split(
    segments: Sequence[Segment], is_rejected: Sequence[bool], begin_s: float, end_s: float
) -> tuple[list[_Stretch], list[tuple[float, float]]]:
    """Split at long silences and at rejected segments, beside which audio counts only up to the segments themselves."""
    stretches: list[_Stretch] = []
    silences: list[tuple[float, float]] = []
    gathered: list[Segment] = []
    heard_from_s, last_end_s, was_rejected = begin_s, begin_s, False
    end_of_recording = (Segment(end_s, end_s, ""), False)
    for segment, rejected in [*zip(segments, is_rejected, strict=True), end_of_recording]:
        is_beside_rejected = rejected or was_rejected
        is_silence = not is_beside_rejected and segment.start_s - last_end_s >= MIN_GAP_S
        if is_silence or is_beside_rejected:
            margin_s = MARGIN_S if is_silence else 0.0
            if gathered:
                stretches.append(_Stretch(tuple(gathered), heard_from_s, last_end_s + margin_s))
            gathered = []
            heard_from_s = segment.start_s - margin_s
            if is_silence:
                silences.append((last_end_s + margin_s, heard_from_s))
        if not rejected:
            gathered.append(segment)
        last_end_s, was_rejected = segment.end_s, rejected
    if len(gathered) > 1:
        stretches.append(_Stretch(tuple(gathered[:-1]), heard_from_s, end_s))
    return stretches, silences


def _cut_stretch(stretch: _Stretch, window_s: float, fits: Fits | None) -> Iterator[_Window]:
    """Give each window as many segments as it holds; the next one begins where it ends or its open segment starts."""
    segments, start_s = stretch.segments, stretch.start_s
    first = 0
    while first < len(segments):
        start_s = max(start_s, segments[first].end_s - window_s)  # leaves out silence before a long segment
        limit_s = start_s + window_s
        stop = first + 1
        while stop < len(segments) and segments[stop].end_s <= limit_s:
            if fits is not None and not fits([segment.text for segment in segments[first : stop + 1]]):
                break
            stop += 1
        end_s, open_start_s = min(limit_s, stretch.end_s), None
        if stop < len(segments):
            following = segments[stop]
            if following.end_s <= limit_s or following.start_s > limit_s - TOLERANCE_S:
                end_s = min(limit_s, following.start_s)
            else:
                open_start_s = following.start_s
        yield _Window(start_s, end_s, segments[first:stop], open_start_s)
        start_s = end_s if open_start_s is None else open_start_s
        first = stop


def _cut_silence(start_s: float, end_s: float, window_s: float) -> Iterator[_Window]:
    num_windows = math.ceil((end_s - start_s) / window_s)
    step_s = (end_s - start_s) / num_windows
    for i in range(num_windows):
        yield _Window(start_s + i * step_s, start_s + (i + 1) * step_s)


def _build_rows(row: Row, segments: Sequence[Segment], windows: Sequence[_Window]) -> Iterator[Row]:
    history = row.prompt
    num_said = 0
    for i, window in enumerate(windows):
        while num_said < len(segments) and segments[num_said].start_s < window.start_s:
            # Rejected ones too: their words were said, only when is not known.
            history = _tail(join_texts([history, segments[num_said].text], row.language))
            num_said += 1
        yield replace(
            row,
            id=f"{row.id}#{i:04d}",
            text=join_texts((segment.text for segment in window.segments), row.language),
            segments=window.segments,
            prompt=history,
            offset_s=window.start_s,
            duration_s=window.end_s - window.start_s,
            open_start_s=window.open_start_s,
            no_speech=not window.segments,
        )


def _tail(text: str) -> str:
    if len(text) <= MAX_PROMPT_CHARACTERS:
        return text
    tail = text[-MAX_PROMPT_CHARACTERS:]
    return tail[tail.find(" ", 0, 40) + 1 :]  # half a word is no word; where there are no spaces, it stays


def _describe(segment: Segment) -> str:
    return f"segment {segment.text.strip()!r:.40} at {segment.start_s:.2f} to {segment.end_s:.2f} s"


def _reject(row: Row, reason: Reason, detail: str) -> Rejected:
    # Without the length of the row, of which this is but a part.
    return replace(reject_row(row, reason, detail), duration_s=None)
