"""Recordings are found, checked and named before training; what is kept in memory never changes a sample."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import tone

from data.sounds import PIECE_S, open_sounds, to_waveform


@pytest.fixture
def folder(write_clip) -> Path:
    for i in range(3):
        write_clip(f"noise/deep/{i}.wav", 0.5 + 0.1 * i, seed=i, hz=300.0 + 50 * i)
    write_clip("noise/high.flac", 0.7, sampling_rate=44_100)
    path = write_clip("noise/readme.wav", 0.2).with_suffix(".txt")
    path.with_suffix(".wav").rename(path)
    return path.parent


def _read_all(sounds) -> list[np.ndarray]:
    return [to_waveform(sounds.read(i)) for i in range(len(sounds))]


def test_a_folder_is_searched_in_a_fixed_order(folder: Path):
    sounds = open_sounds([str(folder)], key="augment.noise", cache_gib=1.0)
    assert [piece.path.name for piece in sounds.pieces] == ["0.wav", "1.wav", "2.wav", "high.flac"]
    for i, waveform in enumerate(_read_all(sounds)[:3]):
        expected = tone(0.5 + 0.1 * i, seed=i, hz=300.0 + 50 * i)
        assert waveform.dtype == np.float32
        np.testing.assert_allclose(waveform, expected / np.abs(expected).max(), atol=2e-4)  # 16-bit file


def test_memory_and_pickling_change_no_sample(folder: Path):
    whole = _read_all(open_sounds([str(folder)], key="augment.noise", cache_gib=1.0))
    for cache_gib in (0.0, 20_000 / 2**30, 40_000 / 2**30):  # none, one and two of the four fit
        sounds = open_sounds([str(folder)], key="augment.noise", cache_gib=cache_gib)
        for found in (_read_all(sounds), _read_all(pickle.loads(pickle.dumps(sounds)))):
            for a, b in zip(found, whole, strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_fits_is_not_read_again(folder: Path):
    kept = open_sounds([str(folder)], key="augment.noise", cache_gib=1.0)
    read_each_time = open_sounds([str(folder)], key="augment.noise", cache_gib=0.0)
    (folder / "high.flac").unlink()
    assert len(kept.read(3)) == 11_200
    with pytest.raises(ValueError, match=r"high\.flac"):
        read_each_time.read(3)


def test_a_manifest_names_files_and_parts_of_them(folder: Path):
    manifest = folder / "noise.jsonl"
    rows = [{"audio": "deep/1.wav"}, {"audio": "high.flac", "offset_s": 0.2, "duration_s": 0.3, "kind": "noise"}]
    manifest.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    sounds = open_sounds([str(manifest)], key="augment.noise", cache_gib=1.0)
    whole, part = _read_all(sounds)
    assert (len(whole), len(part)) == (9600, 4800)
    high = tone(0.7, sampling_rate=44_100)
    middle = np.interp(0.2 + np.arange(4800) / 16_000, np.arange(len(high)) / 44_100, high)
    assert np.corrcoef(part, middle)[0, 1] > 0.99


def test_a_long_recording_is_cut_into_equal_pieces(tmp_path: Path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 70 * 8000)
    soundfile.write(tmp_path / "long.wav", samples, 8000)
    sounds = open_sounds([str(tmp_path / "long.wav")], key="augment.noise", cache_gib=1.0)
    assert [piece.duration_s for piece in sounds.pieces] == [pytest.approx(70 / 3)] * 3
    assert sum(len(waveform) for waveform in _read_all(sounds)) == pytest.approx(70 * 16_000, abs=6)
    assert all(piece.duration_s <= PIECE_S for piece in sounds.pieces)


def test_a_quiet_recording_keeps_its_detail(tmp_path: Path):
    quiet = (tone(0.5) * 1e-4).astype(np.float32)
    soundfile.write(tmp_path / "quiet.wav", quiet, 16_000, subtype="FLOAT")
    (waveform,) = _read_all(open_sounds([str(tmp_path)], key="augment.rooms", cache_gib=1.0))
    np.testing.assert_allclose(waveform, quiet / np.abs(quiet).max(), atol=2e-5)


def test_every_bad_file_is_named_at_once(folder: Path):
    (folder / "broken.wav").write_bytes(b"no audio at all")
    (folder / "empty.flac").write_bytes(b"")
    soundfile.write(folder / "short.wav", np.ones(80), 16_000)
    with pytest.raises(ValueError, match=r"3 files of augment\.noise cannot be used") as caught:
        open_sounds([str(folder)], key="augment.noise", cache_gib=1.0)
    for name in ("broken.wav", "empty.flac", "short.wav"):
        assert name in str(caught.value)


def test_a_file_whose_header_is_fine_is_decoded_before_training(folder: Path):
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"NaN or infinite samples \(.*nan\.wav"):
        open_sounds([str(folder)], key="augment.noise", cache_gib=1.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", r"noise\.jsonl:1: a line is"),
        ('["audio"]', r"noise\.jsonl:1: a line is"),
        ('{"path": "x.wav"}', r"noise\.jsonl:1: a line is"),
        ('{"audio": "x.wav", "duration_s": "long"}', r"noise\.jsonl:1: a line is"),
        ('{"audio": "deep/0.wav", "duration_s": NaN}', "0.wav: nan s"),
        ('{"audio": "deep/0.wav", "offset_s": 9}', "lies behind the end"),
        ('{"audio": "gone.wav"}', r"does not exist \(.*gone\.wav\)"),
        ("", r"noise\.jsonl is empty"),
    ],
)
def test_a_bad_line_is_named(folder: Path, line: str, message: str):
    manifest = folder / "noise.jsonl"
    manifest.write_text(line)
    with pytest.raises(ValueError, match=message):
        open_sounds([str(manifest)], key="augment.noise", cache_gib=1.0)


def test_an_entry_that_is_not_there_says_what_to_give(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"augment\.rooms: nothing at .*; give audio files, folders"):
        open_sounds([str(tmp_path / "gone")], key="augment.rooms", cache_gib=1.0)
    with pytest.raises(FileNotFoundError, match=r"augment\.rooms: no audio in .*\.flac"):
        open_sounds([str(tmp_path)], key="augment.rooms", cache_gib=1.0)
