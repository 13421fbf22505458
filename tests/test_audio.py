"""Whatever the container, rate and channels, a clip comes out as one tone at 16 kHz; a bad clip is named."""

from __future__ import annotations

import os
import pickle
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

import data.audio
from data.audio import BLOCK_SAMPLES, SAMPLING_RATE, AudioError, load_waveform
from data.probe import probe_duration_s
from data.reasons import Reason


def _sine(duration_s: float, rate: int, *, hz: float = 1000.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def _peak_and_level(waveform: np.ndarray) -> tuple[float, float]:
    """Return the loudest frequency in Hz and the level of the tone, off the middle of the clip."""
    middle = waveform[len(waveform) // 4 : -len(waveform) // 4].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return spectrum.argmax() * SAMPLING_RATE / len(middle), float(np.sqrt(2 * np.mean(middle**2)))


def _write_av(path: Path, samples: np.ndarray, rate: int, *, codec: str = "aac") -> Path:
    """Write (channels, num_samples) float32 with FFmpeg's encoders."""
    layout = "stereo" if samples.shape[0] == 2 else "mono"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.bit_rate = 192_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def _reason(path: Path, **options: float | None) -> Reason:
    with pytest.raises(AudioError) as e:
        load_waveform(path, **options)
    assert path.name in str(e.value)
    assert f"[{e.value.reason.code}]" in str(e.value)
    return e.value.reason


FORMATS = [
    ("wav", "PCM_16", 1e-3),
    ("wav", "PCM_U8", 1e-2),
    ("wav", "PCM_24", 1e-4),
    ("wav", "PCM_32", 1e-4),
    ("wav", "FLOAT", 1e-4),
    ("wav", "DOUBLE", 1e-4),
    ("wav", "ULAW", 2e-2),
    ("flac", "PCM_16", 1e-3),
    ("flac", "PCM_24", 1e-4),
    ("ogg", "VORBIS", 2e-2),
    ("ogg", "OPUS", 2e-2),
    ("mp3", "MPEG_LAYER_III", 5e-2),
    ("aiff", "PCM_16", 1e-3),
    ("w64", "PCM_16", 1e-3),
]


@pytest.mark.parametrize(("suffix", "subtype", "tolerance"), FORMATS)
def test_every_format_gives_the_same_tone(suffix: str, subtype: str, tolerance: float, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, _sine(1.0, 16_000), 16_000, subtype=subtype)
    waveform = load_waveform(path, duration_s=1.0)
    hz, level = _peak_and_level(waveform)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert hz == pytest.approx(1000, abs=4)
    assert level == pytest.approx(0.5, rel=tolerance)


def test_16_bit_samples_come_out_exactly(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 16_000).astype(np.int16)
    soundfile.write(tmp_path / "clip.wav", samples, 16_000)
    np.testing.assert_array_equal(load_waveform(tmp_path / "clip.wav"), samples.astype(np.float32) / 32768)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_m4a_through_pyav(num_channels: int, tmp_path: Path) -> None:
    """A voice in both channels must not get louder than the same voice in one."""
    path = _write_av(tmp_path / "clip.m4a", np.tile(_sine(1.0, 48_000), (num_channels, 1)), 48_000)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(str(path))
    hz, level = _peak_and_level(load_waveform(path, duration_s=1.0))
    assert hz == pytest.approx(1000, abs=4)
    assert level == pytest.approx(0.5, rel=0.02)
    assert probe_duration_s(path) == pytest.approx(1.0, abs=0.1)


def test_m4a_offset_and_limits(tmp_path: Path) -> None:
    low, high = _sine(2.0, 48_000, hz=500), _sine(2.0, 48_000, hz=2000)
    path = _write_av(tmp_path / "clip.m4a", np.concatenate([low, high])[None], 48_000)
    part = load_waveform(path, offset_s=2.5, duration_s=1.0)
    assert len(part) == SAMPLING_RATE
    assert _peak_and_level(part)[0] == pytest.approx(2000, abs=4)
    assert _reason(path, max_duration_s=2.0) is Reason.AUDIO_TOO_LONG
    assert _reason(path, duration_s=8.0) is Reason.AUDIO_TRUNCATED
    assert _reason(path, duration_s=3.0) is Reason.AUDIO_DURATION
    assert _reason(path, offset_s=60.0, duration_s=1.0) is Reason.AUDIO_TRUNCATED


def test_resampling_by_blocks_equals_resampling_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    sound = np.random.default_rng(0).normal(0, 0.1, 2 * BLOCK_SAMPLES + 12_345).astype(np.float32)
    soundfile.write(path, sound, 44_100, subtype="FLOAT")
    found = load_waveform(path, max_duration_s=60.0)
    np.testing.assert_array_equal(found, soxr.resample(sound, 44_100, SAMPLING_RATE, quality="HQ"))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_pitch_level_and_length(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", _sine(2.0, rate), rate, subtype="FLOAT")
    waveform = load_waveform(tmp_path / "clip.wav")
    hz, level = _peak_and_level(waveform)
    assert len(waveform) == 2 * SAMPLING_RATE
    assert hz == pytest.approx(1000, abs=2)
    assert level == pytest.approx(0.5, rel=1e-3)
    middle = slice(SAMPLING_RATE // 2, SAMPLING_RATE)
    np.testing.assert_allclose(waveform[middle], _sine(2.0, SAMPLING_RATE)[middle], atol=1e-3)  # in phase, too


def test_what_16_khz_cannot_hold_is_filtered_not_folded(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", _sine(1.0, 48_000, hz=12_000), 48_000)
    assert np.abs(load_waveform(tmp_path / "clip.wav")[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize("num_channels", [2, 6, 8])
def test_channels_are_mixed_by_their_mean(num_channels: int, tmp_path: Path) -> None:
    channels = np.random.default_rng(0).uniform(-0.9, 0.9, (8000, num_channels)).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", channels, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_waveform(tmp_path / "clip.wav"), channels.mean(axis=1), atol=1e-6)


def test_more_than_eight_channels_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.zeros((8000, 9), np.float32), 16_000)
    assert _reason(tmp_path / "clip.wav") is Reason.AUDIO_CHANNELS
    with pytest.raises(AudioError):
        probe_duration_s(tmp_path / "clip.wav")


@pytest.mark.parametrize("rate", [1, 3_999, 192_001])
def test_a_header_that_lies_about_the_rate_is_refused(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.zeros(8000, np.float32), rate)
    assert _reason(tmp_path / "clip.wav") is Reason.AUDIO_SAMPLING_RATE


def test_no_samples_no_bytes_no_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16_000)
    assert _reason(tmp_path / "none.wav") is Reason.AUDIO_EMPTY
    (tmp_path / "zero.wav").touch()
    assert _reason(tmp_path / "zero.wav") is Reason.AUDIO_EMPTY
    assert _reason(tmp_path / "absent.wav") is Reason.AUDIO_MISSING


def test_shorter_than_a_tenth_of_a_second_is_refused(tmp_path: Path) -> None:
    for num_samples, accepted in ((1599, False), (1600, True)):
        soundfile.write(tmp_path / "clip.wav", np.full(num_samples, 0.1, np.float32), 16_000)
        if accepted:
            assert len(load_waveform(tmp_path / "clip.wav")) == num_samples
        else:
            assert _reason(tmp_path / "clip.wav") is Reason.AUDIO_TOO_SHORT


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    samples = _sine(1.0, 16_000)
    samples[777] = value
    soundfile.write(tmp_path / "clip.wav", samples, 16_000, subtype="FLOAT")
    assert _reason(tmp_path / "clip.wav") is Reason.AUDIO_NOT_FINITE


@pytest.mark.parametrize("content", [b"not audio at all", b"RIFF\x00\x00", b"\x00" * 4096, b"#EXTM3U\n/etc/hostname\n"])
def test_bytes_that_are_no_audio_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    assert _reason(path) is Reason.AUDIO_CORRUPT
    with pytest.raises(AudioError):
        probe_duration_s(path)


def test_a_flac_with_flipped_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 2, len(content) // 2 + 2000):
        content[i] ^= 0xA5
    path.write_bytes(content)
    assert _reason(path, duration_s=2.0) in (Reason.AUDIO_CORRUPT, Reason.AUDIO_TRUNCATED)


def test_a_cut_file_is_shorter_than_its_manifest_says(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, _sine(2.0, 16_000), 16_000)
    path.write_bytes(path.read_bytes()[:40_000])
    assert _reason(path, duration_s=2.0) is Reason.AUDIO_TRUNCATED
    soundfile.write(path, _sine(2.0, 16_000), 16_000)
    assert len(load_waveform(path, duration_s=2.0)) == 2 * SAMPLING_RATE


def test_duration_is_held_to_a_tenth_of_a_second_or_one_per_cent(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    for found_s, stated_s, reason in [
        (1.0, 1.09, None),
        (1.0, 1.11, Reason.AUDIO_TRUNCATED),
        (1.0, 0.91, None),
        (1.0, 0.89, Reason.AUDIO_DURATION),
        (20.0, 20.15, None),
        (20.0, 20.3, Reason.AUDIO_TRUNCATED),
        (20.0, 19.85, None),
        (20.0, 19.7, Reason.AUDIO_DURATION),
    ]:
        soundfile.write(path, np.full(round(found_s * 16_000), 0.1, np.float32), 16_000)
        if reason is None:
            assert len(load_waveform(path, duration_s=stated_s)) == found_s * SAMPLING_RATE, (found_s, stated_s)
        else:
            assert _reason(path, duration_s=stated_s) is reason, (found_s, stated_s)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_offset_takes_the_part_that_was_asked_for(suffix: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    samples = np.concatenate([_sine(1.0, rate, hz=hz) for hz in (400, 1000, 3000)])
    soundfile.write(path, samples, rate)
    for offset_s, hz in ((0.0, 400), (1.0, 1000), (2.0, 3000)):
        part = load_waveform(path, offset_s=offset_s, duration_s=1.0)
        assert len(part) == SAMPLING_RATE
        assert _peak_and_level(part)[0] == pytest.approx(hz, abs=4)
    assert len(load_waveform(path, offset_s=2.5)) == SAMPLING_RATE // 2
    assert _reason(path, offset_s=3.0) is Reason.AUDIO_TRUNCATED
    assert _reason(path, offset_s=2.5, duration_s=1.0) is Reason.AUDIO_TRUNCATED


def test_thirty_seconds_are_taken_to_the_sample(tmp_path: Path) -> None:
    """One sample more would not fit the window, and a clip is never cut."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.zeros(480_000, np.int16), 16_000)
    assert len(load_waveform(path)) == 480_000
    soundfile.write(path, np.zeros(480_001, np.int16), 16_000)
    assert _reason(path) is Reason.AUDIO_TOO_LONG
    assert len(load_waveform(path, max_duration_s=None)) == 480_001
    assert _reason(path, max_duration_s=2.0) is Reason.AUDIO_TOO_LONG


def test_ten_minutes_in_a_few_kilobytes_are_refused_without_unpacking(tmp_path: Path) -> None:
    path = tmp_path / "bomb.flac"
    soundfile.write(path, np.zeros(600 * 48_000, np.int16), 48_000)
    assert path.stat().st_size < 200_000
    started = time.process_time()
    tracemalloc.start()
    try:
        assert _reason(path) is Reason.AUDIO_TOO_LONG
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 1.0
    assert 4_000_000 < peak < 20_000_000  # 600 s are 115 MB as float32; 30 s with their resampled copy are 8 MB


def test_no_more_samples_are_read_than_the_limit_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.flac"
    soundfile.write(path, np.zeros(120 * 16_000, np.int16), 16_000)
    num_read: list[int] = []
    read = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, *args: object, **kwargs: object) -> np.ndarray:
        samples = read(self, *args, **kwargs)
        num_read.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    assert _reason(path) is Reason.AUDIO_TOO_LONG
    assert 30 * 16_000 < sum(num_read) <= 31 * 16_000


def test_a_flac_whose_header_has_no_length_is_read_to_its_end(tmp_path: Path) -> None:
    """As written into a pipe: libsndfile then claims 2**63 - 1 frames."""
    path = tmp_path / "clip.flac"
    samples = np.random.default_rng(0).integers(-9000, 9000, 32_000).astype(np.int16)
    soundfile.write(path, samples, 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert soundfile.info(str(path)).frames > 2**62
    assert probe_duration_s(path) == pytest.approx(2.0, abs=1e-6)
    for limit_s in (30.0, None):
        waveform = load_waveform(path, max_duration_s=limit_s)
        np.testing.assert_allclose(waveform, samples / 32768, atol=1e-6)


def test_pipes_and_folders_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert _reason(tmp_path / "pipe.wav") is Reason.AUDIO_NOT_A_FILE
    (tmp_path / "folder.wav").mkdir()
    assert _reason(tmp_path / "folder.wav") is Reason.AUDIO_NOT_A_FILE
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    assert _reason(tmp_path / "dangling.wav") is Reason.AUDIO_MISSING


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_bytes_are_read_as_the_file_is(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    if suffix == "m4a":
        _write_av(path, _sine(1.5, 44_100)[None], 44_100)
    else:
        soundfile.write(path, _sine(1.5, 44_100), 44_100)
    content = path.read_bytes()
    for options in ({}, {"offset_s": 0.5}, {"offset_s": 0.25, "duration_s": 0.5}):
        np.testing.assert_array_equal(load_waveform(content, **options), load_waveform(path, **options))
    assert probe_duration_s(content) == probe_duration_s(path)
    with pytest.raises(AudioError, match=r"\[A03\]") as e:
        load_waveform(content[: len(content) // 2], name="shard-07.tar, member 12")
    assert "shard-07.tar, member 12: " in str(e.value)
    with pytest.raises(AudioError, match="A02"):
        load_waveform(b"")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_an_offset_behind_the_end_is_a_cut_file(suffix: str, tmp_path: Path) -> None:
    """With and without a duration, read or probed: the file is shorter than its manifest says."""
    path = tmp_path / f"clip.{suffix}"
    if suffix == "m4a":
        _write_av(path, _sine(1.5, 44_100)[None], 44_100)
    else:
        soundfile.write(path, _sine(1.5, 44_100), 44_100)
    for offset_s in (1.7, 1e9):
        assert _reason(path, offset_s=offset_s) is Reason.AUDIO_TRUNCATED
        assert _reason(path, offset_s=offset_s, duration_s=0.5) is Reason.AUDIO_TRUNCATED
        with pytest.raises(AudioError, match=r"lies behind the end .*\[A03\]"):
            probe_duration_s(path, offset_s=offset_s)
    assert probe_duration_s(path, offset_s=0.5) == pytest.approx(1.0, abs=0.06)


def test_probing_gives_up_where_no_header_says_how_long(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.flac", np.zeros(60 * 16_000, np.int16), 16_000)
    assert probe_duration_s(tmp_path / "clip.flac", max_duration_s=10.0) == 60.0  # the header says
    path = _write_av(tmp_path / "clip.m4a", np.zeros((1, 60 * 16_000), np.float32), 16_000)
    with pytest.raises(AudioError, match=r"more than 10 s.*\[A10\]"):
        probe_duration_s(path, max_duration_s=10.0)
    assert probe_duration_s(path) == probe_duration_s(path, max_duration_s=None) == pytest.approx(60.0, abs=0.1)


def test_samples_that_were_never_scaled_are_refused(tmp_path: Path) -> None:
    """16-bit numbers in a float file; a codec's overshoot is no such case."""
    for level, accepted in ((1.5, True), (20_000.0, False), (1e30, False)):
        soundfile.write(tmp_path / "clip.wav", _sine(1.0, 16_000, level=level), 16_000, subtype="FLOAT")
        if accepted:
            assert load_waveform(tmp_path / "clip.wav").max() == pytest.approx(level, rel=1e-3)
        else:
            assert _reason(tmp_path / "clip.wav") is Reason.AUDIO_SCALE


def test_many_channels_are_mixed_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.wav"
    channels = np.random.default_rng(0).uniform(-0.9, 0.9, (20_000, 3)).astype(np.float32)
    soundfile.write(path, channels, 16_000, subtype="FLOAT")
    whole = load_waveform(path)
    monkeypatch.setattr(data.audio, "BLOCK_SAMPLES", 999)
    np.testing.assert_array_equal(load_waveform(path), whole)
    np.testing.assert_array_equal(load_waveform(path, offset_s=0.5, duration_s=0.5), whole[8000:16_000])


def test_samples_that_were_counted_and_not_written_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """libsndfile does that for an Ogg whose pages lie about their time, and what was in memory before comes out."""
    soundfile.write(tmp_path / "clip.wav", _sine(1.0, 16_000), 16_000)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, out: out)
    assert _reason(tmp_path / "clip.wav") is Reason.AUDIO_NOT_FINITE


def test_audio_error_survives_the_way_back_from_a_worker() -> None:
    error = AudioError(Reason.AUDIO_TRUNCATED, Path("a.wav"), "1.00 s found")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.detail, str(copy)) == (error.reason, error.detail, str(error))
    assert isinstance(copy, ValueError)
    assert "a.wav: 1.00 s found" in str(copy)


def test_probe_reads_the_header(write_clip: Callable[..., Path]) -> None:
    assert probe_duration_s(write_clip(duration_s=1.25)) == 1.25
    assert probe_duration_s(write_clip("b.wav", duration_s=0.5, sampling_rate=44_100)) == 0.5


def test_real_speech_matches_its_manifest(speech: Path) -> None:
    import json

    for line in (speech / "ljspeech_en" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:3]:
        row = json.loads(line)
        waveform = load_waveform(speech / "ljspeech_en" / row["audio"], duration_s=row["duration_s"])
        assert len(waveform) / SAMPLING_RATE == pytest.approx(row["duration_s"], abs=0.1)
        assert 0.01 < np.abs(waveform).max() <= 1.0
