"""Our search says, token for token, what transformers' `generate` and plain definitions say, for every mix of rows."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import PROJECT
from torch import Tensor
from transformers import PreTrainedTokenizerBase, pipeline
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from data.audio import SAMPLING_RATE, load_waveform
from data.windows import full_windows
from infer.artefact import Artefact, load_artefact
from infer.beam import beam_search
from infer.decoder_steps import DecoderSteps
from infer.decoding import Decoder, DecodeSettings
from infer.encoder import WindowedWhisper, encode, encode_windows
from infer.search import _drawn
from infer.token_rules import MAX_INITIAL_TIMESTAMP, TokenRules
from infer.transcriber import Transcriber

LIMIT = 16
GREEDY = DecodeSettings(language="en", max_new_tokens=LIMIT)
DEMO = PROJECT / "data" / "demo"


@pytest.fixture
def decoder(lively: WindowedWhisper, tokenizer: PreTrainedTokenizerBase) -> Decoder:
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    likely = torch.randn(16, generator=torch.Generator().manual_seed(5)).sign()
    with torch.no_grad():
        lively.model.decoder.embed_tokens.weight[end] = likely  # so that some texts end before the limit
    return Decoder(lively, tokenizer)


def _features(batch: int, num_frames: int = 100, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    colour = 3 * torch.randn(batch, 80, 1, generator=generator)
    return colour + torch.randn(batch, 80, num_frames, generator=generator)


@torch.inference_mode()
def test_steps_equal_the_decoder_of_transformers(decoder: Decoder) -> None:
    """Given in pieces of any length, and with rows that leave on the way."""
    hidden = encode(decoder.model.model.encoder, _features(3))
    tokens = torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = decoder.model(decoder_input_ids=tokens, encoder_outputs=(hidden,), use_cache=False).logits
    steps = DecoderSteps(decoder.model, hidden, room=9)
    found = [steps.logits(steps.advance(tokens[:, a:b])[:, -1]) for a, b in ((0, 4), (4, 5), (5, 7))]
    for logits, position in zip(found, (3, 4, 6), strict=True):
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-4)
    steps.keep(torch.tensor([2, 0]))
    logits = steps.logits(steps.advance(tokens[[2, 0], 7:9])[:, -1])
    torch.testing.assert_close(logits, expected[[2, 0], 8], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_padding_on_the_left_changes_nothing(decoder: Decoder) -> None:
    hidden = encode(decoder.model.model.encoder, _features(3))
    tokens = torch.randint(0, 250, (3, 8), generator=torch.Generator().manual_seed(2))
    padding = torch.tensor([0, 3, 5])
    steps = DecoderSteps(decoder.model, hidden, room=8, padding=padding)
    first = steps.advance(tokens[:, :6])
    found = steps.logits(steps.advance(tokens[:, 6:7])[:, -1])
    assert bool(torch.isfinite(first).all())
    for row, pad in enumerate(padding.tolist()):
        alone = DecoderSteps(decoder.model, hidden[row : row + 1], room=8)
        expected = alone.logits(alone.advance(tokens[row : row + 1, pad:7])[:, -1])
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_frames", "timestamps"), [(50, False), (100, True), (500, False), (500, True)])
def test_greedy_is_what_generate_says(decoder: Decoder, num_frames: int, timestamps: bool) -> None:
    decoder.model.generation_config.suppress_tokens = [3, 4, 5]
    decoder.model.generation_config.begin_suppress_tokens = [20, decoder.label_builder.end_id]
    features = _features(12, num_frames)
    settings = dataclasses.replace(GREEDY, timestamps=timestamps)
    found = decoder.decode(features, settings)
    builder = decoder.label_builder
    with torch.inference_mode():
        expected = beam_search(
            decoder.model,
            encode(decoder.model.model.encoder, features),
            torch.tensor([builder.prefix_ids("en", "transcribe", timestamps=timestamps)] * 12),
            num_beams=1,
            limit=LIMIT,
            end_id=builder.end_id,
            no_timestamps_id=builder.no_timestamps_id,
            timestamps=timestamps,
        )
    assert [decoded.tokens for decoded in found] == [said.tokens for said in expected]
    assert [decoded.is_cut for decoded in found] == [said.is_cut for said in expected]
    assert [d.avg_logprob for d in found] == pytest.approx([said.avg_logprob for said in expected], abs=1e-4)
    assert len({decoded.tokens for decoded in found}) > 4


def test_rows_that_have_ended_leave_the_batch(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    keep = DecoderSteps.keep
    monkeypatch.setattr(DecoderSteps, "keep", lambda self, rows: (left.append(len(rows)), keep(self, rows)))
    together = decoder.decode(_features(16), GREEDY)
    assert left
    assert left == sorted(left, reverse=True)
    monkeypatch.setattr(DecoderSteps, "keep", keep)
    alone = [decoder.decode(_features(16)[i : i + 1], GREEDY)[0] for i in range(16)]
    assert [d.tokens for d in together] == [d.tokens for d in alone]
    assert [d.avg_logprob for d in together] == pytest.approx([d.avg_logprob for d in alone], abs=1e-4)


def test_beams_score_no_less_than_greedy_and_say_how_sure_they_are(decoder: Decoder) -> None:
    features = _features(4)
    (beams, greedy) = (decoder.decode(features, dataclasses.replace(GREEDY, num_beams=n)) for n in (4, 1))
    for found in beams:
        assert -20 < found.avg_logprob < 0
    assert max(b.avg_logprob - g.avg_logprob for b, g in zip(beams, greedy, strict=True)) >= 0


def test_the_encoder_in_parts_is_the_encoder(decoder: Decoder) -> None:
    for batch, num_frames in ((3, 3000), (7, 500), (1, 100)):
        features = _features(batch, num_frames)
        with torch.inference_mode():
            whole = encode(decoder.model.model.encoder, features)
            torch.testing.assert_close(encode_windows(decoder.model.model.encoder, features), whole)


def test_rules_for_times_are_those_of_transformers(decoder: Decoder) -> None:
    """On random beginnings of texts, good ones and broken ones."""
    builder = decoder.label_builder
    config = copy.deepcopy(decoder.model.generation_config)
    config.no_timestamps_token_id, config.eos_token_id = builder.no_timestamps_id, builder.end_id
    config.max_initial_timestamp_index = MAX_INITIAL_TIMESTAMP
    reference = WhisperTimeStampLogitsProcessor(config, begin_index=2)
    ours = TokenRules(
        suppressed=(),
        suppressed_first=(),
        end_id=builder.end_id,
        no_timestamps_id=builder.no_timestamps_id,
        timestamps=True,
        device=torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(0)
    vocabulary = decoder.model.config.vocab_size
    num_forbidden = set()
    for num_said in (0, 1, 2, 3, 6):
        for _ in range(20):
            words = torch.randint(0, 200, (5, num_said), generator=generator)
            times = builder.timestamp_begin + torch.randint(0, 300, (5, num_said), generator=generator).sort(-1).values
            said = torch.where(torch.rand(5, num_said, generator=generator) < 0.5, words, times)
            logits = 3 * torch.randn(5, vocabulary, generator=generator)
            expected = reference(torch.cat([torch.zeros(5, 2, dtype=torch.long), said], dim=1), logits)
            found = logits.clone()
            ours.apply_(found, said)
            assert torch.equal(found, expected)
            num_forbidden.add(int(torch.isinf(found).sum()))
    assert len(num_forbidden) > 20


def test_lots_fall_where_the_probabilities_are() -> None:
    probabilities = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0]], dtype=torch.float64)
    lots = (torch.arange(1000).double() + 0.5) / 1000
    tokens = _drawn(probabilities.log().expand(1000, 6), lots)
    assert torch.bincount(tokens, minlength=6).tolist() == [0, 200, 0, 500, 300, 0]
    assert int(_drawn(probabilities.log(), torch.tensor([1 - 2.0**-53], dtype=torch.float64))) == 4


def test_draws_belong_to_the_window_and_the_seed(decoder: Decoder) -> None:
    features = _features(6)
    hot = dataclasses.replace(GREEDY, temperature=(0.8,))
    together = decoder.decode(features, hot)
    assert [d.tokens for d in together] == [decoder.decode(features[i : i + 1], hot)[0].tokens for i in range(6)]
    assert [d.tokens for d in together] == [d.tokens for d in decoder.decode(features.flip(0), hot)][::-1]
    other = decoder.decode(features, dataclasses.replace(hot, seed=1))
    assert sum(a.tokens != b.tokens for a, b in zip(together, other, strict=True)) > 3
    greedy = decoder.decode(features, GREEDY)
    cold = decoder.decode(features, dataclasses.replace(GREEDY, temperature=(1e-4,)))
    assert [d.tokens for d in cold] == [d.tokens for d in greedy]
    assert {d.temperature for d in together} == {0.8}


@pytest.mark.parametrize("mode", ["given", "detected with it", "auto"])
def test_what_is_heard_does_not_depend_on_how_the_language_is_found(decoder: Decoder, mode: str) -> None:
    features = _features(5)
    auto = decoder.decode(features, dataclasses.replace(GREEDY, language="auto"))
    languages = [decoded.detected_language for decoded in auto]
    settings = {
        "given": dataclasses.replace(GREEDY, detect_language=False),
        "detected with it": GREEDY,
        "auto": dataclasses.replace(GREEDY, language="auto"),
    }[mode]
    found = decoder.decode(features, settings, languages=None if mode == "auto" else languages)
    assert [d.tokens for d in found] == [d.tokens for d in auto]
    assert [d.avg_logprob for d in found] == pytest.approx([d.avg_logprob for d in auto], abs=1e-4)
    if mode == "given":
        assert all(d.no_speech_prob is None and d.language_probability != d.language_probability for d in found)
    else:
        assert [d.no_speech_prob for d in found] == pytest.approx([d.no_speech_prob for d in auto], abs=1e-6)


def test_no_speech_is_the_probability_of_its_token_behind_the_start(decoder: Decoder) -> None:
    features = _features(4)
    start = torch.full((4, 1), decoder.label_builder.start_id)
    with torch.inference_mode():
        probabilities = decoder.model(input_features=features, decoder_input_ids=start).logits[:, 0].softmax(-1)
    expected = probabilities[:, decoder.label_builder.no_speech_id].tolist()
    assert [d.no_speech_prob for d in decoder.decode(features, GREEDY)] == pytest.approx(expected, rel=1e-3)
    silent = dataclasses.replace(GREEDY, detect_language=False, no_speech_threshold=1.0)
    assert [d.no_speech_prob for d in decoder.decode(features, silent)] == pytest.approx(expected, rel=1e-3)


def test_prompts_of_unlike_length_share_a_batch(decoder: Decoder) -> None:
    features = _features(1).repeat(4, 1, 1)
    prompts = [[], [10, 11, 12], list(range(20, 60)), list(range(30, 100)) * 5]
    together = decoder.decode(features, GREEDY, languages=["en"] * 4, prompts=prompts)
    for row, prompt in enumerate(prompts):
        alone = decoder.decode(features[:1], GREEDY, languages=["en"], prompts=[prompt])[0]
        assert alone.tokens == together[row].tokens
    assert together[0].tokens == decoder.decode(features[:1], GREEDY)[0].tokens
    assert len({d.tokens for d in together}) > 1
    kept = prompts[3][-decoder.label_builder.max_prompt_tokens :]
    assert together[3].tokens == decoder.decode(features[:1], GREEDY, languages=["en"], prompts=[kept])[0].tokens
    with pytest.raises(ValueError, match="prompts need a language each"):
        decoder.decode(features, GREEDY, languages=["auto"] * 4, prompts=prompts)


@pytest.fixture(scope="module")
def demo() -> Artefact:
    return load_artefact(DEMO / "base")


@pytest.mark.parametrize("num_beams", [1, 5])
def test_the_stock_pipeline_says_the_same_in_full_windows(demo: Artefact, num_beams: int) -> None:
    """A trained model, five languages; the pipeline of transformers is given the folder alone.

    It has five beams where none are asked for, and leaves out the token of the task where no task is named.
    """
    rows = [json.loads(line) for line in (DEMO / "corpus/home/test.jsonl").read_text("utf-8").splitlines()[:5]]
    waveforms = [load_waveform(DEMO / "corpus/home" / row["audio"]) for row in rows]
    stock = pipeline("automatic-speech-recognition", model=str(demo.path), device="cpu", dtype=torch.float32)
    inputs = [{"raw": waveform, "sampling_rate": SAMPLING_RATE} for waveform in waveforms]
    options = {"task": "transcribe", "max_new_tokens": 30} | ({"num_beams": 1} if num_beams == 1 else {})
    expected = [found["text"].strip() for found in stock(inputs, batch_size=5, generate_kwargs=options)]
    full = dataclasses.replace(demo, windows=full_windows())
    settings = DecodeSettings(max_new_tokens=30, num_beams=num_beams)
    found = Transcriber(full, settings, batch_size=3).transcribe(waveforms)
    assert [transcript.text for transcript in found] == expected
    assert len({transcript.language for transcript in found}) == 5
    assert all(expected)


def test_an_artefact_without_a_token_for_silence_is_decoded_all_the_same(
    lively: WindowedWhisper, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    decoder = Decoder(lively, tokenizer)
    decoder.no_speech_id = None
    found = decoder.decode(_features(2), dataclasses.replace(GREEDY, no_speech_threshold=0.6))
    assert [d.no_speech_prob for d in found] == [None, None]
