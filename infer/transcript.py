"""What a recording says, joined from its windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from data.texts import join_texts
from infer.decoding import Decoded, judged
from infer.sequential import SequentialRecording
from infer.subtitles import Segment
from infer.word_times import fit_segment, moved


@dataclass(frozen=True)
class Transcript:
    """What a recording says."""

    text: str
    language: str
    """ISO code; of the first piece, where a recording was cut into several."""
    detected_language: str
    language_probability: float
    duration_s: float
    segments: tuple[Segment, ...]
    is_cut: bool
    """True if decoding reached the token limit somewhere; the text may then lack its end."""
    windows: tuple[Decoded, ...] = field(default=(), compare=False, repr=False)
    """What each window said, in order, and how sure the model was of it."""

    @property
    def is_detected(self) -> bool:
        """Whether the language was detected, and not only given."""
        return not math.isnan(self.language_probability)


def join_sequential(recording: SequentialRecording) -> Transcript:
    """Return what a recording says that was read by predicted times."""
    first = recording.windows[0]
    return Transcript(
        text=join_texts((segment.text for segment in recording.segments), first.language),
        language=first.language,
        detected_language=first.detected_language,
        language_probability=first.language_probability,
        duration_s=recording.duration_s,
        segments=tuple(recording.segments),
        is_cut=any(decoded.is_cut for decoded in recording.windows),
        windows=tuple(recording.windows),
    )


def join_pieces(parts: Sequence[tuple[float, float, Decoded]], duration_s: float) -> Transcript:
    """Return what a recording says that was cut into pieces.

    Args:
        parts: (start in seconds, end in seconds, what it says) of each piece, in order.
        duration_s: of the recording.
    """
    first = parts[0][2]
    segments: list[Segment] = []
    last_end_s = 0.0
    for start_s, piece_end_s, decoded in parts:
        end_s = min(piece_end_s, duration_s)
        for segment in _segments_of(decoded, start_s, end_s):
            fitted = segment
            if decoded.alignment is not None:
                fitted = fit_segment(segment, segment.words, median_s=decoded.alignment.median_s, last_end_s=last_end_s)
                last_end_s = fitted.words[-1].end_s if fitted.words else last_end_s
            segments.append(fitted)
    return Transcript(
        text=join_texts((decoded.text for _, _, decoded in parts if decoded.text), first.language),
        language=first.language,
        detected_language=first.detected_language,
        language_probability=first.language_probability,
        duration_s=duration_s,
        segments=tuple(segments),
        is_cut=any(decoded.is_cut for _, _, decoded in parts),
        windows=tuple(decoded for _, _, decoded in parts),
    )


def _segments_of(decoded: Decoded, start_s: float, end_s: float) -> Iterator[Segment]:
    """Yield the segments of a piece in seconds of the recording; without any, the piece is one."""
    if not decoded.segments and decoded.text:
        words = () if decoded.alignment is None else moved(decoded.alignment.all(), start_s, end_s=end_s)
        yield judged(Segment(start_s, end_s, decoded.text, words=words), decoded)
    for segment in decoded.segments:
        yield replace(
            segment,
            start_s=min(start_s + segment.start_s, end_s),
            end_s=min(start_s + segment.end_s, end_s),
            words=moved(segment.words, start_s, end_s=end_s),
        )
