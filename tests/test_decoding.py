"""Text is read off the model as plain argmax, exhaustive scores and transformers' own `generate` say it must be."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from data.labels import special_id
from data.languages import LANGUAGE_CODES
from infer.decoding import Decoder, DecodeSettings
from infer.encoder import WindowedWhisper, encode
from infer.subtitles import Segment

MAX_NEW_TOKENS = 12


@pytest.fixture
def decoder(lively: WindowedWhisper, tokenizer) -> Decoder:
    return Decoder(lively, tokenizer)


def _features(batch: int = 4, num_frames: int = 100, seed: int = 0) -> Tensor:
    """Return noise, louder in other bins for each clip, so that clips differ in windows of any length."""
    generator = torch.Generator().manual_seed(seed)
    colour = 3 * torch.randn(batch, 80, 1, generator=generator)
    return colour + torch.randn(batch, 80, num_frames, generator=generator)


def _logits(decoder: Decoder, hidden: Tensor, ids: list[int]) -> Tensor:
    """Return (T, V) logits of one clip by a full forward, without a cache."""
    encoded = BaseModelOutput(last_hidden_state=hidden)
    output = decoder.model(decoder_input_ids=torch.tensor([ids]), encoder_outputs=encoded, use_cache=False)
    return output.logits[0]


def _naive(decoder: Decoder, features: Tensor, prefix: list[int], limit: int, *, suppressed: tuple[int, ...] = (),
           suppressed_first: tuple[int, ...] = ()) -> list[int]:  # fmt: skip
    """Greedy decoding of one clip as a loop of argmax."""
    end = decoder.label_builder.end_id
    with torch.no_grad():
        hidden = encode(decoder.model.model.encoder, features[None])
        ids = list(prefix)
        while len(ids) - len(prefix) < limit:
            scores = _logits(decoder, hidden, ids)[-1].clone()
            scores[list(suppressed)] = -torch.inf
            if len(ids) == len(prefix):
                scores[list(suppressed_first)] = -torch.inf
            ids.append(int(scores.argmax()))
            if ids[-1] == end:
                break
    return ids[len(prefix) :]


def _tokens(decoder: Decoder, features: Tensor, settings: DecodeSettings, prefix: list[int]) -> list[list[int]]:
    """Return what each clip says behind the prefix of English, up to the end token."""
    assert prefix == decoder.label_builder.prefix_ids("en", "transcribe")
    end = decoder.label_builder.end_id
    found = decoder.decode(features, dataclasses.replace(settings, language="en"))
    return [[*decoded.tokens, *([] if decoded.is_cut else [end])] for decoded in found]


def _log_probability(decoder: Decoder, features: Tensor, prefix: list[int], tokens: list[int]) -> float:
    with torch.no_grad():
        hidden = encode(decoder.model.model.encoder, features[None])
        log_probs = _logits(decoder, hidden, prefix + tokens)[len(prefix) - 1 : -1].log_softmax(-1)
    return float(log_probs[range(len(tokens)), tokens].sum())


def _ending_early(decoder: Decoder) -> None:
    """Raise the end token's logit, so that some texts end before the limit."""
    end = decoder.label_builder.end_id
    with torch.no_grad():
        embedding = decoder.model.model.decoder.embed_tokens.weight
        embedding[end] = torch.randn(16, generator=torch.Generator().manual_seed(5)).sign()


@pytest.mark.parametrize("num_frames", [50, 100, 3000])
def test_greedy_equals_a_loop_of_argmax(decoder: Decoder, num_frames: int) -> None:
    _ending_early(decoder)
    features = _features(num_frames=num_frames)
    prefix = decoder.label_builder.prefix_ids("en", "transcribe")
    found = _tokens(decoder, features, DecodeSettings(max_new_tokens=MAX_NEW_TOKENS), prefix)
    expected = [_naive(decoder, clip, prefix, MAX_NEW_TOKENS) for clip in features]
    assert found == expected
    assert len({tuple(ids) for ids in expected}) > 1  # else the model says the same whatever it hears


