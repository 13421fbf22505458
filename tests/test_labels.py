"""The start token is given once and never predicted; language, task, text and end carry loss, the prompt does not.

Times are written as Whisper's tokenizer reads them, a straddling segment with its start alone; what has no speech is
told where decoders look for it; and a row that is said to fit without being tokenized always does.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import normalizers
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
from data.rows import Row, Segment
from train.vocabulary import Unit, learn_tokenizer

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
    space = "" if task == "transcribe" and language in ("zh", "ja", "yue") else " "  # a translation is English
    expected = reference(f"{space}你好 мир one").input_ids
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


def test_a_prompt_gives_way_to_the_text(builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Of 448 positions the text takes what it needs; the prompt gets at most 224, and at the end none."""
    prompt = "".join(chr(ord("a") + i % 26) for i in range(600))
    for num_left, num_kept in ((300, 224), (224, 224), (223, 223), (2, 2), (1, 0), (0, 0)):
        text = "a" * (448 - 4 - 1 - num_left)
        plain, prompted = builder.build(replace(ROW, text=text)), builder.build(replace(ROW, text=text, prompt=prompt))
        assert len(prompted.labels) - len(plain.labels) == num_kept
        assert prompted.labels[num_kept:] == plain.labels
        if num_kept:
            assert prompted.decoder_input_ids[0] == builder.previous_id
            assert tokenizer.decode(prompted.decoder_input_ids[1:num_kept]) == prompt[len(prompt) - num_kept + 1 :]


def test_without_the_prompt_the_labels_are_those_of_a_row_that_has_none(builder: LabelBuilder) -> None:
    assert builder.build(replace(ROW, prompt="three"), with_prompt=False) == builder.build(ROW)


def test_segments_become_timestamp_tokens(builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase) -> None:
    segments = (Segment(0.0, 0.5, " ab "), Segment(0.5, 29.994, "c"))
    labels = builder.build(replace(ROW, segments=segments), with_timestamps=True)
    times = ["<|0.00|>", "Ġ", "a", "b", "<|0.50|>", "<|0.50|>", "Ġ", "c", "<|30.00|>"]
    assert _names(tokenizer, labels.labels) == ["<|en|>", "<|transcribe|>", *times, "<|endoftext|>"]
    assert builder.no_timestamps_id not in labels.decoder_input_ids


def test_the_tokenizer_reads_the_times_as_they_were_written(builder: LabelBuilder, tokenizer: WhisperTokenizer) -> None:
    """Independent reference: `WhisperTokenizer.decode` with timestamps."""
    segments = (Segment(2.0, 4.4, "one"), Segment(4.4, 7.0, "two"), Segment(9.12, 9.5, "你好"))
    row = replace(ROW, offset_s=2.0, duration_s=30.0, segments=segments, open_start_s=30.5)
    ids = builder.build(row, with_timestamps=True).labels
    text = tokenizer.decode(ids, decode_with_timestamps=True)
    spoken = "<|0.00|> one<|2.40|><|2.40|> two<|5.00|><|7.12|> 你好<|7.50|><|28.50|>"
    assert text == f"<|en|><|transcribe|>{spoken}<|endoftext|>"


def test_a_segment_that_straddles_the_border_is_its_start_alone(
    builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase
) -> None:
    row = replace(ROW, text="a", segments=(Segment(0.0, 1.0, "a"),), open_start_s=27.18)
    names = _names(tokenizer, builder.build(row, with_timestamps=True).labels)
    assert names[2:] == ["<|0.00|>", "Ġ", "a", "<|1.00|>", "<|27.18|>", "<|endoftext|>"]
    assert builder.build(row) == builder.build(replace(ROW, text="a"))


def test_times_follow_the_speed_of_the_clip(builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase) -> None:
    row = replace(ROW, offset_s=10.0, segments=(Segment(11.1, 12.2, "a"),), open_start_s=32.0)
    names = _names(tokenizer, builder.build(row, with_timestamps=True, time_scale=1.1).labels)
    assert names[2:] == ["<|1.00|>", "Ġ", "a", "<|2.00|>", "<|20.00|>", "<|endoftext|>"]
    assert builder.build(row, time_scale=1.1) == builder.build(row)


def test_segment_times_count_from_the_beginning_of_the_clip(
    builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase
) -> None:
    row = replace(ROW, offset_s=100.0, segments=(Segment(100.14, 101.28, "a"),))
    names = _names(tokenizer, builder.build(row, with_timestamps=True).labels)
    assert names[2] == "<|0.14|>"
    assert names[-2] == "<|1.28|>"


def test_every_time_step_has_its_token(builder: LabelBuilder) -> None:
    zero = special_id(builder.tokenizer, "<|0.00|>")
    for step in range(1501):
        labels = builder.build(replace(ROW, segments=(Segment(step / 50, 30.0, "a"),)), with_timestamps=True)
        assert labels.labels[2] == zero + step == special_id(builder.tokenizer, f"<|{step / 50:.2f}|>")
        assert labels.labels[-2] == zero + 1500


