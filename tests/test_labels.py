"""The start token is given once and never predicted; language, task, text and end carry loss, the prompt does not."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase, WhisperTokenizer

from data.labels import (
    IGNORE_INDEX,
    LabelBuilder,
    LabelError,
    MissingLanguageError,
    SegmentTimeError,
    TooLongError,
    special_id,
)
from data.languages import LANGUAGE_CODES
from data.manifest import Row, Segment
from train.vocabulary import learn_tokenizer

ROW = Row(
    id="a",
    audio=Path("a.wav"),
    text="one two",
    language="en",
    task="transcribe",
    duration_s=None,
    offset_s=None,
    segments=(),
    prompt="",
    speaker="",
    manifest=Path("m.jsonl"),
    line=1,
)


@pytest.fixture
def builder(tokenizer: PreTrainedTokenizerBase) -> LabelBuilder:
    return LabelBuilder(tokenizer, max_positions=448)


@pytest.fixture
def timed_builder(tokenizer: PreTrainedTokenizerBase) -> LabelBuilder:
    return LabelBuilder(tokenizer, max_positions=448, timestamps=True)


def _names(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> list[str]:
    return ["-" if i == IGNORE_INDEX else tokenizer.convert_ids_to_tokens(i) for i in ids]


def test_golden_tokens(builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Written by hand; Ġ is the space that Whisper's vocabulary writes before the first word."""
    labels = builder.build(ROW)
    text = ["Ġ", "o", "n", "e", "Ġ", "t", "w", "o"]
    assert _names(tokenizer, labels.decoder_input_ids) == [
        *["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"],
        *text,
    ]
    assert _names(tokenizer, labels.labels) == ["<|en|>", "<|transcribe|>", "<|notimestamps|>", *text, "<|endoftext|>"]
    assert labels.num_label_tokens == 12


