"""What one window says, as every runtime returns it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from infer.subtitles import Segment
from infer.word_times import Alignment


@dataclass(frozen=True)
class Decoded:
    """What one window says."""

    text: str
    language: str
    """Language that the text was decoded in."""
    detected_language: str
    """The likeliest; `language` where `detect_language` is off and nothing was detected."""
    language_probability: float
    """Of `detected_language`, among all languages of the model; NaN where nothing was detected."""
    segments: tuple[Segment, ...]
    """Timed parts; empty without timestamps."""
    is_cut: bool
    """True if the token limit was reached before the end of the text."""
    tokens: tuple[int, ...] = ()
    """Text and times as they were said, without the end."""
    avg_logprob: float = 0.0
    """Mean a token, in nats."""
    no_speech_prob: float | None = None
    """Of `<|nospeech|>` in place of the language; None where it was not looked at."""
    compression_ratio: float = 0.0
    """Of the text; above 2.4 it repeats itself."""
    temperature: float = 0.0
    """At which the text was found."""
    no_speech: bool = False
    """True if the window was taken for silence; the text is then empty."""
    alignment: Alignment | None = None
    """When its words are said; None where that was not asked for, or nothing is said."""


def judged(segment: Segment, decoded: Decoded) -> Segment:
    """Write beside a segment how sure the model was of the window that it stands in."""
    return replace(
        segment,
        avg_logprob=decoded.avg_logprob,
        no_speech_prob=decoded.no_speech_prob,
        compression_ratio=decoded.compression_ratio,
        temperature=decoded.temperature,
    )