def test_without_segments_or_without_being_asked_there_are_no_times(builder: LabelBuilder) -> None:
    with_segments = replace(ROW, segments=(Segment(0, 1, "one two"),))
    assert builder.build(ROW, with_timestamps=True) == builder.build(ROW) == builder.build(with_segments)
    assert builder.build(with_segments, with_timestamps=True) != builder.build(with_segments)


@pytest.mark.parametrize(("start_s", "end_s", "offset_s"), [(0.0, 30.02, 0.0), (0.5, 1.0, 0.6), (31.0, 32.0, 0.0)])
def test_a_segment_outside_the_window_is_refused(
    start_s: float, end_s: float, offset_s: float, builder: LabelBuilder
) -> None:
    row = replace(ROW, offset_s=offset_s, segments=(Segment(start_s, end_s, "a"),))
    assert not builder.fits_surely(row)
    for refuse in (lambda: builder.build(row, with_timestamps=True), lambda: builder.verify(row)):
        with pytest.raises(SegmentTimeError, match="outside the clip's window") as e:
            refuse()
        assert e.value.reason.code == "T11"


def test_no_speech_is_told_where_decoders_look_for_it(
    builder: LabelBuilder, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Decoders read `no_speech_prob` behind the start token, and then give language and task in any case.

    There no text may follow; which language silence is in carries no loss.
    """
    row = replace(ROW, text="", no_speech=True)
    prefix = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>"]
    for with_timestamps, last in ((False, "<|notimestamps|>"), (True, "<|0.00|>")):
        labels = builder.build(row, with_timestamps=with_timestamps)
        assert _names(tokenizer, labels.decoder_input_ids) == [*prefix, last]
        assert _names(tokenizer, labels.labels) == ["<|nospeech|>", "-", "-", "<|endoftext|>"]
        prompted = builder.build(replace(row, prompt="ab"), with_timestamps=with_timestamps)
        assert _names(tokenizer, prompted.decoder_input_ids[:4]) == ["<|startofprev|>", "Ġ", "a", "b"]
        assert prompted.labels == (*[IGNORE_INDEX] * 4, *labels.labels)


def test_older_tokenizers_call_it_no_captions(tokenizer: PreTrainedTokenizerBase) -> None:
    older = _tokenizer_with(
        ["<|nocaptions|>" if token == "<|nospeech|>" else token for token in tokenizer.get_added_vocab()]
    )
    builder = LabelBuilder(older, max_positions=448)
    labels = builder.build(replace(ROW, text="", no_speech=True))
    assert labels.labels[0] == special_id(older, "<|nocaptions|>")


@pytest.mark.parametrize("prompt", ["", "abc"])
def test_448_positions_are_the_limit_and_the_text_is_never_cut(prompt: str, builder: LabelBuilder) -> None:
    used = len(builder.build(replace(ROW, text="a")).labels) - 1
    full = builder.build(replace(ROW, text="a" * (448 - used), prompt=prompt))
    assert len(full.labels) == len(full.decoder_input_ids) == 448
    assert full.labels[-1] == builder.end_id
    with pytest.raises(TooLongError, match="449 label positions, the model has 448") as e:
        builder.build(replace(ROW, text="a" * (449 - used), prompt=prompt))
    assert e.value.reason.code == "T04"


@pytest.mark.parametrize("token", ["<|en|>", "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|0.00|>"])
def test_control_tokens_in_a_text_are_refused(token: str, builder: LabelBuilder) -> None:
    timed = replace(ROW, segments=(Segment(0, 1, token),))
    for row in (replace(ROW, text=f"one{token}two"), replace(ROW, prompt=f"{token}"), timed):
        assert not builder.fits_surely(row)
        with pytest.raises(LabelError, match="control token") as e:
            builder.verify(row)
        assert token in str(e.value)
        assert e.value.reason.code == "T07"


def test_every_special_token_of_the_tokenizer_is_found(builder: LabelBuilder) -> None:
    """1600 names behind one expression: no one may hide another, and the longest found is the one that is named."""
    for token in builder.tokenizer.get_added_vocab():
        with pytest.raises(LabelError) as e:
            builder.build(replace(ROW, text=f"one {token}."))
        assert str(e.value).endswith(f" {token}")


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


def _tokenizer_with(special_tokens: list[str]) -> WhisperTokenizer:
    whole = learn_tokenizer(["one"], unit="character", vocabulary_size=300)
    vocabulary = {k: v for k, v in whole.get_vocab().items() if k not in whole.get_added_vocab()}
    tokens = [token for token in special_tokens if token != "<|endoftext|>"]
    return WhisperTokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=tokens, pad_token="<|endoftext|>", model_max_length=448
    )


def test_a_language_that_the_tokenizer_lacks_is_a_fault_of_the_row(tokenizer: PreTrainedTokenizerBase) -> None:
    """Models before large-v3 have no Cantonese; such a row is quarantined, the others are trained on."""
    builder = LabelBuilder(
        _tokenizer_with([token for token in tokenizer.get_added_vocab() if token != "<|yue|>"]), max_positions=448
    )
    assert builder.build(ROW).num_label_tokens > 4
    assert builder.knows("zh")
    assert not builder.knows("yue")
    assert not builder.fits_surely(replace(ROW, language="yue"))
    with pytest.raises(MissingLanguageError, match=r"<\|yue\|>") as e:
        builder.verify(replace(ROW, language="yue"))
    assert e.value.reason.code == "T08"


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """An id that the embedding lacks is an IndexError on a CPU, and stops the device of a GPU."""
    num_ids = len(tokenizer)
    LabelBuilder(tokenizer, max_positions=448, vocabulary_size=num_ids)
    with pytest.raises(ValueError, match=f"ids up to {num_ids - 1}, the model knows {num_ids - 1}: .* model.path="):
        LabelBuilder(tokenizer, max_positions=448, vocabulary_size=num_ids - 1)


def _texts(rng: random.Random, *, num_texts: int) -> Iterator[str]:
    """Texts of every script, length and cut: letters, marks, emoji, runs of spaces and digits, lone joiners."""
    alphabets = [
        "abc def",
        "żółć ",
        "привет ",
        "你好世界",
        "こんにちは",
        "مرحبا ",
        "สวัสดี",
        "မြန်မာ",
        "ᠮᠣᠩ",
        "🐎👩‍🚀",
        "  \u00a0",
        "0129",
        "'s're!?<|",
    ]
    for _ in range(num_texts):
        letters = "".join(rng.sample(alphabets, rng.randint(1, 3)))
        yield "".join(rng.choice(letters) for _ in range(rng.choice([1, 3, 20, 110, 150, 443, 460])))


@pytest.mark.parametrize("unit", ["character", "bpe"])
def test_no_text_has_more_tokens_than_bytes(unit: Unit) -> None:
    """Why a short row need not be tokenized. Holds for what the tokenizer was learnt from and for what it never saw."""
    rng = random.Random(1)
    seen = list(_texts(rng, num_texts=50))
    builder = LabelBuilder(learn_tokenizer(seen, unit=unit, vocabulary_size=500), max_positions=448)
    texts = [*seen, *_texts(rng, num_texts=400)]
    counts = builder.count_tokens(texts)
    for text, count in zip(texts, counts, strict=True):
        if count < 400:
            assert len(builder.build(replace(ROW, text=text)).labels) == count + 4
    assert all(count <= len(f" {text}".encode()) for count, text in zip(counts, texts, strict=True))
    num_sure = 0
    for text in texts:
        row = replace(ROW, text=text, prompt=rng.choice(texts), segments=(Segment(0, 1, text),), open_start_s=2.0)
        if builder.fits_surely(row):
            num_sure += 1
            for with_timestamps in (False, True):
                assert len(builder.build(row, with_timestamps=with_timestamps).labels) <= 448
    assert 100 < num_sure < 400  # both answers were given


def test_the_bound_is_reached(tokenizer: PreTrainedTokenizerBase) -> None:
    """A text of unseen bytes has exactly as many tokens as bytes, so not one byte more may be sure."""
    builder = LabelBuilder(tokenizer, max_positions=448)
    longest = "q" * builder.max_sure_bytes
    assert builder.fits_surely(replace(ROW, text=longest))
    assert len(builder.build(replace(ROW, text=longest)).labels) == 448
    assert not builder.fits_surely(replace(ROW, text=f"{longest}q"))
    with pytest.raises(TooLongError):
        builder.verify(replace(ROW, text=f"{longest}q"))
    timed = replace(ROW, segments=(Segment(0, 1, "q" * 440),), open_start_s=1.0)
    assert len(builder.build(timed, with_timestamps=True).labels) == 447
    assert builder.fits_window(["q" * 440, ""]) is False
    assert builder.fits_window(["q" * 440])
    assert builder.fits_window(["q" * 441])
    assert not builder.fits_window(["q" * 442])


def test_a_tokenizer_that_is_not_byte_level_clears_no_row(tokenizer: PreTrainedTokenizerBase) -> None:
    """A normaliser may lengthen a text; then every row is tokenized."""
    lengthening = copy.deepcopy(tokenizer)
    lengthening.backend_tokenizer.normalizer = normalizers.Replace("x", "xxxxxxxx")
    builder = LabelBuilder(lengthening, max_positions=448)
    assert builder.max_sure_bytes == -1
    assert not builder.fits_surely(ROW)
    builder.verify(ROW)
    with pytest.raises(TooLongError):
        builder.verify(replace(ROW, text="x" * 100))
    assert not builder.fits_window(["x" * 100])


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