def test_decode_gives_the_text_of_that_loop(decoder: Decoder, tokenizer) -> None:
    _ending_early(decoder)
    features = _features()
    settings = DecodeSettings(language="ja", task="translate", max_new_tokens=MAX_NEW_TOKENS)
    prefix = decoder.label_builder.prefix_ids("ja", "translate")
    for clip, decoded in zip(features, decoder.decode(features, settings), strict=True):
        ids = _naive(decoder, clip, prefix, MAX_NEW_TOKENS)
        assert decoded.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert decoded.language == "ja"
        assert decoded.is_cut == (decoder.label_builder.end_id not in ids)
        assert decoded.segments == ()


def test_both_ends_of_a_text_occur_and_are_told_apart(decoder: Decoder) -> None:
    """`is_cut` must have been seen both ways, or the tests above prove nothing about it."""
    _ending_early(decoder)
    results = decoder.decode(_features(16), DecodeSettings(language="en", max_new_tokens=MAX_NEW_TOKENS))
    assert {decoded.is_cut for decoded in results} == {True, False}


def test_one_beam_is_greedy_and_more_beams_never_score_less(decoder: Decoder) -> None:
    features = _features(6)
    prefix = decoder.label_builder.prefix_ids("en", "transcribe")
    end = (decoder.label_builder.end_id,)
    decoder.model.generation_config.suppress_tokens = list(end)  # equal lengths make the sums comparable
    greedy = [_naive(decoder, clip, prefix, 6, suppressed=end) for clip in features]
    assert _tokens(decoder, features, DecodeSettings(num_beams=1, max_new_tokens=6), prefix) == greedy
    searched = _tokens(decoder, features, DecodeSettings(num_beams=8, max_new_tokens=6), prefix)
    gains = [
        _log_probability(decoder, clip, prefix, best) - _log_probability(decoder, clip, prefix, first)
        for clip, best, first in zip(features, searched, greedy, strict=True)
    ]
    assert min(gains) >= -1e-4
    assert max(gains) > 1e-3  # and somewhere the search has found something better


def test_beam_finds_the_best_of_all_texts_where_all_can_be_tried(decoder: Decoder) -> None:
    """Two tokens out of the six that are left: with six beams nothing can be missed."""
    prefix = decoder.label_builder.prefix_ids("en", "transcribe")
    allowed = list(range(10, 16))
    decoder.model.generation_config.suppress_tokens = [
        i for i in range(decoder.model.config.vocab_size) if i not in allowed
    ]
    features = _features(3)
    found = _tokens(decoder, features, DecodeSettings(num_beams=6, max_new_tokens=2), prefix)
    for clip, tokens in zip(features, found, strict=True):
        with torch.no_grad():
            hidden = encode(decoder.model.model.encoder, clip[None])
            scores = {
                pair: sum(
                    float(_logits(decoder, hidden, prefix + list(pair[:n]))[-1].log_softmax(-1)[pair[n]])
                    for n in range(2)
                )
                for pair in itertools.product(allowed, repeat=2)
            }
        assert tuple(tokens) == max(scores, key=lambda pair: scores[pair])


def test_language_detection_is_a_softmax_over_the_languages(decoder: Decoder) -> None:
    features = _features(8)
    tokenizer = decoder.tokenizer
    ids = [special_id(tokenizer, f"<|{code}|>") for code in LANGUAGE_CODES]
    results = decoder.decode(features, DecodeSettings(max_new_tokens=2))
    for clip, decoded in zip(features, results, strict=True):
        with torch.no_grad():
            logits = decoder.model(
                input_features=clip[None], decoder_input_ids=torch.tensor([[decoder.label_builder.start_id]])
            ).logits[0, -1]
        weights = [float(logits[i].double().exp()) for i in ids]
        best = max(range(len(ids)), key=lambda i: weights[i])
        assert decoded.detected_language == decoded.language == LANGUAGE_CODES[best]
        assert decoded.language_probability == pytest.approx(weights[best] / sum(weights), rel=1e-4)


