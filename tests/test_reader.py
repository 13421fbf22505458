"""A row is read, left out, or found bad once; what is kept in memory never changes what is heard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import data.reader
from data.audio import load_waveform
from data.dataset import open_clips
from data.labels import LabelBuilder
from data.reader import ClipReader
from data.reasons import Rejected
from data.rows import JoinedRows
from data.sources import Source, read_source


@pytest.fixture
def rows(corpus: Path, tokenizer: Any) -> JoinedRows:
    builder = LabelBuilder(tokenizer, max_positions=448)
    return open_clips([Source(str(corpus))], builder, on_bad="strict", max_bad_share=0.0).rows


def test_rows_that_were_found_bad_before_are_left_out_without_a_word(
    rows: JoinedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ClipReader(rows, cache_gib=0.01)
    kept = reader.read(3)
    reader.leave_out([3, 4])
    loaded = []
    real = data.reader.load_row
    monkeypatch.setattr(data.reader, "load_row", lambda row, **options: loaded.append(row.id) or real(row, **options))
    assert reader.read(3) is None
    assert reader.read(4) is None
    assert isinstance(reader.read(5), np.ndarray)
    assert loaded == ["c5"]
    assert isinstance(kept, np.ndarray)


def test_a_row_longer_than_its_window_is_given_up_for_good(rows: JoinedRows) -> None:
    reader = ClipReader(rows, cache_gib=0.0)
    assert isinstance(reader.read(2), np.ndarray)
    record = reader.reject_length(2, 1.25)
    assert (record.code, record.line, record.id) == ("M08", 3, "c2")
    assert "1.25 s found, 0.70 s stated" in record.message
    assert reader.read(2) is record


def test_a_row_is_read_as_long_as_the_reader_allows(
    write_clip: Callable[..., Path], write_manifest: Callable[..., Path], tokenizer: Any
) -> None:
    write_clip("long.wav", 31.0)
    path = write_manifest([{"audio": "long.wav", "text": "x", "language": "en"}])
    builder = LabelBuilder(tokenizer, max_positions=448)
    clips = open_clips([Source(str(path))], builder, on_bad="strict", max_bad_share=0.0, max_duration_s=60.0)
    found = ClipReader(clips.rows, cache_gib=0.0).read(0)
    assert isinstance(found, Rejected)
    assert found.code == "A10"
    for max_duration_s in (31.0, None):
        waveform = ClipReader(clips.rows, cache_gib=0.0, max_duration_s=max_duration_s).read(0)
        assert isinstance(waveform, np.ndarray)
        assert len(waveform) == 16_000 * 31


def test_sixteen_bits_are_exact_for_files_of_sixteen_bits(rows: JoinedRows) -> None:
    """What is kept must not wander with each reading: half a step at most from the file, and the same for good."""
    reader = ClipReader(rows, cache_gib=0.01)
    for i, row in enumerate(rows):
        assert isinstance(row.audio, Path)
        first = reader.read(i)
        np.testing.assert_allclose(first, load_waveform(row.audio), atol=0.5 / 32767 + 1e-7)  # type: ignore[arg-type]
        for _ in range(3):
            np.testing.assert_array_equal(reader.read(i), first)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [0.0, 0.25, 5e-4])
def test_silence_that_has_a_text_is_left_out(level: float, tmp_path: Path) -> None:
    """A06: zeros, a constant offset, and noise under -60 dBFS; without a text they are what they are said to be."""
    noise = np.random.default_rng(0).normal(0, 5e-4, 16_000).astype(np.float32)
    waveform = noise if level == 5e-4 else np.full(16_000, level, np.float32)
    soundfile.write(tmp_path / "quiet.wav", waveform, 16_000, subtype="FLOAT")
    rows = [
        {"id": "said", "audio": "quiet.wav", "text": "one", "language": "en"},
        {"id": "unsaid", "audio": "quiet.wav", "no_speech": True, "language": "en"},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    reader = ClipReader(JoinedRows([read_source(Source(str(tmp_path / "train.jsonl")))]), cache_gib=0.0)
    found = reader.read(0)
    assert isinstance(found, Rejected)
    assert found.code == "A06"
    assert isinstance(reader.read(1), np.ndarray)
