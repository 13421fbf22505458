"""Do timestamps and long recordings survive? A fine-tuned model easily forgets them; it is named, with what works.

A long recording is read by predicted times, and cut at quiet points. Where joined clips are the recording, it is known
where each begins, and what the model hears in each alone; such a recording is also cut into pieces no longer than its
clips, which is what a model reads that was fine-tuned on short clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.audio import SAMPLING_RATE
from data.features import MAX_WINDOW_S
from infer.artefact import Artefact
from infer.decode_settings import DecodeSettings
from infer.gate.clips import LongRecording
from infer.score.normalise import headline_metric
from infer.score.rates import tally
from infer.transcriber import Transcriber
from infer.transcript import Transcript

MIN_COVERAGE = 0.5
"""Share of the windows with a timed segment below which times are lost."""
MIN_STARTS_HIT = 0.5
"""Share of the true starts below which times are made up."""
NEAR_S = 0.5
"""A predicted start this near to the true one hits it."""


@dataclass(frozen=True)
class Way:
    """How one way of decoding read the recording."""

    name: str
    settings: str
    """What to type."""
    error: float | None
    """The headline rate of its language; None where what is said is not known."""
    coverage: float
    """Share of the windows that gave timed segments."""
    starts_hit: float | None
    """Share of the true starts that a segment begins at, within half a second; None where they are not known."""
    num_segments: int
    has_times: bool
    """Whether times were asked for."""


@dataclass(frozen=True)
class LongReading:
    """What one model made of a long recording."""

    ways: tuple[Way, ...]
    clips_error: float | None
    """The same rate over the joined clips one by one, which is what a long recording is held against."""

    def times_work(self, tolerance: float) -> bool:
        """Whether predicted times are there, are true where that can be told, and cost no text."""
        by_times = self.ways[0]
        return (
            by_times.coverage >= MIN_COVERAGE
            and (by_times.starts_hit is None or by_times.starts_hit >= MIN_STARTS_HIT)
            and self._is_read(by_times, tolerance)
        )

    def working(self, tolerance: float) -> list[Way]:
        """Return the ways that read the recording as well as they should, the best first."""
        found = [
            way
            for way in self.ways
            if self._is_read(way, tolerance) and (not way.has_times or self.times_work(tolerance))
        ]
        return sorted(found, key=lambda way: way.error or 0.0)

    def _is_read(self, way: Way, tolerance: float) -> bool:
        known = [other.error for other in self.ways if other.error is not None]
        target = self.clips_error if self.clips_error is not None else min(known, default=None)
        return way.error is None or target is None or way.error <= target + tolerance

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"clips_error": self.clips_error, "ways": [vars(way) for way in self.ways]}


def read_long(
    artefact: Artefact, recording: LongRecording, decoding: DecodeSettings, *, batch_size: int
) -> LongReading:
    """Read a recording in every way.

    Args:
        artefact: that is judged.
        recording: over 30 s.
        decoding: the profile; times and long form are set here.
        batch_size: windows at once.
    """
    plain = replace(decoding, language=recording.language, condition_on_previous_text=False)
    settings = {
        "by times": replace(plain, timestamps=True, long_form="sequential"),
        "cut, with times": replace(plain, timestamps=True, long_form="chunked"),
        "cut": replace(plain, timestamps=False, long_form="chunked"),
    }
    if recording.clips:
        settings["cut short"] = replace(settings["cut"], piece_s=_length_of_clips(recording))
    ways = []
    for name, way in settings.items():
        (transcript,) = Transcriber(artefact, way, batch_size=batch_size).transcribe([recording.waveform])
        ways.append(_measure(name, way, transcript, recording))
    clips_error = None
    if recording.clips and recording.text is not None:
        heard = Transcriber(artefact, settings["cut"], batch_size=batch_size).transcribe(list(recording.clips))
        clips_error = _error(recording.text, " ".join(transcript.text for transcript in heard), recording.language)
    return LongReading(tuple(ways), clips_error)


def _length_of_clips(recording: LongRecording) -> float:
    """Return whole seconds that hold any of the joined clips, at most 30."""
    longest_s = max(len(clip) for clip in recording.clips) / SAMPLING_RATE
    return float(min(MAX_WINDOW_S, max(1, math.ceil(longest_s))))


def _measure(name: str, settings: DecodeSettings, transcript: Transcript, recording: LongRecording) -> Way:
    timed = [window for window in transcript.windows if window.segments and not window.no_speech]
    starts = [segment.start_s for segment in transcript.segments] if settings.timestamps else []
    hits = None
    if recording.starts_s and settings.timestamps:
        hits = sum(any(abs(start - true) <= NEAR_S for start in starts) for true in recording.starts_s)
    return Way(
        name=name,
        settings=_what_to_type(settings),
        error=None if recording.text is None else _error(recording.text, transcript.text, recording.language),
        coverage=len(timed) / max(1, len(transcript.windows)),
        starts_hit=None if hits is None else hits / len(recording.starts_s),
        num_segments=len(starts),
        has_times=settings.timestamps,
    )


def _what_to_type(settings: DecodeSettings) -> str:
    typed = f"decoding.timestamps={str(settings.timestamps).lower()} decoding.long_form={settings.long_form}"
    return typed if settings.piece_s == MAX_WINDOW_S else f"{typed} decoding.piece_s={settings.piece_s:g}"


def _error(reference: str, hypothesis: str, language: str) -> float | None:
    counts = tally([reference], [hypothesis], [language])
    return (counts.words if headline_metric(language) == "wer" else counts.characters).rate


def judge_times(tuned: LongReading, base: LongReading | None, *, tolerance: float) -> dict[str, Any]:
    """Compare what became of times and of long recordings.

    Args:
        tuned: of the artefact.
        base: of the model that was fine-tuned; None where it is not known.
        tolerance: error that a long recording may cost, as a fraction.

    Returns:
        `times` and `long_form`, each `works`, `lost` or `absent`; `is_lost`; a `sentence`; `works`, what to type; and
        the figures. Lost is what the base can do; what it cannot either is absent, and no fault of the training.
    """
    times = _level(tuned.times_work(tolerance), None if base is None else base.times_work(tolerance))
    long_form = _level(bool(tuned.working(tolerance)), None if base is None else bool(base.working(tolerance)))
    works = [way.settings for way in tuned.working(tolerance)]
    return {
        "times": times,
        "long_form": long_form,
        "is_lost": "lost" in (times, long_form),
        "sentence": _sentence(times, long_form, works, base_known=base is not None),
        "works": works,
        "tuned": tuned.describe(),
        "base": None if base is None else base.describe(),
    }


def _level(has: bool, had: bool | None) -> str:
    return "works" if has else "lost" if had else "absent"


def _sentence(times: str, long_form: str, works: Sequence[str], *, base_known: bool) -> str:
    of_base = "its base has none either" if base_known else "whether its base has them is not known"
    about_times = {
        "works": "Timestamps work",
        "lost": "The model lost its timestamps in training, its base still has them",
        "absent": f"The model has no timestamps, {of_base}",
    }[times]
    if works:
        return f"{about_times}. Long recordings: {works[0]}."
    again = "its base reads them" if long_form == "lost" else "its base does not either" if base_known else ""
    reason = f"; {again}" if again else ""
    return (
        f"{about_times}. It does not read recordings longer than what it was trained on{reason}: give it clips, or "
        "train with dataset.pack=true or on recordings with segments."
    )
