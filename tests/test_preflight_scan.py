"""A scan measures what is there, names what cannot be used, survives a crash, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import tone

from data.labels import LabelBuilder
from data.preflight.cache import ScanCache
from data.preflight.clip import ClipFigures, ClipJob, compute_silence_share, hash_samples, measure_clip
from data.preflight.columns import Split
from data.preflight.pool import CHUNK_CLIPS, measure_clips
from data.preflight.scan import scan_corpus
from data.rows import JoinedRows
from data.sources import Source, read_source


def job(path, index=0, **options):
    return ClipJob(index, path, str(path), **{"offset_s": None, "duration_s": None, "max_duration_s": 30.0, **options})


def crash_on_crash(job):
    if "crash" in job.name:
        os._exit(9)
    return ClipFigures(duration_s=1.0)


def split_of(path, name="train"):
    return Split(name, JoinedRows([read_source(Source(str(path)))]), is_windowed=name != "test")


def counting(measured, stop_after=None):
    def measure(job):
        if stop_after is not None and len(measured) == stop_after:
            raise KeyboardInterrupt
        measured.append(job.name)
        return measure_clip(job)

    return measure


def test_the_same_sound_has_one_hash_in_every_lossless_container(tmp_path):
    samples = np.round(tone(0.5) * 32767).astype(np.int16)
    for name, options in {"a.wav": {}, "b.flac": {}, "c.aiff": {}, "d.wav": {"subtype": "FLOAT"}}.items():
        content = samples if "subtype" not in options else samples.astype(np.float32) / 32768
        soundfile.write(tmp_path / name, content, 16_000, **options)
    hashes = {measure_clip(job(path)).pcm for path in tmp_path.iterdir()}
    samples[100] += 1
    soundfile.write(tmp_path / "other.wav", samples, 16_000)
    assert len(hashes) == 1 and measure_clip(job(tmp_path / "other.wav")).pcm not in hashes


def test_figures_of_a_sine_are_those_of_the_textbook(tmp_path):
    sine = (0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.float32)
    soundfile.write(tmp_path / "sine.flac", sine + 0.1, 48_000)
    found = measure_clip(job(tmp_path / "sine.flac"))
    assert found.rms_dbfs == pytest.approx(10 * np.log10(0.5**2 / 2 + 0.1**2), abs=0.01)
    assert (found.dc, found.peak, found.duration_s) == pytest.approx((0.1, 0.6, 1.0), abs=0.002)
    assert (found.sampling_rate, found.channels, found.clipped_share, found.code) == (48_000, 1, 0.0, "")


def test_pauses_and_clipping_are_counted():
    loud = tone(1.0)
    assert compute_silence_share(np.concatenate([loud, np.zeros(16_000, np.float32)])) == pytest.approx(0.5)
    faint = 0.005 * tone(1.0, seed=1)  # 46 dB below
    assert compute_silence_share(np.concatenate([loud, loud, loud, faint])) == pytest.approx(0.25, abs=0.02)
    assert compute_silence_share(loud) == 0.0
    assert compute_silence_share(np.zeros(3200, np.float32)) == 1.0


def test_clipped_and_opposite_channels_are_seen(tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.clip(8 * tone(1.0), -1, 1), 16_000)
    left = tone(1.0)
    soundfile.write(tmp_path / "opposite.wav", np.stack([left, -0.9 * left], axis=1), 16_000)
    soundfile.write(tmp_path / "alike.wav", np.stack([left, 0.9 * left], axis=1), 16_000)
    assert measure_clip(job(tmp_path / "loud.wav")).clipped_share > 0.5
    assert measure_clip(job(tmp_path / "opposite.wav")).is_anti_phase
    assert not measure_clip(job(tmp_path / "alike.wav")).is_anti_phase


def test_a_clip_that_cannot_be_used_comes_back_with_its_code(tmp_path, write_clip):
    (tmp_path / "noise.wav").write_bytes(b"RIFF and nothing else")
    (tmp_path / "empty.wav").touch()
    long = write_clip("long.wav", 31.0)
    codes = [measure_clip(job(tmp_path / name)).code for name in ("gone.wav", "empty.wav", "noise.wav")]
    assert codes == ["A01", "A02", "A04"]
    assert measure_clip(job(long)).code == "A10"
    assert measure_clip(job(write_clip("short.wav", 1.0), duration_s=2.0)).code == "A03"
    part = measure_clip(job(long, offset_s=2.0, duration_s=1.5))
    assert (part.code, part.duration_s) == ("", 1.5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_clip_is_measured_once(write_clip, num_workers):
    path = write_clip()
    found = [
        item for chunk in measure_clips((job(path, i) for i in range(100)), num_workers=num_workers) for item in chunk
    ]
    assert sorted(done.index for done, _ in found) == list(range(100))
    assert len({figures for _, figures in found}) == 1


def test_a_clip_that_kills_its_process_costs_only_itself():
    names = ["fine"] * 40 + ["crash"] + ["fine"] * 10 + ["crash again"] + ["fine"] * 30
    jobs = [ClipJob(i, b"", name, None, None, None) for i, name in enumerate(names)]
    found = [item for part in measure_clips(iter(jobs), num_workers=1, measure=crash_on_crash) for item in part]
    assert sorted(done.index for done, _ in found) == list(range(len(names)))
    assert {done.index: figures.code for done, figures in found if figures.code} == {40: "A04", 51: "A04"}


def test_a_scan_that_was_stopped_goes_on_and_a_second_one_decodes_nothing(corpus, write_clip, write_manifest, tmp_path):
    lines = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    rows = [{**line, "id": f"{i}-{line['id']}", "offset_s": 0.001 * i} for i in range(8) for line in lines]
    split, cache_path = split_of(write_manifest(rows, "many.jsonl")), tmp_path / "scan.jsonl"
    first, second, third = [], [], []
    with pytest.raises(KeyboardInterrupt):
        scan_corpus([split], cache_path=cache_path, measure=counting(first, stop_after=CHUNK_CLIPS + 5))
    scan = scan_corpus([split], cache_path=cache_path, measure=counting(second))
    again = scan_corpus([split], cache_path=cache_path, measure=counting(third))
    assert (len(first), len(second), len(third)) == (CHUNK_CLIPS + 5, len(rows) - CHUNK_CLIPS, 0)
    assert (scan.num_measured, again.num_measured) == (len(rows) - CHUNK_CLIPS, 0)
    assert np.array_equal(scan["train"].columns, again["train"].columns)
    fresh = scan_corpus([split], cache_path=tmp_path / "fresh.jsonl")
    assert np.array_equal(fresh["train"].columns, again["train"].columns)


def test_a_file_that_changed_is_measured_again_and_faults_are_remembered(corpus, write_clip, tmp_path):
    cache_path, measured = tmp_path / "scan.jsonl", []
    (tmp_path / "audio/3.wav").write_bytes(b"no audio")
    first = scan_corpus([split_of(corpus)], cache_path=cache_path)
    write_clip("audio/0.wav", 0.9, seed=77)
    second = scan_corpus([split_of(corpus)], cache_path=cache_path, measure=counting(measured))
    assert [Path(name).name for name in measured] == ["0.wav"]
    assert first["train"].figures["pcm"][0] != second["train"].figures["pcm"][0]
    assert [f.code for f in first["train"].faults()] == [f.code for f in second["train"].faults()] == ["A04"]
    assert [f.message for f in first["train"].faults()] == [f.message for f in second["train"].faults()]


def test_a_torn_or_foreign_line_of_the_cache_is_passed_over(corpus, tmp_path, caplog):
    cache_path, measured = tmp_path / "scan.jsonl", []
    scan_corpus([split_of(corpus)], cache_path=cache_path)
    content = cache_path.read_text()
    lines = content.splitlines()
    cache_path.write_text("\n".join([*lines[:-1], '{"key": 1, "unknown": 2}', '{"key": "x"}', "[]", lines[-1][:40]]))
    scan_corpus([split_of(corpus)], cache_path=cache_path, measure=counting(measured))
    assert len(measured) == 1
    assert "4 lines are no records" in caplog.text
    assert len(ScanCache(cache_path)) == 10
    scan_corpus([split_of(corpus)], cache_path=cache_path, measure=counting(measured))
    assert len(measured) == 1


def test_a_label_fault_stays_when_the_audio_comes_from_the_cache(corpus, tmp_path, tokenizer):
    from data.labels import LabelBuilder

    builder = LabelBuilder(tokenizer, max_positions=30)  # the longest texts have more
    scans = [scan_corpus([split_of(corpus)], cache_path=tmp_path / "s.jsonl", label_builder=builder) for _ in range(2)]
    codes = [list(scan["train"].figures["code"]) for scan in scans]
    assert codes[0] == codes[1] and set(codes[0]) == {"", "T04"}
    tokens = scans[0]["train"].columns["num_label_tokens"]
    assert tokens[0] == builder.build(next(iter(split_of(corpus).rows))).num_label_tokens


def test_a_recording_with_segments_is_taken_whole_and_one_without_is_too_long(write_clip, write_manifest, tmp_path):
    write_clip("talk.wav", 40.0)
    segments = [{"start": 0.0, "end": 20.0, "text": "one"}, {"start": 20.0, "end": 40.0, "text": "two"}]
    too_long = [{"start": 0.0, "end": 40.0, "text": "one two"}]
    base = {"audio": "talk.wav", "text": "one two", "language": "en"}
    path = write_manifest(
        [{**base, "id": "a", "segments": segments}, {**base, "id": "b"}, {**base, "id": "c", "segments": too_long}]
    )
    scan = scan_corpus([split_of(path), split_of(path, "test")], cache_path=tmp_path / "scan.jsonl")
    assert list(scan["train"].figures["code"]) == ["", "A10", "A10"]
    assert list(scan["test"].figures["code"]) == ["", "", ""]
    assert scan["train"].figures["duration_s"][0] == pytest.approx(40.0)


def test_a_corpus_that_moved_is_measured_again(corpus, tmp_path):
    moved, measured = tmp_path / "moved", []
    shutil.copytree(corpus.parent / "audio", moved / "audio")
    shutil.copy(corpus, moved / "train.jsonl")
    first = scan_corpus([split_of(corpus)], cache_path=tmp_path / "scan.jsonl")
    second = scan_corpus(
        [split_of(moved / "train.jsonl")], cache_path=tmp_path / "scan.jsonl", measure=counting(measured)
    )
    assert len(measured) == 10
    assert np.array_equal(first["train"].figures, second["train"].figures)


def test_hashes_depend_on_samples_alone():
    waveform = tone(0.3)
    assert hash_samples(waveform) == hash_samples(waveform.copy()) != hash_samples(waveform[1:])


def test_rows_that_name_one_clip_decode_it_once(write_clip, write_manifest, tmp_path, tokenizer):
    """Each has its own text, and so its own label faults."""
    write_clip("clip.wav", 1.0)
    write_clip("short.wav", 0.05)
    rows = [
        {"id": f"{i}", "audio": name, "text": text, "language": "en"}
        for i, (name, text) in enumerate(
            [("clip.wav", "one"), ("clip.wav", "a" * 100), ("short.wav", "x"), ("clip.wav", "two"), ("short.wav", "y")]
        )
    ]
    heard = []

    def measure(job):
        heard.append(job.index)
        return measure_clip(job)

    split = Split("train", JoinedRows([read_source(Source(str(write_manifest(rows))))]), is_windowed=True)
    scan = scan_corpus(
        [split],
        cache_path=tmp_path / "scan.jsonl",
        label_builder=LabelBuilder(tokenizer, max_positions=64),
        num_workers=0,
        measure=measure,
    )
    assert sorted(heard) == [0, 2]
    assert scan.num_measured == 2
    assert scan["train"].figures["code"].tolist() == ["", "T04", "A11", "", "A11"]
    assert scan["train"].figures["duration_s"].tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert {record.line for record in scan["train"].faults()} == {2, 3, 5}
