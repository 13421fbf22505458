"""Reading by predicted times: as openai/whisper and transformers do it, once over every second, and never for ever."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tone
from transformers import PreTrainedTokenizerBase, WhisperForConditionalGeneration

from data.audio import SAMPLING_RATE
from data.windows import Windows
from infer.artefact import Artefact, load_artefact, write_artefact
from infer.decoding import Decoded, Decoder, DecodeSettings
from infer.encoder import WindowedWhisper
from infer.half import cast_to_half
from infer.reading import TokenReader
from infer.sequential import SequentialRecording
from infer.transcriber import Transcriber

SETTINGS = DecodeSettings(timestamps=True, long_form="sequential", max_new_tokens=24)


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerBase) -> TokenReader:
    return TokenReader(tokenizer)


def _said(*tokens: int, temperature: float = 0.0, no_speech: bool = False) -> Decoded:
    found = () if no_speech else tokens
    return Decoded("", "en", "en", 1.0, (), False, tokens=found, temperature=temperature, no_speech=no_speech)


def _openai_window(tokens: list[int], begin: int, seek: int, size: int) -> tuple[list[tuple[float, float]], int]:
    """One turn of the loop in `transcribe.py` of openai/whisper: times of the segments, and the new seek.

    Written after its source (v20240930), frames of 10 ms, times of 20 ms.
    """
    time_offset, precision, input_stride = seek * 0.01, 0.02, 2
    times = torch.tensor(tokens).ge(begin)
    single = times[-2:].tolist() == [False, True]
    consecutive = (torch.where(times[:-1] & times[1:])[0] + 1).tolist()
    segments = []
    if consecutive:
        if single:
            consecutive.append(len(tokens))
        last = 0
        for current in consecutive:
            piece = tokens[last:current]
            segments.append(
                (time_offset + (piece[0] - begin) * precision, time_offset + (piece[-1] - begin) * precision)
            )
            last = current
        if single:
            seek += size
        else:
            seek += (tokens[last - 1] - begin) * input_stride
    else:
        duration = size * 0.01
        stamps = [token for token in tokens if token >= begin]
        if stamps and stamps[-1] != begin:
            duration = (stamps[-1] - begin) * precision
        segments.append((time_offset, time_offset + duration))
        seek += size
    return segments, seek


def test_seek_and_segments_are_those_of_openai(reader: TokenReader) -> None:
    """On 200 recordings of texts that a model may say: times in pairs, a lone one at the end, none but the first."""
    rng = np.random.default_rng(0)
    begin = reader.timestamp_begin
    num_windows = 0
    for _ in range(200):
        duration_s = float(rng.uniform(20, 200))
        recording = SequentialRecording(duration_s, reader)
        while not recording.is_done:
            times = np.sort(rng.choice(np.arange(60, 1500), rng.integers(1, 6), replace=False)).tolist()
            tokens = [begin + int(rng.integers(0, 50))]
            for i, time in enumerate(times):
                tokens += [30 + i, 31]
                if i + 1 < len(times) or rng.random() < 0.7:
                    tokens.append(begin + time)
                if (i + 1 < len(times) or rng.random() < 0.5) and tokens[-1] >= begin:
                    tokens.append(begin + time)
            before, size, num_segments = recording.seek, recording.size, len(recording.segments)
            expected, seek = _openai_window(tokens, begin, before, size)
            recording.take(_said(*tokens))
            num_windows += 1
            assert recording.seek == min(seek, before + size)
            found = [(s.start_s, s.end_s) for s in recording.segments[num_segments:]]
            clipped = [(a, min(b, duration_s)) for a, b in expected if a < min(b, duration_s)]
            assert found == [(pytest.approx(a), pytest.approx(b)) for a, b in clipped]
    assert num_windows > 1000


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("duration_s", [3.0, 30.0, 222.0])
def test_a_model_that_makes_no_way_ends_all_the_same(reader: TokenReader, step: int, duration_s: float) -> None:
    """It says the same times in every window, of which the last is 0, 0.02 or 0.04 s after its beginning."""
    begin = reader.timestamp_begin
    recording = SequentialRecording(duration_s, reader)
    num_windows = 0
    while not recording.is_done:
        before = recording.seek
        recording.take(_said(begin, 30, begin + step, begin + step, 31))
        assert recording.seek > before
        num_windows += 1
        assert num_windows < duration_s + 20
    assert recording.seek == math.ceil(duration_s * 100)
    assert recording.segments[-1].end_s <= duration_s


def test_silence_moves_a_whole_window(reader: TokenReader) -> None:
    recording = SequentialRecording(70.0, reader)
    recording.take(_said(no_speech=True))
    assert (recording.seek, recording.segments) == (3000, [])
    recording.take(_said(no_speech=True))
    recording.take(_said(no_speech=True))
    assert recording.is_done


def test_the_text_before_is_the_prompt_until_it_is_not_trusted(reader: TokenReader) -> None:
    begin = reader.timestamp_begin
    recording = SequentialRecording(200.0, reader, conditioned=True)
    recording.take(_said(begin, 30, 31, begin + 500, begin + 500, 32))
    assert recording.prompt == [30, 31]  # what is decoded again is not in it, nor are times
    recording.take(_said(begin, 33, begin + 500, begin + 500, 32, temperature=0.4))
    assert recording.prompt == [30, 31, 33]
    recording.take(_said(begin, 34, begin + 500, begin + 500, 32, temperature=0.6))
    assert recording.prompt == []
    plain = SequentialRecording(200.0, reader)
    plain.take(_said(begin, 30, 31, begin + 500, begin + 500, 32))
    assert plain.prompt == []


def _chatty(lively: WindowedWhisper, tokenizer: PreTrainedTokenizerBase) -> WindowedWhisper:
    """Let the tiny model say letters and times, and end now and then."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    begin = tokenizer.convert_tokens_to_ids("<|0.00|>")
    generator = torch.Generator().manual_seed(5)
    embedding = lively.model.decoder.embed_tokens.weight
    with torch.no_grad():
        embedding[end] = torch.randn(16, generator=generator).sign()
        embedding[begin:] = 0.5 * torch.randn(len(embedding) - begin, 16, generator=generator)
    lively.generation_config.suppress_tokens = list(range(94, end))
    return lively


