"""Packs keep the order, lose and double nothing, and hold neither more seconds nor more tokens than a window."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from data.audio import SAMPLING_RATE
from data.labels import LabelBuilder
from data.packing import join_rows, join_waveforms, pack_rows
from data.rows import Row, Segment

ROW = Row(
    id="a",
    audio=Path("a.wav"),
    text="one",
    language="en",
    task="transcribe",
    duration_s=2.5,
    offset_s=None,
    segments=(),
    prompt="before",
    speaker="",
    manifest=Path("m.jsonl"),
    line=1,
)


def _pack(durations_s: list[float], **options: object) -> list[int]:
    rows = len(durations_s)
    options = {"groups": [["en"] * rows], "num_tokens": np.ones(rows, dtype=np.int64), **options}
    return pack_rows(np.array(durations_s, dtype=np.float64), **options).tolist()  # type: ignore[arg-type]


def test_neighbours_are_joined_up_to_30_s() -> None:
    assert _pack([10, 10, 10, 10]) == [0, 3, 4]
    assert _pack([10, 10, 10.001, 10]) == [0, 2, 4]
    assert _pack([0.1] * 600, max_tokens=10_000) == [0, 300, 600]  # sums of 0.1 in floating point would hold 299
    assert _pack([31, 1, 30, 1]) == [0, 1, 2, 3, 4]
    assert _pack([5]) == [0, 1]
    assert _pack([]) == [0]


def test_the_gaps_between_clips_count() -> None:
    assert _pack([10, 10, 10], gap_s=0.1) == [0, 2, 3]
    assert _pack([10, 10, 9.8], gap_s=0.1) == [0, 3]
    assert _pack([30, 30], gap_s=0.1) == [0, 1, 2]


def test_what_stays_apart() -> None:
    assert _pack([1] * 5, groups=[["en", "en", "de", "en", "en"]]) == [0, 2, 3, 5]
    assert _pack([1] * 4, groups=[[0, 0, 1, 1], ["en"] * 4]) == [0, 2, 4]
    assert _pack([1] * 4, groups=[["transcribe"] * 4, [0, 1, 1, 2]]) == [0, 1, 3, 4]
    assert _pack([1, np.nan, 1, 1]) == [0, 1, 2, 4]
    assert _pack([1] * 4, is_packable=np.array([True, True, False, True])) == [0, 2, 3, 4]


def test_tokens_are_a_limit_too() -> None:
    assert _pack([1] * 4, num_tokens=np.full(4, 145)) == [0, 3, 4]  # 3 x (145 + 3) = 444
    assert _pack([1] * 4, num_tokens=np.full(4, 146)) == [0, 2, 4]
    assert _pack([1] * 3, num_tokens=np.array([1, 500, 1])) == [0, 1, 2, 3]


def test_columns_must_be_as_long_as_the_rows() -> None:
    with pytest.raises(ValueError, match=r"3 rows, but columns of \[\(2,\), \(3,\)\]"):
        _pack([1, 1, 1], groups=[["en", "en"]])


def _slow_bounds(durations_s: np.ndarray, groups: list[np.ndarray], tokens: np.ndarray, gap: int) -> Iterator[int]:
    """The rule, row by row."""
    samples = [None if np.isnan(d) else round(d * SAMPLING_RATE) for d in durations_s]
    yield 0
    length, positions = samples[0], tokens[0] + 3
    for i in range(1, len(samples)):
        fits = samples[i] is not None and samples[i - 1] is not None and length is not None
        fits = fits and length + gap + samples[i] <= 30 * SAMPLING_RATE and positions + tokens[i] + 3 <= 444
        if fits and all(column[i] == column[i - 1] for column in groups):
            length, positions = length + gap + samples[i], positions + tokens[i] + 3
        else:
            yield i
            length, positions = samples[i], tokens[i] + 3
    yield len(samples)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_rule_row_by_row(seed: int) -> None:
    """Independent reference: a plain loop; so order, greed, borders and both limits are all as it says."""
    rng = np.random.default_rng(seed)
    n = 3000
    durations_s = np.where(rng.random(n) < 0.02, np.nan, rng.choice([0.1, 2.5, 3.33, 7.0, 15.0, 30.0, 31.0], n))
    groups = [np.repeat(rng.integers(0, 3, n // 20), 20), np.array(["en", "de"])[(rng.random(n) < 0.05).astype(int)]]
    tokens = rng.choice([1, 30, 100, 440, 445, 900], n, p=[0.4, 0.3, 0.2, 0.04, 0.03, 0.03])
    gap_s = [0.0, 0.25][seed % 2]
    bounds = pack_rows(durations_s, groups=groups, num_tokens=tokens, gap_s=gap_s)
    assert bounds.dtype == np.int64
    assert bounds.tolist() == list(_slow_bounds(durations_s, groups, tokens, round(gap_s * SAMPLING_RATE)))
    assert len(bounds) < 0.8 * n  # packs did form


def test_waveforms_are_joined_sample_for_sample() -> None:
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, n).astype(np.float32) for n in (1600, 3, 16000)]
    joined, starts_s = join_waveforms(clips)
    assert joined.dtype == np.float32
    assert np.array_equal(joined, np.concatenate(clips))
    assert starts_s == (0.0, 0.1, 1603 / 16000)
    joined, starts_s = join_waveforms(clips, gap_s=0.01)
    assert len(joined) == 1600 + 160 + 3 + 160 + 16000
    for clip, start_s in zip(clips, starts_s, strict=True):
        start = round(start_s * SAMPLING_RATE)
        assert np.array_equal(joined[start : start + len(clip)], clip)
    assert 0 < np.abs(joined[1600:1760]).max() < 1e-3  # soft, and not digital silence


def test_a_pack_is_labelled_with_each_clip_as_a_segment(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        replace(ROW, offset_s=100.0),
        replace(ROW, id="b", text=" two ", prompt="not this"),
        replace(
            ROW,
            id="c",
            text="three one",
            offset_s=7.0,
            segments=(Segment(7.0, 8.0, "three"), Segment(8.5, 9.0, "one")),
        ),
    ]
    joined = join_rows(rows, starts_s=(0.0, 2.5, 5.0), durations_s=(2.5, 2.5, 2.5))
    assert (joined.id, joined.text, joined.prompt) == ("a+c", "one two three one", "before")
    assert (joined.offset_s, joined.duration_s) == (None, 7.5)
    builder = LabelBuilder(tokenizer, max_positions=448)
    plain = builder.build(joined)
    assert plain == builder.build(replace(ROW, text="one two three one"))
    timed = builder.build(joined, with_timestamps=True, with_prompt=False)
    assert tokenizer.decode(timed.labels, decode_with_timestamps=True) == (
        "<|en|><|transcribe|><|0.00|> one<|2.50|><|2.50|> two<|5.00|><|5.00|> three<|6.00|><|6.50|> one<|7.00|>"
        "<|endoftext|>"
    )


def test_a_pack_of_one_is_its_row() -> None:
    row = replace(ROW, open_start_s=1.0)
    assert join_rows([row], starts_s=(0.0,), durations_s=(2.5,)) is row


def test_clips_without_speech_leave_no_trace_in_the_text() -> None:
    silent = replace(ROW, text="", no_speech=True)
    joined = join_rows([ROW, silent, ROW], starts_s=(0, 2.5, 5), durations_s=(2.5, 2.5, 2.5))
    assert (joined.text, joined.no_speech) == ("one one", False)
    assert [(s.start_s, s.end_s) for s in joined.segments] == [(0, 2.5), (5, 7.5)]
    assert join_rows([silent, silent], starts_s=(0, 2.5), durations_s=(2.5, 2.5)).no_speech


@pytest.mark.parametrize(("language", "text"), [("en", "a b"), ("ko", "a b"), ("zh", "ab"), ("ja", "ab"), ("th", "ab")])
def test_texts_are_joined_as_the_language_is_written(language: str, text: str) -> None:
    rows = [replace(ROW, text="a", language=language), replace(ROW, text="b", language=language)]
    assert join_rows(rows, starts_s=(0, 2.5), durations_s=(2.5, 2.5)).text == text


def test_what_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="at least one"):
        join_rows([], starts_s=(), durations_s=())
    for rows in ([replace(ROW, open_start_s=1.0), ROW], [ROW, replace(ROW, open_start_s=1.0)]):
        with pytest.raises(ValueError, match=r"a ends within a segment: .* leave it alone"):
            join_rows(rows, starts_s=(0.0, 2.5), durations_s=(2.5, 2.5))


def test_packs_by_the_byte_bound_always_fit_the_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    """What the planner lets through, the builder takes, timed or not."""
    rng = np.random.default_rng(0)
    rows = [replace(ROW, text="".join(rng.choice(list("abc é你q"), rng.integers(1, 200)))) for _ in range(400)]
    num_bytes = np.array([len(row.text.encode()) for row in rows])
    builder = LabelBuilder(tokenizer, max_positions=448)
    counts = builder.count_tokens([row.text for row in rows])
    durations_s = np.full(400, 2.5)
    packs = {}
    for name, tokens in (("bytes", num_bytes), ("tokens", counts)):
        bounds = pack_rows(durations_s, groups=[["en"] * 400], num_tokens=tokens)
        packs[name] = len(bounds) - 1
        for first, stop in itertools.pairwise(bounds):
            members = rows[first:stop]
            starts_s = [2.5 * i for i in range(len(members))]
            row = join_rows(members, starts_s=starts_s, durations_s=[2.5] * len(members))
            longest = [builder.build(row, with_timestamps=timed) for timed in (False, True)]
            assert max(len(labels.labels) for labels in longest) <= 448 or len(members) == 1
    assert packs["tokens"] < packs["bytes"] < 400
