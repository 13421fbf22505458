"""Transcripts come in the order of the sources, whatever their lengths and batches, and lose no second of audio."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import PROJECT, tone

from data.audio import SAMPLING_RATE, AudioError
from data.features import LogMel
from data.reasons import Reason
from data.windows import full_windows
from infer.artefact import Artefact, load_artefact
from infer.decoding import Decoded, Decoder, DecodeSettings
from infer.subtitles import Segment
from infer.transcriber import Clip, Stopwatch, Transcriber

SETTINGS = DecodeSettings(max_new_tokens=8)
LENGTHS_S = [3.0, 0.4, 7.3, 1.0, 0.9, 5.0, 4.99, 0.3, 12.0]


@pytest.fixture
def artefact(lay_artefact, tmp_path: Path) -> Artefact:
    return load_artefact(lay_artefact(tmp_path / "export", (1, 5, 30)))


@pytest.fixture
def sources() -> list[np.ndarray]:
    return [tone(length_s, hz=150.0 + 170 * i, seed=i) for i, length_s in enumerate(LENGTHS_S)]


def test_order_is_kept_whatever_the_batches(artefact: Artefact, sources: list[np.ndarray]) -> None:
    alone = [Transcriber(artefact, SETTINGS).transcribe([source])[0] for source in sources]
    assert [t.duration_s for t in alone] == pytest.approx(LENGTHS_S)
    assert len({t.text for t in alone}) > 3
    for batch_size in (1, 2, 16):
        together = Transcriber(artefact, SETTINGS, batch_size=batch_size).transcribe(sources)
        assert [dataclasses.replace(t, language_probability=0.0) for t in together] == [
            dataclasses.replace(t, language_probability=0.0) for t in alone
        ]
    backwards = Transcriber(artefact, SETTINGS, batch_size=4).transcribe(sources[::-1])
    assert [t.text for t in backwards] == [t.text for t in alone[::-1]]


def test_each_batch_holds_one_window_and_no_more_clips_than_allowed(
    artefact: Artefact, sources: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    decode = Decoder.decode

    def seen(self: Decoder, features: torch.Tensor, *args: object, **kwargs: object) -> list[Decoded]:
        shapes.append(tuple(features.shape))
        return decode(self, features, *args, **kwargs)

    monkeypatch.setattr(Decoder, "decode", seen)
    progress: list[int] = []
    Transcriber(artefact, SETTINGS, batch_size=2).transcribe(sources, on_progress=progress.append)
    assert sorted(shapes) == sorted([(2, 80, 3000)] + [(2, 80, 500), (1, 80, 500)] + [(2, 80, 100)] * 2)
    assert shapes == sorted(shapes, key=lambda shape: -shape[2])  # the largest first
    assert progress == [shape[0] for shape in shapes]
    assert sum(progress) == len(sources)


def test_one_clip_is_features_and_decoder_and_nothing_else(artefact: Artefact, sources: list[np.ndarray]) -> None:
    decoder = Decoder(artefact.model, artefact.tokenizer)
    for source, num_frames in ((sources[1], 100), (sources[0], 500), (sources[2], 3000)):
        (expected,) = decoder.decode(LogMel(80)(source, num_frames=num_frames)[None], SETTINGS)
        (found,) = Transcriber(artefact, SETTINGS).transcribe([source])
        assert (found.text, found.language, found.is_cut) == (expected.text, expected.language, expected.is_cut)
        assert found.language_probability == pytest.approx(expected.language_probability)


def test_windows_of_the_artefact_are_used(artefact: Artefact, sources: list[np.ndarray]) -> None:
    decoder = Decoder(artefact.model, artefact.tokenizer)
    found: list[float] = []
    for windows, num_frames in ((artefact.windows, 100), (full_windows(), 3000)):
        (expected,) = decoder.decode(LogMel(80)(sources[1], num_frames=num_frames)[None], SETTINGS)
        used = dataclasses.replace(artefact, windows=windows)
        (transcript,) = Transcriber(used, SETTINGS).transcribe([sources[1]])
        found.append(transcript.language_probability)
        assert found[-1] == pytest.approx(expected.language_probability)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_seventy_seconds_are_cut_and_joined_without_loss(artefact: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = tone(70.0)
    heard: list[np.ndarray] = []
    call = LogMel.__call__

    def seen(self: LogMel, waveform: np.ndarray, *, num_frames: int) -> torch.Tensor:
        heard.append(waveform)
        return call(self, waveform, num_frames=num_frames)

    monkeypatch.setattr(LogMel, "__call__", seen)
    transcriber = Transcriber(artefact, SETTINGS)
    short = tone(1.0, hz=900.0)
    before, whole, after = transcriber.transcribe([short, recording, short])
    assert whole.duration_s == 70.0
    assert sum(len(waveform) for waveform in heard) == len(recording) + 2 * len(short)
    assert (before.duration_s, after.duration_s) == (1.0, 1.0)
    assert before.text == after.text
    starts = [segment.start_s for segment in whole.segments]
    assert starts == sorted(starts)
    assert all(segment.end_s <= 70.0 for segment in whole.segments)
    assert whole.text.split() == " ".join(segment.text for segment in whole.segments).split()


def test_pieces_of_a_long_recording_are_joined_in_time(artefact: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a decoder that says how loud its window is: three pieces, each with its own times."""

    def decode(self: Decoder, features: torch.Tensor, *_: object, **__: object) -> list[Decoded]:
        segments = (Segment(0.0, 2.0, "a"), Segment(2.0, 30.0, "b"))
        return [Decoded("a b", "en", "en", 0.9, segments, is_cut=i == 1) for i in range(len(features))]

    monkeypatch.setattr(Decoder, "decode", decode)
    monkeypatch.setattr("infer.transcriber.cut_at_quiet", lambda w, **_: [(0.0, w[:320_000]), (20.0, w[320_000:])])
    (transcript,) = Transcriber(artefact, SETTINGS).transcribe([tone(45.0)])
    assert transcript.text == "a b a b"
    assert transcript.segments == (
        Segment(0.0, 2.0, "a"),
        Segment(2.0, 20.0, "b"),
        Segment(20.0, 22.0, "a"),
        Segment(22.0, 45.0, "b"),
    )
    assert transcript.is_cut