@pytest.mark.parametrize("language", ["en", "zh", "ar", "ru", "ja", "yue"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_matches_the_tokens_of_transformers(
    language: str, task: str, builder: LabelBuilder, tokenizer: WhisperTokenizer
) -> None:
    """Independent reference: the tokenizer's own prefix and suffix; the labels are they, without the start token."""
    reference = copy.deepcopy(tokenizer)
    reference.set_prefix_tokens(language=language, task=task, predict_timestamps=False)
    expected = reference(" 你好 мир one").input_ids
    labels = builder.build(replace(ROW, text="你好 мир one", language=language, task=task))
    assert list(labels.decoder_input_ids) == expected[:-1]
    assert list(labels.labels) == expected[1:]


def test_start_once_and_never_predicted_end_once_and_last(builder: LabelBuilder) -> None:
    for row in (ROW, replace(ROW, prompt="three"), replace(ROW, text="مرحبا", language="ar")):
        labels = builder.build(row)
        assert len(labels.decoder_input_ids) == len(labels.labels)
        assert labels.decoder_input_ids.count(builder.start_id) == 1
        assert builder.start_id not in labels.labels
        assert builder.end_id not in labels.decoder_input_ids
        assert labels.labels.count(builder.end_id) == 1
        assert labels.labels[-1] == builder.end_id
        first = next(label for label in labels.labels if label != IGNORE_INDEX)
        assert first == special_id(builder.tokenizer, f"<|{row.language}|>")
        # What is not masked is the input, one position later.
        for given, wanted in zip(labels.decoder_input_ids[1:], labels.labels[:-1], strict=True):
            assert wanted in (given, IGNORE_INDEX)


def test_text_survives_the_way_through_the_tokens(builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ("one two", "你好世界", "こんにちは", "مرحبا بالعالم", "unseen: žluťoučký 🐎"):
        labels = builder.build(replace(ROW, text=text))
        assert tokenizer.decode(labels.labels, skip_special_tokens=True) == f" {text}"


def test_prompt_is_given_and_carries_no_loss(builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase) -> None:
    labels = builder.build(replace(ROW, prompt=" ab "))
    assert _names(tokenizer, labels.decoder_input_ids[:6]) == [
        *["<|startofprev|>", "Ġ", "a", "b", "<|startoftranscript|>", "<|en|>"],
    ]
    assert _names(tokenizer, labels.labels[:6]) == ["-", "-", "-", "-", "<|en|>", "<|transcribe|>"]
    assert labels.labels[4:] == builder.build(ROW).labels
    assert labels.num_label_tokens == builder.build(ROW).num_label_tokens


def test_prompt_is_cut_at_its_beginning_to_half_the_positions(
    builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase
) -> None:
    """224 of 448 with its own token, as OpenAI's decoding cuts it: 223 of text."""
    prompt = "".join(chr(ord("a") + i % 26) for i in range(600))
    labels = builder.build(replace(ROW, prompt=prompt))
    start = labels.decoder_input_ids.index(builder.start_id)
    assert start == 224
    assert labels.decoder_input_ids[0] == builder.previous_id
    assert tokenizer.decode(labels.decoder_input_ids[1:start]) == prompt[-223:]
    assert set(labels.labels[:start]) == {IGNORE_INDEX}
    assert labels.labels[start] != IGNORE_INDEX


def test_segments_become_timestamp_tokens(timed_builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase) -> None:
    segments = (Segment(0.0, 0.5, " ab "), Segment(0.5, 29.994, "c"))
    labels = timed_builder.build(replace(ROW, segments=segments))
    times = ["<|0.00|>", "Ġ", "a", "b", "<|0.50|>", "<|0.50|>", "Ġ", "c", "<|30.00|>"]
    assert _names(tokenizer, labels.labels) == ["<|en|>", "<|transcribe|>", *times, "<|endoftext|>"]
    assert timed_builder.no_timestamps_id not in labels.decoder_input_ids


def test_segment_times_count_from_the_beginning_of_the_clip(
    timed_builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase
) -> None:
    row = replace(ROW, offset_s=100.0, segments=(Segment(100.14, 101.28, "a"),))
    names = _names(tokenizer, timed_builder.build(row).labels)
    assert names[2] == "<|0.14|>"
    assert names[-2] == "<|1.28|>"


def test_every_time_step_has_its_token(timed_builder: LabelBuilder) -> None:
    zero = special_id(timed_builder.tokenizer, "<|0.00|>")
    for step in range(1501):
        labels = timed_builder.build(replace(ROW, segments=(Segment(step / 50, 30.0, "a"),)))
        assert labels.labels[2] == zero + step
        assert labels.labels[-2] == zero + 1500


def test_without_segments_or_without_the_option_there_are_no_times(
    builder: LabelBuilder, timed_builder: LabelBuilder
) -> None:
    with_segments = replace(ROW, segments=(Segment(0, 1, "one two"),))
    assert timed_builder.build(ROW) == builder.build(ROW) == builder.build(with_segments)
    assert timed_builder.build(with_segments) != builder.build(with_segments)


@pytest.mark.parametrize(("start_s", "end_s", "offset_s"), [(0.0, 30.02, 0.0), (0.5, 1.0, 0.6), (31.0, 32.0, 0.0)])
def test_a_segment_outside_the_window_is_refused(
    start_s: float, end_s: float, offset_s: float, timed_builder: LabelBuilder
) -> None:
    with pytest.raises(SegmentTimeError, match="outside the clip's window") as e:
        timed_builder.build(replace(ROW, offset_s=offset_s, segments=(Segment(start_s, end_s, "a"),)))
    assert e.value.reason.code == "T11"


@pytest.mark.parametrize("prompt", ["", "abc"])
def test_448_positions_are_the_limit_and_nothing_is_cut(prompt: str, builder: LabelBuilder) -> None:
    used = len(builder.build(replace(ROW, text="a", prompt=prompt)).labels) - 1
    full = builder.build(replace(ROW, text="a" * (448 - used), prompt=prompt))
    assert len(full.labels) == len(full.decoder_input_ids) == 448
    assert full.labels[-1] == builder.end_id
    with pytest.raises(TooLongError, match="449 label positions, the model has 448") as e:
        builder.build(replace(ROW, text="a" * (449 - used), prompt=prompt))
    assert e.value.reason.code == "T04"


@pytest.mark.parametrize("token", ["<|en|>", "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|0.00|>"])
def test_control_tokens_in_a_text_are_refused(token: str, builder: LabelBuilder, timed_builder: LabelBuilder) -> None:
    for row in (replace(ROW, text=f"one{token}two"), replace(ROW, prompt=f"{token}")):
        with pytest.raises(LabelError, match="control token") as e:
            builder.build(row)
        assert token in str(e.value)
        assert e.value.reason.code == "T07"
    with pytest.raises(LabelError, match="control token"):
        timed_builder.build(replace(ROW, segments=(Segment(0, 1, token),)))


def test_what_only_looks_like_a_control_token_is_text(builder: LabelBuilder) -> None:
    for text in ("<|xx|>", "< |en| >", "<|en", "|> 5 < 6"):
        ids = builder.build(replace(ROW, text=text)).labels
        assert builder.tokenizer.decode(ids, skip_special_tokens=True) == f" {text}"


def test_special_id_refuses_what_the_tokenizer_does_not_have(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whisper's unknown token is `<|endoftext|>`: asked by name alone, a missing language would end every text."""
    assert tokenizer.convert_tokens_to_ids("<|klingon|>") == tokenizer.eos_token_id
    for token in ("<|klingon|>", "<|30.02|>", "qq"):
        with pytest.raises(ValueError, match="has no token"):
            special_id(tokenizer, token)
    assert special_id(tokenizer, "<|endoftext|>") == tokenizer.eos_token_id


def test_a_language_that_the_tokenizer_lacks_is_a_fault_of_the_row() -> None:
    """Models before large-v3 have no Cantonese; such a row is quarantined, the others are trained on."""
    whole = learn_tokenizer(["one"], unit="character", vocabulary_size=300)
    tokens = [token for token in whole.get_added_vocab() if token not in ("<|yue|>", "<|endoftext|>")]
    vocabulary = {k: v for k, v in whole.get_vocab().items() if k not in whole.get_added_vocab()}
    older = WhisperTokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=tokens, pad_token="<|endoftext|>", model_max_length=448
    )
    builder = LabelBuilder(older, max_positions=448)
    assert builder.build(ROW).num_label_tokens > 4
    with pytest.raises(MissingLanguageError, match=r"<\|yue\|>") as e:
        builder.build(replace(ROW, language="yue"))
    assert e.value.reason.code == "T08"


def test_a_tokenizer_that_is_not_whispers_is_refused() -> None:
    plain = WhisperTokenizer(vocab={"a": 0}, merges=[])
    with pytest.raises(ValueError, match="not Whisper's"):
        LabelBuilder(plain, max_positions=448)


def test_special_tokens_stand_in_the_order_of_large_v3() -> None:
    """Golden distances of openai/whisper-large-v3: endoftext 50257 ... 30.00 s 51865."""
    tokenizer = learn_tokenizer(["one two three"], unit="bpe", vocabulary_size=300)
    end = special_id(tokenizer, "<|endoftext|>")
    golden = {
        "<|startoftranscript|>": 50258,
        "<|en|>": 50259,
        "<|su|>": 50357,
        "<|yue|>": 50358,
        "<|translate|>": 50359,
        "<|transcribe|>": 50360,
        "<|startoflm|>": 50361,
        "<|startofprev|>": 50362,
        "<|nospeech|>": 50363,
        "<|notimestamps|>": 50364,
        "<|0.00|>": 50365,
        "<|30.00|>": 51865,
    }
    for token, index in golden.items():
        assert special_id(tokenizer, token) - end == index - 50257, token
    assert len(tokenizer) - 1 == special_id(tokenizer, "<|30.00|>")
    builder = LabelBuilder(tokenizer, max_positions=448)
    reference = copy.deepcopy(tokenizer)
    for code in LANGUAGE_CODES:
        reference.set_prefix_tokens(language=code, task="translate", predict_timestamps=False)
        assert builder.prefix_ids(code, "translate") == reference.prefix_tokens
