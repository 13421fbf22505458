"""Rates are those of jiwer at corpus level, defined also where references are empty, and blind to the order."""

import dataclasses
import json
import random

import jiwer
import pytest

from infer.score.normalise import normalise
from infer.score.rates import EditCounts, Tally, compute_rates, count_edits, tally

WORDS = ["ja", "Nein,", "gut", "Straße", "der", "die", "das", "Hund.", "läuft", "schnell"]


def _random_corpus(rng: random.Random, *, min_words: int) -> tuple[list[str], list[str]]:
    """Return references and hypotheses that share some words, of `min_words` to 8 words."""
    references, hypotheses = [], []
    for _ in range(rng.randint(1, 6)):
        words = rng.choices(WORDS, k=rng.randint(min_words, 8))
        heard = [w for w in words if rng.random() > 0.2]
        heard = [rng.choice(WORDS) if rng.random() < 0.2 else w for w in heard]
        if rng.random() < 0.4:
            heard.insert(rng.randint(0, len(heard)), rng.choice(WORDS))
        references.append(" ".join(words))
        hypotheses.append(" ".join(heard))
    return references, hypotheses


def _levenshtein(left: list[str], right: list[str]) -> int:
    """Edit distance by the textbook recurrence, to judge jiwer and us by a third."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


@pytest.mark.parametrize("seed", range(100))
def test_agrees_with_jiwer_on_random_corpora(seed: int) -> None:
    references, hypotheses = _random_corpus(random.Random(seed), min_words=1)
    rates = compute_rates(references, hypotheses, ["de"] * len(references))
    references_norm = [normalise(text, "de") for text in references]
    hypotheses_norm = [normalise(text, "de") for text in hypotheses]

    words = jiwer.process_words(references_norm, hypotheses_norm)
    assert rates.wer == pytest.approx(words.wer, abs=1e-12)
    assert (rates.substitutions, rates.deletions, rates.insertions) == (
        words.substitutions,
        words.deletions,
        words.insertions,
    )
    assert rates.cer == pytest.approx(jiwer.process_characters(references_norm, hypotheses_norm).cer, abs=1e-12)
    assert rates.wer_ortho == pytest.approx(jiwer.process_words(references, hypotheses).wer, abs=1e-12)
    assert rates.cer_ortho == pytest.approx(jiwer.process_characters(references, hypotheses).cer, abs=1e-12)
    assert rates.num_words == sum(len(text.split()) for text in references_norm)
    assert rates.num_characters == sum(len(text) for text in references_norm)
    assert rates.num_utterances == len(references)


@pytest.mark.parametrize("seed", range(30))
def test_agrees_with_the_textbook_also_with_empty_references(seed: int) -> None:
    references, hypotheses = _random_corpus(random.Random(1000 + seed), min_words=0)
    counts = count_edits(references, hypotheses, unit="word")
    pairs = list(zip(references, hypotheses, strict=True))
    assert counts.num_edits == sum(_levenshtein(r.split(), h.split()) for r, h in pairs)
    assert counts.num_units == sum(len(r.split()) for r in references)
    assert count_edits(references, hypotheses, unit="character").num_edits == sum(
        _levenshtein(list(r), list(h)) for r, h in pairs
    )


def test_the_words_on_an_empty_reference_are_insertions() -> None:
    rates = compute_rates(["", "one cat"], ["thank you", "one cat"], ["de", "de"])
    assert (rates.substitutions, rates.deletions, rates.insertions) == (0, 0, 2)
    assert rates.wer == 2 / 2
    assert rates.num_utterances == 2


def test_a_reference_that_normalises_to_nothing_is_empty_only_after_the_normaliser() -> None:
    rates = compute_rates(["…", "ja"], ["bitte", "ja"], ["de", "de"])
    assert rates.wer == 1.0  # one insertion over one word
    assert rates.wer_ortho == 0.5  # one substitution over two


@pytest.mark.parametrize("hypothesis", ["", "thank you for watching"])
def test_no_reference_unit_gives_none_and_not_nan(hypothesis: str) -> None:
    rates = compute_rates([""], [hypothesis], ["de"])
    assert (rates.wer, rates.cer, rates.wer_ortho, rates.cer_ortho) == (None, None, None, None)
    assert rates.insertions == len(hypothesis.split())
    json.dumps(dataclasses.asdict(rates), allow_nan=False)


def test_no_utterance_at_all_is_no_error() -> None:
    assert tally([], [], []) == Tally()


def test_an_empty_hypothesis_deletes_every_word() -> None:
    rates = compute_rates(["ein Hund läuft"], [""], ["de"])
    assert (rates.wer, rates.deletions) == (1.0, 3)


def test_a_rate_may_exceed_one() -> None:
    assert compute_rates(["ja"], ["nein nein nein"], ["de"]).wer == 3.0


def test_the_corpus_rate_is_not_the_mean_of_rates() -> None:
    references = ["ja", "eins zwei drei vier fünf sechs sieben acht neun"]
    hypotheses = ["nein", references[1]]
    assert compute_rates(references, hypotheses, ["de", "de"]).wer == 1 / 10  # the mean of 1/1 and 0/9 is 1/2


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_utterances_has_no_influence(seed: int) -> None:
    rng = random.Random(seed)
    references, hypotheses = _random_corpus(rng, min_words=0)
    rows = [*zip(references, hypotheses, ["de"] * len(references), strict=True), ("你好", "你 号", "zh")]
    expected = compute_rates(*(list(column) for column in zip(*rows, strict=True)))
    rng.shuffle(rows)
    assert compute_rates(*(list(column) for column in zip(*rows, strict=True))) == expected


def test_languages_are_pooled_by_their_counts() -> None:
    german = tally(["ein Hund"], ["ein Hut"], ["de"])
    russian = tally(["ещё мой йод тут"], ["еще мои йод тут"], ["ru"])
    both = compute_rates(["ein Hund", "ещё мой йод тут"], ["ein Hut", "еще мои йод тут"], ["de", "ru"])
    assert (german + russian).rates == both
    assert both.wer == 2 / 6
    assert both.wer_ortho == 3 / 6  # before the normaliser, ё against е counts


def test_a_text_without_spaces_is_one_word() -> None:
    rates = compute_rates(["今天天气很好", "再见"], ["今天天气很号", "再见"], ["zh", "zh"])
    assert (rates.num_words, rates.wer) == (2, 0.5)
    assert (rates.num_characters, rates.cer) == (8, 1 / 8)


def test_any_whitespace_separates_words() -> None:
    assert count_edits(["a\tb\u00a0c\n"], ["a b  c"], unit="word") == EditCounts(num_units=3)


def test_lengths_that_differ_are_refused_with_their_numbers() -> None:
    with pytest.raises(ValueError, match="2 references, 1 hypotheses and 2 languages"):
        compute_rates(["a", "b"], ["a"], ["de", "de"])
