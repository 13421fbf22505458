"""Every row is taken or quarantined with its code and line; a clip is read the same way each time, or reported once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import tone

import data.dataset
from data.audio import load_waveform
from data.dataset import Clips, open_clips
from data.labels import LabelBuilder
from data.mixture import every_clip
from data.plan import BatchSize, EpochPlan
from data.reader import ClipReader
from data.reasons import Rejected
from data.sources import Source
from data.windows import full_windows


@pytest.fixture
def builder(tokenizer) -> LabelBuilder:
    return LabelBuilder(tokenizer, max_positions=64)


def _open(path: Path, builder: LabelBuilder, **options: object) -> Clips:
    return open_clips([Source(str(path))], builder, **{"on_bad": "quarantine", "max_bad_share": 1.0, **options})


@pytest.fixture
def mixed(tmp_path: Path, write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> Path:
    """Good and bad rows; `expected` beside each bad one."""
    write_clip("good.wav", 1.0)
    write_clip("short.wav", 0.05)
    write_clip("long.wav", 30.01)
    write_clip("whole.wav", 30.0)
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(tmp_path / "many.wav", np.zeros((8000, 9), np.float32), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but no more than that")
    row = {"audio": "good.wav", "text": "one", "language": "en"}
    return write_manifest(
        [
            {**row, "id": "good"},
            {**row, "id": "short", "audio": "short.wav", "expected": "A11"},
            {**row, "id": "long", "audio": "long.wav", "expected": "A10"},
            {**row, "id": "whole", "audio": "whole.wav"},
            {**row, "id": "none", "audio": "none.wav", "expected": "A02"},
            {**row, "id": "many", "audio": "many.wav", "expected": "A09"},
            {**row, "id": "broken", "audio": "broken.wav", "expected": "A04"},
            {**row, "id": "stated", "duration_s": 31.0, "expected": "A10"},
            {**row, "id": "text", "text": "a" * 100, "expected": "T04"},
            {**row, "id": "token", "text": "a <|en|> b", "expected": "T07"},
            {**row, "id": "prompt", "prompt": "<|endoftext|>", "expected": "T07"},
            {**row, "id": "times", "segments": [{"start": 0, "end": 40, "text": "a"}], "expected": "T11"},
            {**row, "id": "empty", "text": "  ", "expected": "T03"},
            {**row, "id": "missing", "audio": "absent.wav", "expected": "A01"},
            {**row, "id": "part", "offset_s": 0.5, "duration_s": 0.25},
            {**row, "id": "behind", "offset_s": 5.0, "expected": "A03"},
        ]
    )


def test_every_row_is_taken_or_quarantined_with_code_and_line(mixed: Path, builder: LabelBuilder) -> None:
    rows = [json.loads(line) for line in mixed.read_text(encoding="utf-8").splitlines()]
    clips = _open(mixed, builder)
    found = {record.id: (record.line, record.code) for record in clips.rejected}
    assert found == {row["id"]: (i, row["expected"]) for i, row in enumerate(rows, 1) if "expected" in row}
    assert [row.id for row in clips.rows] == [row["id"] for row in rows if "expected" not in row]
    assert clips.durations_s.tolist() == [row.duration_s for row in clips.rows] == [1.0, 30.0, 0.25]
    assert clips.audio_s == 31.25
    assert [clips.members(i) for i in range(len(clips))] == [range(i, i + 1) for i in range(3)]
    assert all(builder.build(row).num_label_tokens > 0 for row in clips.rows)
    assert all(record.manifest == str(mixed) for record in clips.rejected)


def test_strict_and_share_count_the_rows_that_fail_here(mixed: Path, builder: LabelBuilder) -> None:
    with pytest.raises(ValueError, match="13 of 16 lines") as e:
        _open(mixed, builder, on_bad="strict")
    assert f"{mixed}:" in str(e.value)
    with pytest.raises(ValueError, match=r"max_bad_share=0\.8"):
        _open(mixed, builder, max_bad_share=0.8)
    assert len(_open(mixed, builder, max_bad_share=13 / 16).rows) == 3


def test_manifests_are_joined_and_each_is_judged_alone(
    corpus: Path, write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    row = {"audio": "audio/0.wav", "text": "x", "language": "en"}
    half = write_manifest([{**row, "id": "more"}, {**row, "text": ""}], "half.jsonl")
    sources = [Source(str(corpus)), Source(str(half))]
    clips = open_clips(sources, builder, on_bad="quarantine", max_bad_share=0.5)
    assert [row.id for row in clips.rows] == [*(f"c{i}" for i in range(10)), "more"]
    assert len(clips) == len(clips.durations_s) == 11
    assert clips.source_of.tolist() == [0] * 10 + [1]
    assert clips.languages.tolist() == [row.language for row in clips.rows]
    assert [(record.manifest, record.line) for record in clips.rejected] == [(str(half), 2)]
    with pytest.raises(ValueError, match="1 of 2 lines"):  # a twelfth of all lines, but half of this file
        open_clips(sources, builder, on_bad="quarantine", max_bad_share=0.2)
    absent = Source(str(corpus.with_name("absent.jsonl")))
    with pytest.raises(FileNotFoundError):
        open_clips([sources[0], absent], builder, on_bad="report", max_bad_share=1.0)


def test_segments_of_a_short_clip_may_overlap_and_come_in_any_order(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    """Timestamp tokens cannot go back, so what overlaps becomes one segment; no word is lost."""
    write_clip("clip.wav", 3.0)
    times = [(2.0, 3.0, "d"), (0.0, 1.0, "a"), (0.5, 1.5, "b"), (1.5, 2.0, "c")]
    segments = [{"start": start, "end": end, "text": text} for start, end, text in times]
    row = {"audio": "clip.wav", "text": "a b c d", "language": "en", "segments": segments}
    clips = _open(write_manifest([row]), builder, on_bad="strict")
    (found,) = clips.rows
    assert found.text == "a b c d"
    assert [(s.start_s, s.end_s, s.text) for s in found.segments] == [(0, 1.5, "a b"), (1.5, 2, "c"), (2, 3, "d")]
    assert clips.durations_s.tolist() == [3.0]


def test_long_recordings_are_taken_where_they_are_decoded_as_such(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    write_clip("long.wav", 31.0)
    manifest = write_manifest([{"audio": "long.wav", "text": "x", "language": "en"}])
    assert _open(manifest, builder, on_bad="strict", max_duration_s=60.0).durations_s.tolist() == [31.0]


@pytest.mark.parametrize(("rate", "num_samples"), [(16_000, 480_000), (44_100, 1_323_000), (44_100, 1_323_001)])
def test_thirty_seconds_at_any_rate_pass_to_the_end(
    rate: int, num_samples: int, tmp_path: Path, write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    """What is admitted here must also fit the plan and the window later; half a sample must not stop a run."""
    soundfile.write(tmp_path / "clip.wav", tone(num_samples / rate, sampling_rate=rate), rate)
    assert soundfile.info(tmp_path / "clip.wav").frames == num_samples
    clips = _open(write_manifest([{"audio": "clip.wav", "text": "x", "language": "en"}]), builder, on_bad="strict")
    plan = EpochPlan(clips.durations_s, every_clip(1), windows=full_windows(), size=BatchSize(1), seed=0)
    assert [update.num_frames for update in plan.updates(0)] == [3000]
    waveform = ClipReader(clips.rows, cache_gib=0).read(0)
    assert not isinstance(waveform, Rejected)
    assert len(waveform) == 480_000


@pytest.mark.parametrize("num_samples", [480_001, 480_008, 480_016])
def test_a_sample_more_than_thirty_seconds_is_quarantined(
    num_samples: int, tmp_path: Path, write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    soundfile.write(tmp_path / "clip.wav", np.zeros(num_samples, np.int16), 16_000)
    soundfile.write(tmp_path / "good.wav", tone(1.0), 16_000)
    row = {"text": "x", "language": "en"}
    clips = _open(write_manifest([{**row, "audio": "clip.wav"}, {**row, "audio": "good.wav"}]), builder)
    assert [(record.line, record.code) for record in clips.rejected] == [(1, "A10")]


def test_the_first_reading_equals_every_later_one(corpus: Path, builder: LabelBuilder) -> None:
    """Kept samples are 16-bit: within half a step of what was decoded, and the same from the first time on."""
    clips = _open(corpus, builder)
    reader = ClipReader(clips.rows, cache_gib=0.01)
    for i, row in enumerate(clips.rows):
        first, second = reader.read(i), reader.read(i)
        assert first.dtype == second.dtype == np.float32
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, load_waveform(row.audio), atol=0.5 / 32767 + 1e-7)


def test_a_full_cache_changes_no_sample(corpus: Path, builder: LabelBuilder) -> None:
    """Each worker has a cache of its own; which clip found room in it must not be heard."""
    clips = _open(corpus, builder)
    roomy, tiny = ClipReader(clips.rows, cache_gib=0.01), ClipReader(clips.rows, cache_gib=30_000 / 2**30)
    for i in [*range(10), *range(10)]:
        np.testing.assert_array_equal(roomy.read(i), tiny.read(i))
    assert len(roomy._cache) == 10
    assert 0 < len(tiny._cache) < 10
    assert sum(samples.nbytes for samples in tiny._cache.values()) <= 30_000


def test_without_a_cache_the_samples_are_those_of_the_file(corpus: Path, builder: LabelBuilder) -> None:
    clips = _open(corpus, builder)
    reader = ClipReader(clips.rows, cache_gib=0)
    for _ in range(2):
        for i, row in enumerate(clips.rows):
            np.testing.assert_array_equal(reader.read(i), load_waveform(row.audio))


def test_a_kept_clip_is_not_decoded_again_and_cannot_be_changed_from_outside(
    corpus: Path, builder: LabelBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_decoded: list[Path] = []

    def counted(path: Path, **options: object) -> np.ndarray:
        num_decoded.append(path)
        return load_waveform(path, **options)

    monkeypatch.setattr(data.dataset, "load_waveform", counted)
    clips = _open(corpus, builder)
    kept, every_time = ClipReader(clips.rows, cache_gib=0.01), ClipReader(clips.rows, cache_gib=0)
    first = kept.read(0)
    expected = first.copy()
    first[:] = 0  # an augmentation in place must not reach the next epoch
    np.testing.assert_array_equal(kept.read(0), expected)
    assert len(num_decoded) == 1
    every_time.read(0)
    every_time.read(0)
    assert len(num_decoded) == 3


def test_samples_beyond_full_scale_do_not_wrap(
    tmp_path: Path, write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    soundfile.write(tmp_path / "hot.wav", np.tile([1.5, -1.5, 1.0, -1.0], 1000), 16_000, subtype="FLOAT")
    clips = _open(write_manifest([{"audio": "hot.wav", "text": "x", "language": "en"}]), builder)
    np.testing.assert_array_equal(ClipReader(clips.rows, cache_gib=0.01).read(0)[:4], np.float32([1, -1, 1, -1]))


def test_a_clip_that_fails_is_reported_and_not_tried_again(
    corpus: Path, builder: LabelBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = _open(corpus, builder)
    good = clips.rows[4].audio.read_bytes()
    clips.rows[4].audio.write_bytes(b"no longer audio")
    reader = ClipReader(clips.rows, cache_gib=0.01)
    record = reader.read(4)
    assert isinstance(record, Rejected)
    assert (record.code, record.line, record.id, record.audio) == ("M11", 5, "c4", str(clips.rows[4].audio))
    clips.rows[4].audio.write_bytes(good)
    monkeypatch.setattr(data.dataset, "load_waveform", lambda *_, **__: pytest.fail("the clip was tried again"))
    assert reader.read(4) is record


@pytest.mark.parametrize(("stated_s", "code"), [(3.0, "A03"), (0.5, "M08")])
def test_a_manifest_that_lies_about_the_duration_is_found_when_the_clip_is_read(
    stated_s: float,
    code: str,
    write_clip: Callable[..., Path],
    write_manifest: Callable[..., Path],
    builder: LabelBuilder,
) -> None:
    write_clip("clip.wav", 1.0)
    row = {"audio": "clip.wav", "text": "x", "language": "en", "duration_s": stated_s}
    clips = _open(write_manifest([row]), builder)
    assert clips.durations_s.tolist() == [stated_s]
    record = ClipReader(clips.rows, cache_gib=0).read(0)
    assert isinstance(record, Rejected)
    assert (record.code, record.line) == (code, 1)


@pytest.mark.parametrize(
    ("kind", "is_silent"),
    [("zeros", True), ("offset", True), ("hiss", True), ("whisper", False), ("one word", False)],
)
def test_silence_is_not_taught_words(
    kind: str, is_silent: bool, tmp_path: Path, write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    """A clip with a text must reach -60 dBFS, and a constant offset is no sound; one without speech may be silent."""
    noise = np.random.default_rng(0).standard_normal(32_000)
    word = np.where(np.arange(32_000) // 1600 == 7, 0.05, 0.0) * noise  # a tenth of a second in two
    samples = {"zeros": 0 * noise, "offset": 0 * noise + 0.5, "hiss": 5e-4 * noise, "whisper": 2e-3 * noise}
    soundfile.write(tmp_path / "clip.wav", samples.get(kind, word), 16_000, subtype="FLOAT")
    row = {"audio": "clip.wav", "language": "en"}
    rows = [{**row, "id": "said", "text": "x"}, {**row, "id": "not", "no_speech": True}]
    clips = _open(write_manifest(rows), builder, on_bad="strict")  # found when it is heard
    reader = ClipReader(clips.rows, cache_gib=0.01)
    found = reader.read(0)
    assert isinstance(found, Rejected) == is_silent
    if isinstance(found, Rejected):
        assert (found.code, found.line) == ("A06", 1)
        assert reader.read(0) is found
    assert isinstance(reader.read(1), np.ndarray)


def test_a_part_of_a_file_is_read_as_that_part(
    tmp_path: Path, write_manifest: Callable[..., Path], builder: LabelBuilder
) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", samples, 16_000, subtype="FLOAT")
    row = {"audio": "clip.wav", "text": "x", "language": "en", "offset_s": 1.0, "duration_s": 0.5}
    clips = _open(write_manifest([row]), builder)
    np.testing.assert_array_equal(ClipReader(clips.rows, cache_gib=0).read(0), samples[16_000:24_000])