@pytest.mark.parametrize(
    ("language", "text"), [("en", "x x"), ("ar", "x x"), ("zh", "xx"), ("ja", "xx"), ("yue", "xx")]
)
def test_pieces_are_glued_as_the_script_writes(
    language: str, text: str, artefact: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: Decoder, features: torch.Tensor, *_: object, **__: object) -> list[Decoded]:
        return [Decoded("x", language, language, 0.9, (), is_cut=False) for _ in features]

    monkeypatch.setattr(Decoder, "decode", decode)
    (transcript,) = Transcriber(artefact, SETTINGS).transcribe([tone(31.0)])
    assert transcript.text == text
    assert transcript.segments[0].start_s == 0.0
    assert transcript.segments[-1].end_s == 31.0
    assert transcript.segments[0].end_s == transcript.segments[1].start_s


def test_files_parts_and_waveforms_say_the_same(artefact: Artefact, tmp_path: Path) -> None:
    samples = np.concatenate([tone(2.0, hz=300.0), tone(3.0, hz=800.0, seed=1)])
    soundfile.write(tmp_path / "mono.wav", samples, SAMPLING_RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, samples], 1), SAMPLING_RATE, subtype="FLOAT")
    transcriber = Transcriber(artefact, SETTINGS)
    array, mono, stereo, part, first = transcriber.transcribe(
        [
            samples,
            tmp_path / "mono.wav",
            tmp_path / "stereo.wav",
            Clip(tmp_path / "stereo.wav", offset_s=2.0, duration_s=3.0),
            samples[32_000:],
        ]
    )
    assert array == mono == stereo
    assert part == first
    assert (array.duration_s, part.duration_s) == (5.0, 3.0)


def test_language_of_each_source_reaches_all_its_pieces(artefact: Artefact) -> None:
    sources = [tone(1.0), tone(31.0), tone(1.0)]
    found = Transcriber(artefact, SETTINGS).transcribe(sources, languages=["fr", "yo", "auto"])
    assert [t.language for t in found] == ["fr", "yo", found[2].detected_language]


def test_a_source_that_cannot_be_used_is_named(artefact: Artefact, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"not audio")
    transcriber = Transcriber(artefact, SETTINGS)
    with pytest.raises(AudioError, match=r"broken\.wav") as e:
        transcriber.transcribe([tone(1.0), tmp_path / "broken.wav"])
    assert e.value.reason is Reason.AUDIO_CORRUPT
    with pytest.raises(ValueError, match="one axis"):
        transcriber.transcribe([np.zeros((16_000, 2), np.float32)])
    with pytest.raises(ValueError, match="NaN"):
        transcriber.transcribe([np.full(16_000, np.nan, np.float32)])
    with pytest.raises(ValueError, match="no samples"):
        transcriber.transcribe([np.zeros(0, np.float32)])


def test_one_path_instead_of_a_list_is_refused(artefact: Artefact, tmp_path: Path) -> None:
    for source in (tmp_path / "a.wav", "a.wav"):
        with pytest.raises(TypeError, match="list of sources"):
            Transcriber(artefact, SETTINGS).transcribe(source)
    with pytest.raises(ValueError, match="batch_size=0"):
        Transcriber(artefact, SETTINGS, batch_size=0)
    assert Transcriber(artefact, SETTINGS).transcribe([]) == []


def test_stopwatch_counts_wall_time() -> None:
    with Stopwatch(torch.device("cpu")) as watch:
        torch.zeros(1)
    assert 0 < watch.elapsed_s < 1


def test_real_speech_of_a_minute_keeps_its_length(artefact: Artefact, speech: Path) -> None:
    row = json.loads((speech / "ljspeech_en" / "longform.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (transcript,) = Transcriber(artefact, SETTINGS).transcribe([speech / "ljspeech_en" / row["audio"]])
    assert transcript.duration_s == pytest.approx(row["duration_s"], abs=0.1)


def test_a_fresh_process_reads_the_same_text_off_the_folder(
    artefact: Artefact, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    clips = [write_clip(f"{i}.wav", 0.5 + 0.7 * i, hz=200.0 + 100 * i, seed=i) for i in range(3)]
    settings = DecodeSettings(max_new_tokens=20)
    expected = [[t.text, t.language, t.language_probability] for t in Transcriber(artefact, settings).transcribe(clips)]
    moved = tmp_path / "elsewhere"
    shutil.move(artefact.path, moved)
    program = (
        "import json, sys; from pathlib import Path; import torch; torch.set_num_threads(2)\n"
        "from infer.artefact import load_artefact; from infer.decoding import DecodeSettings\n"
        "from infer.transcriber import Transcriber\n"
        "transcriber = Transcriber(load_artefact(sys.argv[1]), DecodeSettings(max_new_tokens=20))\n"
        "found = transcriber.transcribe([Path(name) for name in sys.argv[2:]])\n"
        "print(json.dumps([[t.text, t.language, t.language_probability] for t in found]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(moved), *map(str, clips)],
        capture_output=True, text=True, check=True, cwd=PROJECT,
    )  # fmt: skip
    assert json.loads(done.stdout) == expected
    assert any(text for text, _, _ in expected)