def test_detection_is_reported_beside_a_language_that_was_given(decoder: Decoder) -> None:
    features = _features(3)
    detected = [d.detected_language for d in decoder.decode(features, DecodeSettings(max_new_tokens=2))]
    given = decoder.decode(features, DecodeSettings(language="yo", max_new_tokens=2))
    assert [d.language for d in given] == ["yo"] * 3
    assert [d.detected_language for d in given] == detected
    assert "yo" not in detected


def test_each_clip_may_have_its_own_language(decoder: Decoder) -> None:
    ids = list(decoder.language_ids.values())
    decoder.model.generation_config.suppress_tokens = ids
    with torch.no_grad():
        decoder.model.model.decoder.embed_tokens.weight[ids] *= 20  # so that the language is heard
    features = _features(4)[:1].repeat(4, 1, 1)
    settings = DecodeSettings(language="fr", max_new_tokens=MAX_NEW_TOKENS)
    wanted = ["en", "ar", "auto", "fr"]
    together = decoder.decode(features, settings, languages=wanted)
    assert [d.language for d in together] == ["en", "ar", together[0].detected_language, "fr"]
    for i, code in enumerate(wanted):
        alone = DecodeSettings(language=code, max_new_tokens=MAX_NEW_TOKENS)
        assert decoder.decode(features[i : i + 1], alone)[0].text == together[i].text
    assert len({d.text for d in together}) > 1
    with pytest.raises(ValueError, match="1 languages were given for 4 clips"):
        decoder.decode(features, settings, languages=["en"])


def test_suppressed_tokens_never_come(decoder: Decoder) -> None:
    features = _features(3)
    prefix = decoder.label_builder.prefix_ids("en", "transcribe")
    settings = DecodeSettings(max_new_tokens=6)
    free = _tokens(decoder, features, settings, prefix)
    first, always = tuple({ids[0] for ids in free}), tuple({ids[2] for ids in free} - {ids[0] for ids in free})
    decoder.model.generation_config.begin_suppress_tokens = list(first)
    decoder.model.generation_config.suppress_tokens = list(always)
    found = _tokens(decoder, features, settings, prefix)
    assert found != free
    assert found == [_naive(decoder, clip, prefix, 6, suppressed=always, suppressed_first=first) for clip in features]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_batch_says_what_its_clips_say_alone(decoder: Decoder, num_beams: int) -> None:
    _ending_early(decoder)
    features = _features(6)
    settings = DecodeSettings(num_beams=num_beams, max_new_tokens=MAX_NEW_TOKENS)
    together = decoder.decode(features, settings)
    for i in range(6):
        alone = decoder.decode(features[i : i + 1], settings)[0]
        assert (alone.text, alone.language, alone.is_cut) == (
            together[i].text,
            together[i].language,
            together[i].is_cut,
        )


@pytest.mark.parametrize(("num_frames", "limit"), [(50, 45), (100, 70), (150, 95), (500, 270), (3000, 444)])
def test_token_limit_follows_the_window(decoder: Decoder, num_frames: int, limit: int) -> None:
    """50 tokens a second and 20 more, and never beyond the 448 positions, of which the prefix takes 4."""
    end = decoder.label_builder.end_id
    decoder.model.generation_config.suppress_tokens = [end]
    prefix = decoder.label_builder.prefix_ids("en", "transcribe")
    (tokens,) = _tokens(decoder, _features(1, num_frames), DecodeSettings(), prefix)
    assert len(tokens) == limit
    assert decoder.decode(_features(1, num_frames), DecodeSettings(max_new_tokens=3))[0].is_cut


def _stock_copy(model: WindowedWhisper) -> WhisperForConditionalGeneration:
    stock = WhisperForConditionalGeneration(copy.deepcopy(model.config)).eval()
    stock.load_state_dict(model.state_dict())
    stock.generation_config = copy.deepcopy(model.generation_config)
    return stock


