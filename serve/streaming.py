"""Text while somebody still speaks: a growing window, decoded again and again, and cut where nobody speaks.

The core reads no clock and starts no model: it says what to decode next (`next_window`), is told what was heard there
(`take`), and answers with text that is final and text that may still change.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.audio import SAMPLING_RATE, Waveform
from data.texts import LANGUAGES_WITHOUT_SPACES
from infer.longform import cut_at_quiet
from infer.subtitles import Segment
from serve.agreement import Agreement, match_prefix, num_held, split_units
from serve.stream_settings import StreamSettings
from serve.voice import Detector, Span, VoiceActivity, to_samples


@dataclass(frozen=True)
class Window:
    """What to decode next."""

    waveform: Waveform
    """(num_samples,) float32 at 16 kHz; empty where an utterance ends without further sound: nothing to decode then."""
    start: int
    """Of its first sample, counted from the beginning of the stream."""
    is_final: bool
    """Whether all that is heard in it is final; the next window begins behind it."""
    is_end: bool
    """Whether an utterance ends with it."""
    language: str = ""
    """That the utterance has begun in; empty before any of its text is final."""

    @property
    def end(self) -> int:
        """First sample behind it."""
        return self.start + len(self.waveform)


@dataclass(frozen=True)
class Heard:
    """What a model hears in a window."""

    text: str
    language: str
    segments: tuple[Segment, ...] = ()
    """Timed parts that join to the text, in seconds of the window; empty where the model predicts no times."""


@dataclass(frozen=True)
class Update:
    """What a pass changed."""

    delta: str
    """Text that is final from now on; all deltas of an utterance join to its text."""
    tentative: str
    """What follows it, as far as is known; may change."""
    language: str
    start_s: float
    """Where the utterance begins, in seconds of the stream."""
    end_s: float
    """Up to where was heard."""
    text: str
    """Final text of the utterance so far."""
    is_end: bool
    """Whether the utterance is complete."""


class Stream:
    """The text of one stream of sound."""

    def __init__(
        self, settings: StreamSettings | None = None, *, detector: Detector | None = None, start: int = 0
    ) -> None:
        """Begin in silence.

        Args:
            settings: how.
            detector: of voices; Silero's where none is given.
            start: samples that came before, for times.
        """
        self.settings = settings or StreamSettings()
        self._voice = VoiceActivity(detector, start=start)
        self._waveform: Waveform = np.zeros(0, dtype=np.float32)
        self._start = start
        self._passed = 0  # end of the last pass, in samples of the stream
        self._committed: list[str] = []  # final units that were heard in the present window
        self._agreement = Agreement()  # on what is heard behind them
        self._utterance: list[str] = []
        self._utterance_start = 0
        self._language = ""

    @property
    def end(self) -> int:
        """Samples that came in so far."""
        return self._start + len(self._waveform)

    @property
    def waiting_s(self) -> float:
        """Seconds of sound that no pass has heard yet."""
        return (self.end - max(self._passed, self._start)) / SAMPLING_RATE

    @property
    def is_speaking(self) -> bool:
        """Whether somebody speaks at the end of what came in."""
        return bool(self._voice.spans) and self._voice.spans[-1].is_open

    def add(self, waveform: Waveform) -> None:
        """Take in sound.

        Args:
            waveform: (num_samples,) float32 at 16 kHz, of any length.
        """
        self._waveform = np.concatenate((self._waveform, waveform))
        self._voice.add(waveform)

    def next_window(self, *, is_over: bool = False) -> Window | None:
        """Return what to decode now; None where more sound is needed first.

        Args:
            is_over: no more sound will come; all of it is given out then, window by window.
        """
        self._drop_silence()
        spans = self._voice.spans
        if not spans:
            return self._closing(is_over=is_over)
        settings, lead = self.settings, to_samples(self.settings.lead_s)
        pause = self._first_long_silence(spans, is_over=is_over)
        if pause is not None and pause - self._start <= to_samples(settings.longest_window_s):
            if self._is_click(pause):
                self._cut(pause)
                return self.next_window(is_over=is_over)
            return self._window(min(pause + lead, self.end), is_final=True, is_end=True)
        if self.end - self._start > to_samples(settings.max_window_s):
            cut = self._cut_point(spans)
            if cut is not None:
                return self._window(cut, is_final=True, is_end=False)
        is_due = self.end - max(self._passed, self._start) >= to_samples(settings.step_s)
        is_long_enough = self.end - self._start >= to_samples(settings.first_s)
        if is_due and is_long_enough and not self._is_click(self.end):
            return self._window(self.end, is_final=False, is_end=False)
        return None

    def take(self, window: Window, heard: Heard) -> Update:
        """Take what was heard in the window that `next_window` gave out last, and say what changed."""
        is_same_language = heard.language == self._language
        self._language = language = heard.language or self._language
        units = split_units(heard.text, language)
        if not self._utterance and not self._committed:
            self._utterance_start = window.start
        if window.is_final:
            new, rest = self._finish(units, is_end=window.is_end), []
            self._cut(window.end)
        else:
            tail = units[match_prefix(self._committed, units)[0] :]
            held = self.settings.held_words * num_held(language) if self.is_speaking else 0
            if not is_same_language:
                self._agreement.forget()
            agreed = self._agreement.take(tail, num_passes=self.settings.agreement, held=held)
            new, rest = tail[:agreed], tail[agreed:]
            self._committed += new
            self._passed = window.end
            self._trim_at_times(window, heard)
        delta = self._joined(new, language)
        self._utterance.append(delta)
        update = Update(
            delta=delta,
            tentative=self._joined(rest, language),
            language=language,
            start_s=self._utterance_start / SAMPLING_RATE,
            end_s=window.end / SAMPLING_RATE,
            text="".join(self._utterance),
            is_end=window.is_end,
        )
        if window.is_end:
            self._utterance, self._committed = [], []
        return update

    def _finish(self, units: list[str], *, is_end: bool) -> list[str]:
        """Return what the last pass over a part adds; what is final already and lies behind the part stays in mind."""
        inside, cost = match_prefix(self._committed, units)
        behind, other_cost = match_prefix(units, self._committed)
        self._agreement.forget()
        if other_cost < cost and not is_end:  # more is final than the part says: it was heard behind the cut
            self._committed = self._committed[behind:]
            return []
        self._committed = []
        return units[inside:]

    def _trim_at_times(self, window: Window, heard: Heard) -> None:
        """Where the model gives times and half of the window is full: go on behind the last segment that is final."""
        if len(window.waveform) < to_samples(self.settings.max_window_s / 2):
            return
        count, num_final = 0, len(self._committed)
        end_s = 0.0
        for segment, following in pairwise(heard.segments):  # the last one may still grow
            size = len(split_units(segment.text, heard.language))
            if count + size > num_final:
                break
            # in the middle of a pause: a word whose end is left in the next window would be heard again
            count, end_s = count + size, max(segment.end_s, (segment.end_s + following.start_s) / 2)
        if end_s > 0:
            self._committed = self._committed[count:]
            self._cut(window.start + to_samples(end_s))

    def _joined(self, units: list[str], language: str) -> str:
        text = "".join(units)
        needs_space = any(self._utterance) and language not in LANGUAGES_WITHOUT_SPACES
        return f" {text}" if text and needs_space and not text[0].isspace() else text

    def _window(self, end: int, *, is_final: bool, is_end: bool) -> Window:
        end = min(end, self._start + to_samples(self.settings.longest_window_s))
        language = self._language if any(self._utterance) else ""
        return Window(self._waveform[: end - self._start], self._start, is_final, is_end, language)

    def _cut(self, end: int) -> None:
        """Begin the window at a sample."""
        self._waveform = self._waveform[max(0, end - self._start) :]
        self._start = max(self._start, end)
        self._passed = max(self._passed, self._start)
        self._voice.forget(self._start)

    def _drop_silence(self) -> None:
        """Leave out what lies before the next speech, but for a little."""
        spans = self._voice.spans
        speech = spans[0].start if spans else self._voice.position
        before = speech - to_samples(self.settings.lead_s)
        if before > self._start and (spans or not self._utterance) and not self._committed:
            self._cut(before)

    def _first_long_silence(self, spans: list[Span], *, is_over: bool) -> int | None:
        """Return where an utterance ends."""
        needed = to_samples(self.settings.end_silence_s)
        for span, following in pairwise(spans):
            if following.start - span.end >= needed:
                return span.end
        last = spans[-1]
        is_silent = not last.is_open and self._voice.position - last.end >= needed
        return last.end if is_over or is_silent else None

    def _is_click(self, end: int) -> bool:
        """Whether too little speech for a word lies before a sample, in an utterance that has said nothing yet."""
        speech = sum(min(span.end, end) - span.start for span in self._voice.spans if span.start < end)
        return not self._utterance and speech < to_samples(self.settings.min_speech_s)

    def _closing(self, *, is_over: bool) -> Window | None:
        """End an utterance whose last words were cut off already, as a long window was."""
        is_silent = self._voice.position - self._start >= to_samples(self.settings.end_silence_s)
        if not self._utterance or not (is_over or is_silent):
            return None
        return Window(self._waveform[:0], self._start, is_final=True, is_end=True)

    def _cut_point(self, spans: list[Span]) -> int | None:
        """Return the middle of the longest pause; None where it is better to wait for one."""
        longest = to_samples(self.settings.longest_window_s)
        limit = self._start + longest
        pauses = [
            (following.start - span.end, (following.start + span.end) // 2)
            for span, following in pairwise(spans)
            if following.start - span.end >= to_samples(self.settings.min_pause_s) and following.start <= limit
        ]
        if pauses:
            return max(pauses)[1]
        if self.end < limit:
            return None
        pieces = cut_at_quiet(self._waveform[: longest + 1], max_duration_s=self.settings.longest_window_s)
        return self._start + len(pieces[0][1])
