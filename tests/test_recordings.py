"""Every second that is said carries loss in exactly one window, and no window is heard without its text.

Random recordings are cut and added up again; each rule has a case made by hand besides.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from data.labels import LabelBuilder
from data.recordings import MAX_PROMPT_CHARACTERS, cut_recording, heard_duration_s
from data.rows import Row, Segment

ROW = Row(
    id="talk",
    audio=Path("talk.wav"),
    text="all of it",
    language="en",
    task="transcribe",
    duration_s=None,
    offset_s=None,
    segments=(),
    prompt="",
    speaker="s",
    manifest=Path("m.jsonl"),
    line=7,
)


def _row(*times: tuple[float, float], **fields: object) -> Row:
    segments = tuple(Segment(start_s, end_s, f"w{i}") for i, (start_s, end_s) in enumerate(times))
    return replace(ROW, **{"segments": segments, **fields})  # type: ignore[arg-type]


def _span(row: Row) -> tuple[float, float]:
    assert row.offset_s is not None and row.duration_s is not None
    return row.offset_s, row.offset_s + row.duration_s


def test_a_straddling_segment_gives_its_start_to_one_window_and_itself_to_the_next() -> None:
    row = _row((0, 12), (12, 28), (29, 41), (41, 44))
    first, second = cut_recording(row, duration_s=44.0).windows
    assert (first.id, second.id) == ("talk#0000", "talk#0001")
    assert (_span(first), first.text, first.open_start_s) == ((0, 30), "w0 w1", 29)
    assert (_span(second), second.text, second.open_start_s) == ((29, 44), "w2 w3", None)
    assert second.segments == row.segments[2:]
    # With timestamps the start at 29 s is labelled; without them nothing tells of what is heard from there on.
    assert heard_duration_s(first, with_timestamps=True) == 30
    assert heard_duration_s(first, with_timestamps=False) == 29
    assert heard_duration_s(second, with_timestamps=False) == 15
    assert (first.line, first.speaker, first.audio) == (7, "s", row.audio)


def test_a_window_ends_where_the_next_segment_begins_if_that_begins_behind_it() -> None:
    first, second = cut_recording(_row((0, 25), (33, 50)), duration_s=50.0).windows
    assert (_span(first), first.open_start_s) == ((0, 30), None)
    assert _span(second) == (30, 50)  # the silence between them is heard, once
    touching, _ = cut_recording(_row((0, 30), (30, 50)), duration_s=50.0).windows
    assert (_span(touching), touching.open_start_s) == ((0, 30), None)


def test_the_text_before_a_window_is_its_prompt() -> None:
    row = _row((0, 29), (29, 58), (58, 87), prompt="before")
    prompts = [window.prompt for window in cut_recording(row, duration_s=87.0).windows]
    assert prompts == ["before", "before w0", "before w0 w1"]
    wordy = replace(row, segments=tuple(replace(s, text="word " * 400) for s in row.segments))
    last = cut_recording(wordy, duration_s=87.0).windows[-1].prompt
    assert MAX_PROMPT_CHARACTERS - 40 < len(last) <= MAX_PROMPT_CHARACTERS
    assert set(last.split()) == {"word"}  # no half word at the beginning
    chinese = replace(row, language="zh", prompt="", segments=tuple(replace(s, text="你好") for s in row.segments))
    assert cut_recording(chinese, duration_s=87.0).windows[-1].prompt == "你好你好"


def test_a_long_silence_becomes_windows_without_speech() -> None:
    cut = cut_recording(_row((20, 30), (112, 118)), duration_s=118.0, window_s=30.0)
    assert [(_span(w), w.no_speech, w.text) for w in cut.windows] == [
        ((1, 19), True, ""),
        ((19, 31), False, "w0"),
        ((31, pytest.approx(57 + 2 / 3)), True, ""),
        ((pytest.approx(57 + 2 / 3), pytest.approx(84 + 1 / 3)), True, ""),
        ((pytest.approx(84 + 1 / 3), 111), True, ""),
        ((111, 118), False, "w1"),
    ]
    assert [w.prompt for w in cut.windows] == ["", "", "w0", "w0", "w0", "w0"]


def test_a_recording_without_speech_is_cut_into_silent_windows() -> None:
    row = replace(ROW, text="", no_speech=True, offset_s=5.0)
    assert [_span(w) for w in cut_recording(row, duration_s=60.0).windows] == [(5, 35), (35, 65)]
    assert cut_recording(row, duration_s=30.0).windows == (row,)


def test_a_short_recording_stays_one_row() -> None:
    row = _row((1, 5), (6, 29))
    assert cut_recording(row, duration_s=30.0) == cut_recording(row, duration_s=29.5)
    assert cut_recording(row, duration_s=30.0).windows == (row,)
    assert cut_recording(ROW, duration_s=8.0).windows == (ROW,)


def test_a_long_recording_without_segments_is_rejected() -> None:
    for row in (ROW, replace(ROW, segments=(Segment(0, 9, "  "),))):
        cut = cut_recording(row, duration_s=30.1)
        assert cut.windows == ()
        assert [(r.code, r.line, r.id) for r in cut.rejected] == [("A10", 7, "talk")]
        assert "30.10 s, and no segments" in cut.rejected[0].message


def test_a_segment_longer_than_the_window_is_named_and_the_rest_is_kept() -> None:
    cut = cut_recording(_row((0, 4), (5, 40), (41, 50)), duration_s=50.0)
    assert [(r.code, "segment 'w1' at 5.00 to 40.00 s" in r.message) for r in cut.rejected] == [("A10", True)]
    # No window hears any of it, not even a second of silence beside it: its times may be off.
    assert [(_span(w), w.text, w.prompt) for w in cut.windows] == [((0, 4), "w0", ""), ((41, 50), "w2", "w0 w1")]


def test_a_segment_as_long_as_the_window_fits() -> None:
    cut = cut_recording(_row((3.1, 33.1), (34, 60)), duration_s=60.0)
    assert cut.rejected == ()
    assert [w.text for w in cut.windows] == ["w0", "w1"]
    assert _span(cut.windows[0]) == (pytest.approx(3.1), pytest.approx(33.1))


@pytest.mark.parametrize("times", [(50, 50), (70, 80), (59, 61), (70, 70)])
def test_a_segment_without_length_or_outside_the_recording_is_rejected(times: tuple[float, float]) -> None:
    cut = cut_recording(_row((0, 20), (20, 35), times), duration_s=60.0)
    assert [r.code for r in cut.rejected] == ["T11"]
    assert "'w2'" in cut.rejected[0].message
    assert [w.text for w in cut.windows if not w.no_speech] == ["w0", "w1"]
    assert cut.windows[-1].offset_s + cut.windows[-1].duration_s <= 59  # type: ignore[operator]


def test_a_segment_before_the_part_of_the_file_that_is_the_row_is_rejected() -> None:
    cut = cut_recording(_row((8, 12), (12, 30), (30, 49), offset_s=10.0), duration_s=40.0)
    assert [r.code for r in cut.rejected] == ["T11"]
    assert [w.text for w in cut.windows] == ["w1", "w2"]
    assert _span(cut.windows[0]) == (12, 42)


def test_times_that_are_off_by_one_step_are_put_right() -> None:
    first, second = cut_recording(_row((0, 20.01), (20, 29), (30, 40.015)), duration_s=40.0).windows
    assert first.segments == (Segment(0, 20.01, "w0"), Segment(20.01, 29, "w1"))
    assert second.segments == (Segment(30, 40.0, "w2"),)


def test_segments_in_any_order_and_overlapping_ones_lose_nothing() -> None:
    row = _row((40, 50), (0, 10), (8, 12), (11, 11.5), (20, 38))
    windows = cut_recording(row, duration_s=50.0).windows
    assert [w.segments for w in windows] == [
        (Segment(0, 12, "w1 w2 w3"),),
        (Segment(20, 38, "w4"), Segment(40, 50, "w0")),
    ]
    assert windows[0].open_start_s == 20


def test_a_speck_between_two_rejected_segments_is_too_short_to_be_heard() -> None:
    cut = cut_recording(_row((0, 31), (31, 31.05), (31.05, 70)), duration_s=70.0)
    assert cut.windows == ()
    assert [r.code for r in cut.rejected] == ["A10", "A10", "A11"]


def test_a_window_holds_no_more_text_than_the_model_has_positions(tokenizer: object) -> None:
    builder = LabelBuilder(tokenizer, max_positions=64)  # type: ignore[arg-type]
    segments = tuple(Segment(2.0 * i, 2.0 * i + 2, "x" * 13) for i in range(20))
    crowded = (*segments, Segment(40, 42, "y" * 80), Segment(42, 44, "z"))
    cut = cut_recording(replace(ROW, segments=crowded), duration_s=44.0, fits=builder.fits_window)
    assert [len(w.segments) for w in cut.windows] == [3] * 6 + [2, 1]
    assert [r.code for r in cut.rejected] == ["T04"]
    for window in cut.windows:
        builder.verify(window)
    with pytest.raises(ValueError, match="the model has 64"):
        builder.verify(cut_recording(replace(ROW, segments=segments), duration_s=40.0).windows[0])


def _random_row(rng: random.Random) -> tuple[Row, float]:
    """A recording of up to 4 minutes: pauses from none to a minute, specks and giants, some without text."""
    offset_s = rng.choice([None, 0.0, 7.3])
    time_s = offset_s or 0.0
    segments: list[Segment] = []
    for i in range(rng.randint(1, 60)):
        time_s += rng.choice([0.0, 0.0, 0.3, 2.0, 9.9, 10.0, 12.0, 45.0])
        length_s = rng.choice([0.0, 0.04, 1.0, 2.5, 7.0, 15.0, 29.99, 30.0, 31.0])
        length_s += rng.random() if 1.0 <= length_s <= 15.0 else 0.0
        segments.append(Segment(time_s, time_s + length_s, f"w{i}" if rng.random() < 0.95 else ""))
        time_s += length_s
        if time_s > 240:
            break
    duration_s = max(time_s - (offset_s or 0.0) + rng.choice([0.0, 3.0, 20.0]), 0.2)
    rng.shuffle(segments)
    return replace(ROW, segments=tuple(segments), offset_s=offset_s), duration_s


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_doubled_or_heard_without_its_text(seed: int) -> None:
    rng = random.Random(seed)
    num_windows = num_rejected = num_open = 0
    for _ in range(150):
        row, duration_s = _random_row(rng)
        cut = cut_recording(row, duration_s=duration_s)
        begin_s, end_s = row.offset_s or 0.0, (row.offset_s or 0.0) + duration_s
        spoken = {s.text: s for s in sorted(row.segments, key=lambda s: (s.start_s, s.end_s)) if s.text}
        if cut.windows == () and not spoken:
            assert [r.code for r in cut.rejected] == ["A10"]
            continue
        kept = [segment for window in cut.windows for segment in window.segments]
        words = [word for segment in kept for word in segment.text.split()]
        named = [word for record in cut.rejected for word in spoken if f"'{word}'" in record.message]
        # Each text is in one window or in one record; those that are kept stand in the order of time.
        assert sorted(words + named) == sorted(spoken)
        assert words == sorted(words, key=lambda word: (spoken[word].start_s, spoken[word].end_s))
        total_s = sum(s.end_s - s.start_s for s in spoken.values())
        lost_s = sum(spoken[word].end_s - spoken[word].start_s for word in named)
        assert sum(s.end_s - s.start_s for s in kept) + lost_s == pytest.approx(total_s)
        for window in cut.windows:
            start_s, stop_s = (begin_s, end_s) if window == row else _span_of(window, begin_s, duration_s)
            assert begin_s <= start_s < stop_s <= end_s + 1e-9
            assert stop_s - start_s <= 30 + 1e-9
            assert all(start_s - 1e-9 <= s.start_s and s.end_s <= stop_s + 1e-9 for s in window.segments)
            assert window.no_speech == (not window.segments)
            own = {word for segment in window.segments for word in segment.text.split()}
            for with_timestamps in (False, True):
                heard_s = heard_duration_s(window, with_timestamps=with_timestamps)
                heard_to_s = stop_s if heard_s is None else start_s + heard_s
                if with_timestamps and window.open_start_s is not None:
                    heard_to_s = window.open_start_s  # behind it is what the open segment says
                for word, segment in spoken.items():
                    overlap_s = min(heard_to_s, segment.end_s) - max(start_s, segment.start_s)
                    assert word in own or overlap_s <= 1e-9
            num_open += window.open_start_s is not None
        num_windows += len(cut.windows)
        num_rejected += len(cut.rejected)
    assert num_windows > 300 and num_rejected > 50 and num_open > 50  # the cases did occur


def _span_of(window: Row, begin_s: float, duration_s: float) -> tuple[float, float]:
    """Return start and end of a window; a recording that stayed whole may state neither."""
    if window.duration_s is None:
        return begin_s, begin_s + duration_s
    return _span(window)


def test_the_same_recording_is_always_cut_the_same() -> None:
    row, duration_s = _random_row(random.Random(3))
    shuffled = replace(row, segments=tuple(reversed(row.segments)))
    assert cut_recording(row, duration_s=duration_s) == cut_recording(shuffled, duration_s=duration_s)