@pytest.mark.parametrize(("language", "task"), [("en", "transcribe"), ("zh", "translate"), (None, "transcribe")])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_at_30_s_equals_transformers_own_generate(
    decoder: Decoder, language: str | None, task: str, num_beams: int
) -> None:
    _ending_early(decoder)
    config = decoder.model.generation_config
    config.suppress_tokens = [3, 4, 5]
    config.begin_suppress_tokens = [20, decoder.label_builder.end_id]
    features = _features(3, 3000)
    stock = _stock_copy(decoder.model)
    ids = stock.generate(features, language=language, task=task, max_new_tokens=MAX_NEW_TOKENS, num_beams=num_beams)
    expected = [text.strip() for text in decoder.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    settings = DecodeSettings(
        language=language or "auto", task=task, num_beams=num_beams, max_new_tokens=MAX_NEW_TOKENS
    )
    assert [d.text for d in decoder.decode(features, settings)] == expected
    assert any(expected)


def test_timestamps_give_segments_in_order(decoder: Decoder) -> None:
    _ending_early(decoder)
    # Letters only: a character of several bytes may be torn by a time in its midst, and then reads otherwise.
    decoder.model.generation_config.suppress_tokens = list(range(94, decoder.label_builder.end_id))
    results = decoder.decode(_features(8, 1000), DecodeSettings(language="en", timestamps=True, max_new_tokens=40))
    assert any(decoded.segments for decoded in results)
    for decoded in results:
        times = [time for s in decoded.segments for time in (s.start_s, s.end_s)]
        assert times == sorted(times)
        assert all(0 <= time <= 30 for time in times)
        joined = "".join(s.text for s in decoded.segments)
        assert joined.replace(" ", "") == decoded.text.replace(" ", "")
        if decoded.segments:
            assert decoded.segments[0].start_s <= 1.0  # the rule for the first one


def _read(decoder: Decoder, *parts: str | float) -> list[int]:
    """Return hand-made tokens: numbers are timestamps."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += decoder.tokenizer(part, add_special_tokens=False)["input_ids"]
        else:
            ids.append(special_id(decoder.tokenizer, f"<|{part:.2f}|>"))
    return ids


def test_segments_of_hand_made_tokens(decoder: Decoder) -> None:
    tokens = _read(decoder, 0.0, " one", 1.5, 1.5, " two three", 4.98)
    assert decoder.reader.segments(tokens, 10.0) == (Segment(0.0, 1.5, "one"), Segment(1.5, 4.98, "two three"))
    assert decoder.reader.text(tokens) == "one two three"


def test_a_text_without_its_last_timestamp_keeps_its_last_segment(decoder: Decoder) -> None:
    tokens = _read(decoder, 0.0, " one", 1.0, 2.0, " two")
    assert decoder.reader.segments(tokens, 10.0) == (Segment(0.0, 1.0, "one"), Segment(2.0, 10.0, "two"))


def test_the_last_words_go_and_the_times_stay(decoder: Decoder) -> None:
    tokens = _read(decoder, 0.0, " one", 1.0, 1.0, " one", 2.0)
    dropped = len(decoder.reader.words(tokens)) // 2
    assert list(decoder.reader.without_last_words(tokens, dropped)) == _read(decoder, 0.0, " one", 1.0, 1.0, 2.0)
    assert decoder.reader.without_last_words(tokens, 0) == tuple(tokens)


def test_a_model_that_says_times_unasked_gives_no_segments(decoder: Decoder) -> None:
    allowed = {10, *range(decoder.timestamp_begin, decoder.timestamp_begin + 100)}
    vocabulary = range(decoder.model.config.vocab_size)
    decoder.model.generation_config.suppress_tokens = [i for i in vocabulary if i not in allowed]
    features, settings = _features(8), DecodeSettings(language="en", max_new_tokens=MAX_NEW_TOKENS)
    assert all(decoded.segments == () for decoded in decoder.decode(features, settings))
    tokens = _tokens(decoder, features, settings, decoder.label_builder.prefix_ids("en", "transcribe"))
    assert any(10 in ids and max(ids) > 10 for ids in tokens)  # text and times were there


@pytest.mark.parametrize(
    ("options", "message"),
    [({"language": "german"}, "'de'"), ({"task": "summarise"}, r"decoding\.task"), ({"num_beams": 0}, "num_beams=0")],
)
def test_bad_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeSettings(**options)