def test_windows_and_texts_are_those_of_transformers(
    lively: WindowedWhisper, tokenizer: PreTrainedTokenizerBase
) -> None:
    """`generate` of Whisper over 75 s and 101 s, with its own seek, on the same features and weights."""
    model = _chatty(lively, tokenizer)
    decoder = Decoder(model, tokenizer)
    settings = dataclasses.replace(SETTINGS, language="en")
    stock = WhisperForConditionalGeneration(copy.deepcopy(model.config)).eval()
    stock.load_state_dict(model.state_dict())
    stock.generation_config = copy.deepcopy(model.generation_config)
    stock.generation_config.max_initial_timestamp_index = 50
    num_windows, num_fewest = [], []
    for num_frames in (7500, 10_100):
        generator = torch.Generator().manual_seed(num_frames)
        colours = 3 * torch.randn(1, 80, num_frames // 100, generator=generator).repeat_interleave(100, dim=2)
        features = colours + torch.randn(1, 80, num_frames, generator=generator)
        expected = stock.generate(
            features,
            attention_mask=torch.ones(1, num_frames),
            language="en",
            task="transcribe",
            return_timestamps=True,
            return_segments=True,
            max_new_tokens=24,
            condition_on_prev_tokens=False,
        )["segments"][0]
        recording = SequentialRecording(num_frames / 100, decoder.reader)
        while not recording.is_done:
            window = features[:, :, recording.seek : recording.seek + recording.size]
            window = torch.nn.functional.pad(window, (0, 3000 - window.shape[2]))
            recording.take(decoder.decode(window, settings)[0])
        told = [(float(s["start"]), float(s["end"]), decoder.reader.text(s["tokens"].tolist())) for s in expected]
        told = [(a, min(b, num_frames / 100), text) for a, b, text in told if text and a < min(b, num_frames / 100)]
        found = [(s.start_s, s.end_s, s.text) for s in recording.segments]
        assert [text for *_, text in found] == [text for *_, text in told]
        np.testing.assert_allclose([f[:2] for f in found], [t[:2] for t in told], atol=1e-6)
        num_windows.append(len(recording.windows))
        num_fewest.append(math.ceil(num_frames / 3000))
    assert sum(num_windows) > sum(num_fewest)  # it did not only go 30 s at a time: the times did lead


@pytest.fixture
def artefact(lively: WindowedWhisper, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Artefact:
    model = _chatty(lively, tokenizer)
    path = write_artefact(
        tmp_path / "export",
        cast_to_half(model.state_dict()),
        config=model.config,
        generation_config=model.generation_config,
        tokenizer=tokenizer,
        windows=Windows((5.0, 30.0)),
        record={},
    )
    return load_artefact(path)


@pytest.mark.parametrize("conditioned", [False, True])
def test_recordings_side_by_side_say_what_they_say_alone(artefact: Artefact, conditioned: bool) -> None:
    sources = [tone(length_s, hz=200.0 + 90 * i, seed=i) for i, length_s in enumerate([64.0, 3.0, 41.5, 33.0])]
    settings = dataclasses.replace(SETTINGS, condition_on_previous_text=conditioned)
    together = Transcriber(artefact, settings, batch_size=3).transcribe(sources)
    alone = [Transcriber(artefact, settings).transcribe([source])[0] for source in sources]
    for one, other in zip(together, alone, strict=True):
        assert one.segments == other.segments
        assert (one.text, one.language) == (other.text, other.language)
        assert len(one.windows) == len(other.windows)
    assert any(transcript.segments for transcript in together)


@pytest.mark.parametrize("long_form", ["sequential", "chunked"])
def test_a_recording_of_222_s_is_read_once_and_in_order(artefact: Artefact, speech: Path, long_form: str) -> None:
    row = json.loads((speech / "ljspeech_en" / "longform.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert row["duration_s"] > 200
    settings = dataclasses.replace(
        SETTINGS,
        long_form=long_form,
        temperature=(0.0, 0.5, 1.0),
        compression_ratio_threshold=2.4,
        logprob_threshold=-2.0,
        no_speech_threshold=0.6,
        max_repetitions=3,
    )
    transcriber = Transcriber(artefact, settings, batch_size=4)
    (transcript,) = transcriber.transcribe([speech / "ljspeech_en" / row["audio"]])
    assert transcript.duration_s == pytest.approx(row["duration_s"], abs=0.1)
    assert 8 <= len(transcript.windows) <= row["duration_s"] + 20
    times = [time_s for segment in transcript.segments for time_s in (segment.start_s, segment.end_s)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= transcript.duration_s
    assert times[-1] > transcript.duration_s - 30
    for segment in transcript.segments:
        assert segment.avg_logprob < 0
        assert 0 <= segment.no_speech_prob <= 1
        assert segment.compression_ratio > 0
        assert segment.temperature in settings.temperature


def test_every_second_is_heard_in_turn(artefact: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window begins where the last whole segment ended, and the last one ends where the recording does."""
    taken: list[tuple[int, int, int]] = []
    take = SequentialRecording.take

    def seen(self: SequentialRecording, decoded: Decoded) -> None:
        before, size = self.seek, self.size
        take(self, decoded)
        taken.append((before, self.seek, size))

    monkeypatch.setattr(SequentialRecording, "take", seen)
    Transcriber(artefact, SETTINGS).transcribe([tone(95.0)])
    assert taken[0][0] == 0
    assert all(after == before for (_, after, _), (before, _, _) in itertools.pairwise(taken))
    assert all(before < after <= before + size for before, after, size in taken)
    assert taken[-1][1] == 9500
    assert SAMPLING_RATE == 16_000
