"""One utterance as it was written and heard, and what was counted on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from infer.score.alignment import PairCounts, Unit, count_pair, split_units
from infer.score.normalise import Metric, headline_metric, normalise
from infer.score.signs import find_signs

TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class Prediction:
    """One utterance as it was written and as the model heard it."""

    id: str
    language: str
    """ISO code from the manifest; it picks the normaliser."""
    detected_language: str | None
    """ISO code the model chose by itself; None where the language was given to it."""
    reference: str
    hypothesis: str
    duration_s: float
    """Seconds of audio."""
    task: str = "transcribe"
    """`translate` where the reference is English and the speech is in `language`."""
    speaker: str | None = None
    """Utterances of one voice are drawn together; None where it is not known."""
    test_set: str | None = None
    """The held-out set, or domain, that it comes from."""
    no_speech: bool = False
    """Nothing is said, and the reference is empty on purpose: whatever was heard is an insertion."""
    loudness_dbfs: float | None = None
    """Level of the speech in dB of full scale; None where it was not measured."""
    snr_db: float | None = None
    """Speech over background, in dB; None where it was not measured."""
    is_cut: bool = False
    """True if decoding reached the token limit, so that the text may lack its end."""

    @property
    def text_language(self) -> str:
        """Language of the texts: that of the speech, or English where it was translated."""
        return "en" if self.task == "translate" else self.language


@dataclass(frozen=True, slots=True)
class Utterance:
    """A prediction with its normalised texts and its edits."""

    prediction: Prediction
    metric: Metric
    """The rate that its language is judged by."""
    reference_norm: str
    hypothesis_norm: str
    words: PairCounts
    """Edits in the normalised texts."""
    characters: PairCounts
    signs: tuple[str, ...]
    """Signs of a hallucination, names of `infer.score.signs`."""

    @property
    def counts(self) -> PairCounts:
        """Edits in the unit that the language is judged by."""
        return self.words if self.metric == "wer" else self.characters

    @property
    def num_edits(self) -> int:
        """Substitutions, deletions and insertions, in that unit."""
        counts = self.counts
        return counts.substitutions + counts.deletions + counts.insertions

    @property
    def unit(self) -> Unit:
        """What an edit is one of."""
        return "word" if self.metric == "wer" else "character"


def count_utterance(prediction: Prediction) -> Utterance:
    """Normalise both texts and count the edits between them."""
    reference = normalise(prediction.reference, prediction.text_language)
    # most are right, and normalising is most of the work
    is_same = prediction.hypothesis == prediction.reference
    hypothesis = reference if is_same else normalise(prediction.hypothesis, prediction.text_language)
    metric = headline_metric(prediction.text_language)
    words = count_pair(split_units(reference, "word"), split_units(hypothesis, "word"))
    characters = count_pair(reference, hypothesis)
    return Utterance(
        prediction=prediction,
        metric=metric,
        reference_norm=reference,
        hypothesis_norm=hypothesis,
        words=words,
        characters=characters,
        signs=find_signs(
            reference,
            hypothesis,
            unit="word" if metric == "wer" else "character",
            longest_insertion=(words if metric == "wer" else characters).longest_insertion,
            no_speech=prediction.no_speech,
            is_cut=prediction.is_cut,
        ),
    )


def verify_predictions(predictions: Sequence[Prediction]) -> None:
    """Refuse what would make a figure meaningless.

    Raises:
        ValueError: if there is no prediction, an id comes twice, a reference is empty though something is said, some
            are transcribed and some translated, or a number is not finite.
    """
    if not predictions:
        raise ValueError("there are no predictions to score; see that dataset.test names a set with at least one clip")
    id_, count = Counter(p.id for p in predictions).most_common(1)[0]
    if count > 1:
        raise ValueError(f"id {id_!r} comes {count} times in the predictions; every utterance needs an id of its own")
    first = predictions[0]
    for prediction in predictions:
        if prediction.task != first.task:
            raise ValueError(
                f"{first.id!r} has the task {first.task} and {prediction.id!r} {prediction.task}; error rates and BLEU "
                "have no common score, so evaluate one task at a time"
            )
        if prediction.task not in TASKS:
            raise ValueError(f"task={prediction.task!r} of {prediction.id!r} must be one of {', '.join(TASKS)}")
        if not (math.isfinite(prediction.duration_s) and prediction.duration_s >= 0):
            raise ValueError(f"duration_s={prediction.duration_s} of {prediction.id!r} is no time; give seconds")
        if prediction.no_speech and prediction.reference.strip():
            raise ValueError(f"{prediction.id!r} has a reference, {prediction.reference!r}, and no_speech; drop one")
        if not prediction.no_speech and not prediction.reference.strip():
            raise ValueError(
                f"the reference of {prediction.id!r} is empty; write what is said, "
                "or no_speech: true if nothing is said, or take it out of the set"
            )
        for name in ("loudness_dbfs", "snr_db"):
            value = getattr(prediction, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name}={value} of {prediction.id!r} is no level; give dB, or None")
