"""Times of words are those of openai-whisper on the same weights and tokens, and those at which words were spoken."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.audio import load_waveform
from data.features import LogMel
from data.windows import full_windows
from infer.artefact import load_artefact
from infer.decoded import Decoded
from infer.decoding import Decoder, DecodeSettings
from infer.encoder import encode
from infer.listening import alignment_heads, followed
from infer.reading import TokenReader
from infer.sequential import SequentialRecording
from infer.subtitles import Segment, Word, format_json
from infer.transcriber import Transcriber
from infer.transcript import join_pieces
from infer.warping import first_frames, median_of_seven
from infer.word_splitting import WordSplitter
from infer.word_times import AlignedWord, Alignment, fit_segment, time_words
from infer.words import WordAligner
from tests.conftest import PROJECT

BASE = PROJECT / "data" / "demo" / "base"
HOME = PROJECT / "data" / "demo" / "corpus" / "home"
SETTINGS = DecodeSettings(word_times=True)


def plain_dtw(costs):
    """One cell after the other, as in a textbook; then back along the cheapest way."""
    num_tokens, num_frames = costs.shape
    total = np.full((num_tokens + 1, num_frames + 1), np.inf)
    total[0, 0] = 0
    for i in range(1, num_tokens + 1):
        for j in range(1, num_frames + 1):
            total[i, j] = costs[i - 1, j - 1] + min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
    i, j, first = num_tokens, num_frames, {}
    while i > 0 and j > 0:
        first[i - 1] = j - 1
        _, i, j = min((total[a, b], a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)))
    return [first[token] for token in range(num_tokens)]


def test_warping_takes_the_way_of_a_plain_loop_over_cells():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(6, 12, 40))
    sizes = [(12, 40), (1, 40), (12, 1), (5, 17), (12, 3), (2, 2)]
    found = first_frames(costs, sizes)
    for row, (num_tokens, num_frames) in enumerate(sizes):
        assert found[row].tolist() == plain_dtw(costs[row, :num_tokens, :num_frames])


def test_the_median_of_seven_is_the_middle_one_of_them_sorted():
    assert all(
        median_of_seven(torch.tensor(order, dtype=torch.float32)[None])[0, 3] == 3
        for order in itertools.permutations(range(7))
    )
    values = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    mirrored = torch.nn.functional.pad(values, (3, 3), mode="reflect")
    assert torch.equal(median_of_seven(values), mirrored.unfold(-1, 7, 1).sort().values[..., 3])
    assert torch.equal(median_of_seven(values[..., :3]), values[..., :3])


@pytest.fixture(scope="module")
def base():
    return load_artefact(BASE, compute="fp32")


@pytest.fixture(scope="module")
def clips():
    """Two clips of each of five languages, with their rows."""
    rows = [json.loads(line) for line in (HOME / "test.jsonl").read_text(encoding="utf-8").splitlines()][:10]
    return [(row, load_waveform(HOME / row["audio"])) for row in rows]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """openai-whisper with the weights and the ranks of the base model, and its tokenizer of a language."""
    whisper = pytest.importorskip("whisper", reason="openai-whisper is not installed")
    from infer.clients.openai_whisper import use_ranks
    from infer.export.openai import convert_to_openai, load_alignment_heads

    file = convert_to_openai(BASE, tmp_path_factory.mktemp("openai") / "base.pt", dtype="fp32")
    model = whisper.load_model(str(file), device="cpu")
    model.set_alignment_heads(load_alignment_heads(file))
    encoding = use_ranks(str(file.with_suffix(".tiktoken")), model.num_languages)

    def tokenizer(language):
        return whisper.tokenizer.Tokenizer(
            encoding=encoding, num_languages=model.num_languages, language=language, task="transcribe"
        )

    return model, tokenizer


def test_words_are_split_as_by_openai(base, theirs):
    _, tokenizer = theirs
    splitter = WordSplitter(base.tokenizer)
    texts = {
        "en": ' "Don\'t," he said - well-known (quite) facts... 3.5 % of it!',
        "ru": " привет, мир! «да»",
        "ar": " مرحبا بالعالم",
        "zh": "你好，世界！ok",
        "ja": "こんにちは。元気？",
    }
    for language, text in texts.items():
        ours = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = splitter.split([ours], language)
        expected, tokens = tokenizer(language).split_to_word_tokens(tokenizer(language).encode(text))
        assert [piece.text for piece in pieces] == expected
        assert [piece.num_tokens for piece in pieces] == [len(ids) for ids in tokens]
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.first for piece in pieces] == list(np.cumsum([0, *map(len, tokens)])[:-1])


def test_bytes_that_make_no_character_are_kept_in_place(base):
    broken = base.tokenizer.convert_tokens_to_ids(["ä", "½", "a"])  # the first two bytes of three
    (piece,) = WordSplitter(base.tokenizer).split([broken], "zh")
    assert (piece.text, piece.num_tokens) == ("\ufffda", 3)


def test_times_are_those_of_openai_on_the_same_weights_and_tokens(base, clips, theirs):
    whisper = pytest.importorskip("whisper")
    model, tokenizer = theirs
    artefact = replace(base, windows=full_windows())
    languages = [row["language"] for row, _ in clips]
    found = Transcriber(artefact, SETTINGS).transcribe([clip for _, clip in clips], languages=languages)
    num_compared = 0
    for (_, clip), language, transcript in zip(clips, languages, found, strict=True):
        (window,) = transcript.windows
        text = base.tokenizer.decode(window.tokens)
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(clip)), n_mels=model.dims.n_mels)
        expected = whisper.timing.find_alignment(
            model, tokenizer(language), tokenizer(language).encode(text), mel, len(clip) // 160
        )
        words = window.alignment.words
        assert [word.text for word in words] == [word.word for word in expected]
        for word, other in zip(words, expected, strict=True):
            assert word.start_s == pytest.approx(other.start, abs=0.021)
            assert word.end_s == pytest.approx(other.end, abs=0.021)
        num_compared += len(words)
    assert num_compared > 50


def test_segments_pauses_and_punctuation_are_as_openai_has_them(base, clips, theirs):
    whisper = pytest.importorskip("whisper")
    model, tokenizer = theirs
    (row, one), (_, two) = [pair for pair in clips if pair[0]["language"] == "en"]
    waveform = np.concatenate([one, np.zeros(32_000, np.float32), two])
    texts = [f' "{row["text"]}," he said.', " the singer - takes the taxi! (tomorrow)"]
    times = [(0.0, 2.0), (3.6, 5.6)]
    tokens, segments = [], []
    for text, (start_s, end_s) in zip(texts, times, strict=True):
        ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = base.tokenizer.convert_tokens_to_ids("<|0.00|>")
        tokens += [begin + round(50 * start_s), *ids, begin + round(50 * end_s)]
        segments.append({"seek": 0, "start": start_s, "end": end_s, "tokens": tokenizer("en").encode(text)})
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(waveform)), n_mels=model.dims.n_mels)
    whisper.timing.add_word_timestamps(
        segments=segments,
        model=model,
        tokenizer=tokenizer("en"),
        mel=mel,
        num_frames=len(waveform) // 160,
        last_speech_timestamp=0.0,
    )
    decoder = Decoder(base.model, base.tokenizer)
    said = decoder.reader.segments(tokens, 30.0)
    decoded = Decoded("".join(texts).strip(), "en", "en", 1.0, said, False, tokens=tuple(tokens))
    features = LogMel(80).batch([waveform], num_frames=3000)
    with torch.inference_mode():
        hidden = encode(base.model.model.encoder, features)
        (timed,) = WordAligner(base.model, base.tokenizer).add_words(
            [decoded], [hidden], "transcribe", [len(waveform) // 160]
        )
    sequential = SequentialRecording(len(waveform) / 16_000, decoder.reader)
    sequential.take(timed)
    for ours in (join_pieces([(0.0, 30.0, timed)], len(waveform) / 16_000).segments, sequential.segments):
        assert len(ours) == 2
        for segment, expected in zip(ours, segments, strict=True):
            assert [word.text for word in segment.words] == [word["word"].strip() for word in expected["words"]]
            for word, other in zip(segment.words, expected["words"], strict=True):
                assert (word.start_s, word.end_s) == pytest.approx((other["start"], other["end"]), abs=0.021)
            assert (segment.start_s, segment.end_s) == pytest.approx((expected["start"], expected["end"]), abs=0.021)
    assert "said." in [word.text for word in sequential.segments[0].words]


def test_a_words_probability_is_that_of_the_whole_models_softmax(base, clips):
    row, clip = clips[1]
    (transcript,) = Transcriber(base, SETTINGS).transcribe([clip], languages=[row["language"]])
    (window,) = transcript.windows
    decoder = Decoder(base.model, base.tokenizer)
    prefix = decoder.label_builder.prefix_ids(row["language"], "transcribe")
    features = LogMel(80).batch([clip], num_frames=base.windows.num_frames(len(clip) / 16_000))
    with torch.inference_mode():
        ids = torch.tensor([[*prefix, *window.tokens]])
        logits = base.model(input_features=features, decoder_input_ids=ids).logits[
            0, 3:-1, : decoder.label_builder.end_id
        ]
    each = logits.softmax(-1)[range(len(window.tokens)), list(window.tokens)].tolist()
    pieces = WordSplitter(base.tokenizer).split([window.tokens], row["language"])
    expected = [np.mean(each[piece.first : piece.end]) for piece in pieces]
    assert [word.probability for word in window.alignment.words] == pytest.approx(expected, abs=1e-4)
    assert 0 < min(expected) < 0.999


def test_a_batch_of_many_languages_and_windows_times_words_as_each_alone(base, clips):
    waveforms = [clip for _, clip in clips]
    together = Transcriber(base, SETTINGS).transcribe(waveforms)
    assert {transcript.language for transcript in together} == {"zh", "en", "ja", "ar", "ru"}
    edges = {base.windows.num_frames(len(waveform) / 16_000) for waveform in waveforms}
    assert len(edges) > 1
    plain = Transcriber(base).transcribe(waveforms)
    features = [LogMel(80).batch([waveform], num_frames=edge) for waveform in waveforms[:3] for edge in (200, 300)]
    mixed = Decoder(base.model, base.tokenizer).decode(features, SETTINGS)
    for i, group in enumerate(features):
        assert mixed[i].alignment == Decoder(base.model, base.tokenizer).decode(group, SETTINGS)[0].alignment
    for waveform, found, other in zip(waveforms, together, plain, strict=True):
        assert found.text == other.text
        assert not any(segment.words for segment in other.segments)
        (alone,) = Transcriber(base, SETTINGS).transcribe([waveform])
        words = [word for segment in found.segments for word in segment.words]
        assert words == [word for segment in alone.segments for word in segment.words]
        assert "".join(word.text for word in words) == found.text.replace(" ", "")
        times = [time for word in words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert times[-1] <= found.duration_s
        assert (found.segments[0].start_s, found.segments[0].end_s) == (times[0], times[-1])


def test_words_of_a_recording_in_pieces_lie_where_its_clips_do(base, clips):
    # the first quiet frame is where a piece ends, so that each holds a clip; the model knows no longer ones
    chosen = [clip for row, clip in clips if row["language"] in ("en", "ru")]
    gap = np.zeros(1600, np.float32)
    joined = np.concatenate([part for clip in chosen for part in (clip, gap)])
    (transcript,) = Transcriber(base, replace(SETTINGS, piece_s=3.0)).transcribe([joined])
    assert len(transcript.segments) == len(chosen) == 4
    begin_s, num_near = 0.0, 0
    alone = Transcriber(base, SETTINGS).transcribe(chosen)
    for segment, single, clip in zip(transcript.segments, alone, chosen, strict=True):
        end_s = begin_s + len(clip) / 16_000
        assert len(segment.words) > 2
        assert all(begin_s - 0.1 <= word.start_s <= word.end_s <= end_s + 0.1 for word in segment.words)
        if segment.text == single.text:
            own = [word.start_s + begin_s for word in single.segments[0].words]
            num_near += sum(abs(word.start_s - time) <= 0.1 for word, time in zip(segment.words, own, strict=True))
        begin_s = end_s + 0.1
    assert num_near > 12


def test_words_read_by_predicted_times_count_from_the_beginning_of_the_recording(base):
    reader = TokenReader(base.tokenizer)

    def window(*said, words):
        begin, find = reader.timestamp_begin, base.tokenizer.convert_tokens_to_ids
        tokens = [find(token) if isinstance(token, str) else begin + round(50 * token) for token in said]
        return Decoded("", "en", "en", 1.0, (), False, tokens=tuple(tokens), alignment=aligned(*words))

    recording = SequentialRecording(40.0, reader)
    recording.take(window(0.0, "a", 2.0, 2.0, "b", words=[(" a", 0.4, 0.8), (" b", 2.4, 2.8)]))
    recording.take(window(0.0, "b", 1.0, 1.0, "c", 2.0, words=[(" b", 0.3, 0.7), (" c", 1.1, 1.5)]))
    said = [(word.text, word.start_s, word.end_s) for segment in recording.segments for word in segment.words]
    assert said == [("a", 0.4, 0.8), ("b", 2.3, 2.7), ("c", 3.1, 3.5)]  # the unfinished one is heard again, and once


def test_half_arithmetic_moves_few_words(base, clips):
    half = load_artefact(BASE, compute="fp16")
    waveforms = [clip for _, clip in clips[:5]]
    pairs = zip(*(Transcriber(a, SETTINGS).transcribe(waveforms) for a in (base, half)), strict=True)
    moved = [
        abs(one.start_s - other.start_s)
        for full, halved in pairs
        if full.text == halved.text
        for one, other in zip(full.segments[0].words, halved.segments[0].words, strict=True)
    ]
    assert len(moved) > 10
    assert np.median(moved) <= 0.02


@pytest.mark.parametrize("heads", ["named", "none"])
def test_ctranslate2_times_words_as_torch_does(heads: str, clips, tmp_path: Path):
    """Also with a folder from elsewhere that names no heads: both then read the later half."""
    pytest.importorskip("ctranslate2", reason="the extra `runtimes` is not installed")
    from infer.backends.ctranslate2 import CTranslate2Decoder, load_ctranslate2
    from infer.export.ctranslate2 import convert_to_ctranslate2

    source = Path(shutil.copytree(BASE, tmp_path / "base"))
    if heads == "none":
        (source / "mezzavoce.json").unlink(missing_ok=True)
        generation = json.loads((source / "generation_config.json").read_text())
        generation.pop("alignment_heads")
        (source / "generation_config.json").write_text(json.dumps(generation))
    base = load_artefact(source, compute="fp32")
    folder = convert_to_ctranslate2(source, tmp_path / "ct2")
    if heads == "none":
        layers, num_heads = base.model.config.decoder_layers, base.model.config.decoder_attention_heads
        later = [[layer, head] for layer in range(layers // 2, layers) for head in range(num_heads)]
        assert json.loads((folder / "config.json").read_text())["alignment_heads"] == later
    loaded = load_ctranslate2(folder, source, compute_type="float32", num_threads=1)
    waveforms = [clip for _, clip in clips]
    decoder = CTranslate2Decoder(loaded, artefact_dir=source)
    found = Transcriber(loaded, SETTINGS, decoder=decoder).transcribe(waveforms)
    differences = []
    for ours, other in zip(Transcriber(base, SETTINGS).transcribe(waveforms), found, strict=True):
        assert other.text == ours.text
        pairs = zip(ours.segments[0].words, other.segments[0].words, strict=True)
        for one, two in pairs:
            assert one.text == two.text
            assert two.probability == pytest.approx(one.probability, abs=1e-3)
            differences += [abs(one.start_s - two.start_s), abs(one.end_s - two.end_s)]
    assert np.median(differences) <= 0.02
    silence = decoder.decode(torch.zeros(1, 80, 200), replace(SETTINGS, max_new_tokens=1), num_frames=[200])
    assert silence[0].alignment is None or silence[0].alignment.words


def test_a_runtime_without_them_names_those_that_have_them():
    from infer.plain_search import verify_plain_search

    with pytest.raises(ValueError, match=r"word_times=true is not offered under ONNX Runtime; torch and CTranslate2"):
        verify_plain_search(SETTINGS, "ONNX Runtime", has_beams=False)
    verify_plain_search(SETTINGS, "CTranslate2", has_words=True)


def test_the_heads_are_those_that_are_named_or_the_later_half(whisper):
    whisper.generation_config.alignment_heads = [[0, 1]]
    assert alignment_heads(whisper) == {0: [1]}
    whisper.generation_config.alignment_heads = None
    assert alignment_heads(whisper) == {0: [0, 1]}  # of one layer, the half that is not the earlier one
    whisper.generation_config.alignment_heads = [[7, 1]]
    with pytest.raises(ValueError, match=r"alignment_heads has \[7, 1\], but the decoder has 1 layers of 2 heads"):
        alignment_heads(whisper)


def test_the_longest_text_that_a_model_can_say_is_timed(lively, tokenizer):
    aligner = WordAligner(lively, tokenizer)
    longest = lively.config.max_target_positions - 4
    decoded = Decoded("a", "en", "en", 1.0, (), True, tokens=(5,) * longest)
    with torch.inference_mode():
        hidden = encode(lively.model.encoder, torch.randn(1, 80, 100, generator=torch.Generator().manual_seed(0)))
        (found,) = aligner.add_words([decoded], [hidden], "transcribe", None)
        (empty,) = aligner.add_words([replace(decoded, tokens=())], [hidden], "transcribe", None)
    assert max(word.end_s for word in found.alignment.words) <= 1.0
    assert empty.alignment is None


def test_tokens_that_all_listen_alike_are_no_numbers_that_are_not():
    assert torch.equal(followed(torch.zeros(2, 3, 10)), torch.zeros(2, 3, 10))


def aligned(*words):
    return Alignment(
        tuple(AlignedWord(text, i, start_s, end_s, 0.5) for i, (text, start_s, end_s) in enumerate(words)), 0.3
    )


def test_words_count_from_the_beginning_of_the_recording_and_end_with_it():
    alignment = aligned((" one", 0.5, 0.8), (" two", 0.8, 1.2))
    parts = [(0.0, 10.0, Decoded("one two", "en", "en", 1.0, (), False, alignment=alignment))]
    parts.append((10.0, 11.0, parts[0][2]))
    first, second = join_pieces(parts, 11.0).segments
    assert first.words == (Word(0.5, 0.8, "one", 0.5), Word(0.8, 1.2, "two", 0.5))
    assert second.words == (Word(10.5, 10.8, "one", 0.5), Word(10.8, 11.0, "two", 0.5))
    assert (first.start_s, first.end_s, second.start_s, second.end_s) == (0.5, 1.2, 10.5, 11.0)
    document = json.loads(format_json(join_pieces(parts, 11.0)))
    assert document["segments"][0]["words"][0] == {"start_s": 0.5, "end_s": 0.8, "text": "one", "probability": 0.5}
    plain = replace(parts[0][2], alignment=None)
    assert "words" not in json.loads(format_json(join_pieces([(0.0, 10.0, plain)], 10.0)))["segments"][0]


def test_a_word_that_holds_a_pause_is_cut():
    pause = [Word(0.0, 4.0, "so", 0.5), Word(4.0, 4.3, "it", 0.5)]
    fitted = fit_segment(Segment(0.0, 5.0, "so it"), pause, median_s=0.3, last_end_s=0.0)
    assert fitted.words[0].start_s == pytest.approx(3.4)
    assert fitted.start_s == fitted.words[0].start_s
    kept = fit_segment(Segment(3.8, 5.0, "so it"), [Word(0.0, 1.0, "so", 0.5)], median_s=0.3, last_end_s=0.0)
    assert (kept.start_s, kept.words[0].start_s) == (
        0.0,
        0.0,
    )  # the word ends before its segment begins: it is believed
    assert fit_segment(Segment(1.0, 2.0, "x"), [], median_s=0.3, last_end_s=0.0) == Segment(1.0, 2.0, "x")


def test_a_word_of_no_length_is_no_measure_of_the_others(base):
    pieces = WordSplitter(base.tokenizer).split([base.tokenizer(" a b c", add_special_tokens=False)["input_ids"]], "en")
    frames = [0] * pieces[1].first + [10] * (pieces[2].end - pieces[1].first) + [30]
    found = time_words(pieces, frames, [1.0] * (len(frames) - 1), borders=frozenset())
    assert found.median_s == pytest.approx(0.3)
