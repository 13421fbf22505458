"""Generated text of two programs over the same clips: how many are identical, and what does the difference cost?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.rows import Row
from infer.score.normalise import headline_metric
from infer.score.rates import Tally, tally
from infer.score.utterances import Prediction, count_utterance

LOOPS = ("repetition", "compression", "cut")
"""Signs of a text that loops."""


@dataclass(frozen=True)
class TextDifference:
    """Of texts from their reference program."""

    num_clips: int
    num_identical: int
    wer: float
    """Theirs less the reference's, as a fraction, over the languages that are judged by words."""
    cer: float
    num_words: int
    num_characters: int
    new_faults: tuple[str, ...]
    """Ids of clips where only they are empty, or loop."""

    @property
    def identical(self) -> float:
        """Share of identical texts."""
        return self.num_identical / max(1, self.num_clips)

    def loss_of_words(self, tolerance: float) -> bool:
        """Whether WER differs by more than the tolerance, and by more than one word."""
        return abs(self.wer) > max(tolerance, 1 / max(1, self.num_words)) + 1e-12

    def loss_of_characters(self, tolerance: float) -> bool:
        """Whether CER differs by more than the tolerance, and by more than one character."""
        return abs(self.cer) > max(tolerance, 1 / max(1, self.num_characters)) + 1e-12

    def describe(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {**asdict(self), "identical": self.identical, "new_faults": list(self.new_faults)}


def compare_texts(reference: Sequence[Prediction], other: Sequence[Prediction]) -> TextDifference:
    """Compare two lists of predictions of the same clips, clip by clip.

    Raises:
        ValueError: if they are not of the same clips.
    """
    theirs = {p.id: p for p in other}
    if theirs.keys() != {p.id for p in reference}:
        missing = sorted({p.id for p in reference} ^ theirs.keys())
        raise ValueError(f"the texts are of other clips: {missing[0]!r} is on one side alone")
    pairs = [(p, theirs[p.id]) for p in reference]
    # Where words are written without spaces a whole sentence counts as one, so WER is that of the other languages.
    with_words = [pair for pair in pairs if headline_metric(pair[0].text_language) == "wer"]
    old, new = (_tally([pair[side] for pair in pairs]) for side in (0, 1))
    old_words, new_words = (_tally([pair[side] for pair in with_words]) for side in (0, 1))
    return TextDifference(
        num_clips=len(pairs),
        num_identical=sum(a.hypothesis == b.hypothesis for a, b in pairs),
        wer=(new_words.words.rate or 0.0) - (old_words.words.rate or 0.0),
        cer=(new.characters.rate or 0.0) - (old.characters.rate or 0.0),
        num_words=new_words.words.num_units,
        num_characters=new.characters.num_units,
        new_faults=tuple(b.id for a, b in pairs if _is_faulty(b) and not _is_faulty(a)),
    )


def _tally(predictions: Sequence[Prediction]) -> Tally:
    return tally(
        [p.reference for p in predictions],
        [p.hypothesis for p in predictions],
        [p.text_language for p in predictions],
    )


def _is_faulty(prediction: Prediction) -> bool:
    if not prediction.hypothesis.strip():
        return not prediction.no_speech
    return any(sign in LOOPS for sign in count_utterance(prediction).signs)


def predictions_of(rows: Sequence[Row], texts: Mapping[str, str], languages: Mapping[str, Any]) -> list[Prediction]:
    """Return predictions from the texts of a program by clip.

    Raises:
        ValueError: if a clip has no text.
    """
    lacking = [row.id for row in rows if row.id not in texts]
    if lacking:
        raise ValueError(f"{len(lacking)} of {len(rows)} clips have no text, such as {lacking[0]!r}")
    return [
        Prediction(
            id=row.id,
            language=row.language,
            detected_language=languages.get(row.id),
            reference=row.text,
            hypothesis=texts[row.id],
            duration_s=row.duration_s or 0.0,
            task=row.task,
            speaker=row.speaker or None,
            no_speech=row.no_speech,
        )
        for row in rows
    ]
