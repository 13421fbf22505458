"""Word and character error rates of a corpus: all edits over all reference units, never a mean of rates.

Counts are additive, rates are not. `Tally` holds counts, so the rates of several languages together are those of the
sum of their tallies, and a statistic over utterances can add them up in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infer.score.alignment import PairCounts, Unit, count_pair, split_units
from infer.score.normalise import normalise

Counts = npt.NDArray[np.int32]
"""(N, 5) for N utterances, the fields of `PairCounts`."""


@dataclass(frozen=True)
class EditCounts:
    """Edits of a minimal alignment, and the reference units they are counted against."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    num_units: int = 0
    """Words or characters in the references."""

    @property
    def num_edits(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Edits per reference unit, as a fraction that may exceed 1; None where there is no reference unit."""
        return self.num_edits / self.num_units if self.num_units else None

    def __add__(self, other: "EditCounts") -> "EditCounts":
        return EditCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.num_units + other.num_units,
        )


@dataclass(frozen=True)
class Rates:
    """Corpus-level error rates as fractions; None where there is nothing to divide by (NaN is not JSON)."""

    wer: float | None
    """After the normaliser."""
    cer: float | None
    """After the normaliser; single spaces between words count as characters."""
    wer_ortho: float | None
    """Before the normaliser, with capitals and punctuation."""
    cer_ortho: float | None
    """Before the normaliser."""
    substitutions: int
    """Words, after the normaliser; likewise deletions and insertions."""
    deletions: int
    insertions: int
    num_words: int
    """In the normalised references."""
    num_characters: int
    """In the normalised references."""
    num_utterances: int


@dataclass(frozen=True)
class Tally:
    """Edit counts of some utterances at all four levels; add two to pool them."""

    words: EditCounts = EditCounts()
    characters: EditCounts = EditCounts()
    words_ortho: EditCounts = EditCounts()
    characters_ortho: EditCounts = EditCounts()
    num_utterances: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.words + other.words,
            self.characters + other.characters,
            self.words_ortho + other.words_ortho,
            self.characters_ortho + other.characters_ortho,
            self.num_utterances + other.num_utterances,
        )

    @property
    def rates(self) -> Rates:
        """The corpus-level rates of these counts."""
        return Rates(
            wer=self.words.rate,
            cer=self.characters.rate,
            wer_ortho=self.words_ortho.rate,
            cer_ortho=self.characters_ortho.rate,
            substitutions=self.words.substitutions,
            deletions=self.words.deletions,
            insertions=self.words.insertions,
            num_words=self.words.num_units,
            num_characters=self.characters.num_units,
            num_utterances=self.num_utterances,
        )


def compute_rates(references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str]) -> Rates:
    """Compute the pooled error rates of a corpus, as fractions.

    In a language written without spaces the normalised text has none, so the word-level rate takes each utterance for
    one word: it is then the share of sentences with an error, and not the headline (see `headline_metric`).

    Args:
        references: texts as written; an empty one adds no unit, and every word of its hypothesis is an insertion.
        hypotheses: texts as decoded, in the order of `references`.
        languages: ISO code of each utterance, in the same order.

    Raises:
        ValueError: if the three differ in length, or a language is not a code.
    """
    return tally(references, hypotheses, languages).rates


def tally(references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str]) -> Tally:
    """Count the edits behind `compute_rates`; arguments and errors as there."""
    if not len(references) == len(hypotheses) == len(languages):
        raise ValueError(
            f"found {len(references)} references, {len(hypotheses)} hypotheses and {len(languages)} languages; "
            "give one of each per utterance, in the same order"
        )
    references_norm = [normalise(text, language) for text, language in zip(references, languages, strict=True)]
    hypotheses_norm = [normalise(text, language) for text, language in zip(hypotheses, languages, strict=True)]
    return Tally(
        words=count_edits(references_norm, hypotheses_norm, unit="word"),
        characters=count_edits(references_norm, hypotheses_norm, unit="character"),
        words_ortho=count_edits(references, hypotheses, unit="word"),
        characters_ortho=count_edits(references, hypotheses, unit="character"),
        num_utterances=len(references),
    )


def count_edits(references: Sequence[str], hypotheses: Sequence[str], *, unit: Unit) -> EditCounts:
    """Count the edits from references to hypotheses, summed over utterances; arguments as `count_each`."""
    return add_up(count_each(references, hypotheses, unit=unit))


def count_each(references: Sequence[str], hypotheses: Sequence[str], *, unit: Unit) -> Counts:
    """Count the edits from each reference to its hypothesis; the sums are those of jiwer.

    Texts are compared as they are, except for whitespace at the ends, and, in words, its amount between them.

    Args:
        references: one text per utterance; an empty one adds no unit, and all that was heard is inserted (jiwer gives
            the number of insertions as the rate of a corpus without reference words).
        hypotheses: in the order of `references`.
        unit: what is aligned; spaces count as characters.
    """
    counts = np.empty((len(references), len(PairCounts._fields)), np.int32)
    for i, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        counts[i] = count_pair(split_units(reference, unit), split_units(hypothesis, unit))
    return counts


def add_up(counts: Counts) -> EditCounts:
    """Add up the counts of utterances."""
    return EditCounts(*(int(total) for total in counts[:, :4].sum(axis=0, dtype=np.int64)))
