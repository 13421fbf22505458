"""Where somebody speaks in sound that is still coming in: Silero's voice activity detector, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.audio import SAMPLING_RATE, Waveform

FRAME = 512  # samples that the detector judges at once, 32 ms
RUN_IN_FRAMES = 32  # heard again before new ones, since the detector begins each call without a past
SPEECH_BEGINS, SPEECH_ENDS = 0.5, 0.35  # probabilities; Silero's own

Probabilities = npt.NDArray[np.float32]
Detector = Callable[[Waveform], Probabilities]
"""From whole frames of 512 samples to the probability of speech in each."""


def load_detector() -> Detector:
    """Return the detector that comes with faster-whisper.

    Raises:
        RuntimeError: if faster-whisper is not installed, with what to type.
    """
    try:
        from faster_whisper.vad import get_vad_model
    except ImportError as e:
        raise RuntimeError(f'the voice activity detector is not installed ({e}); pip install "mezzavoce[serve]"') from e
    model = get_vad_model()

    def detect(frames: Waveform) -> Probabilities:
        # the model marks the array that it is given, so it gets one of its own
        return np.asarray(model(frames.copy()), dtype=np.float32).reshape(-1)

    return detect


@dataclass
class Span:
    """A stretch of speech, in samples from the beginning of the sound."""

    start: int
    end: int
    is_open: bool = True
    """Whether it may still go on."""


class VoiceActivity:
    """The stretches of speech in a sound that comes in pieces of any size."""

    def __init__(self, detector: Detector | None = None, *, start: int = 0) -> None:
        """Begin at its beginning.

        Args:
            detector: judges frames; Silero's where none is given.
            start: samples that came before.
        """
        self._detector = detector if detector is not None else load_detector()
        self._past: Waveform = np.zeros(0, dtype=np.float32)
        self._rest: Waveform = np.zeros(0, dtype=np.float32)
        self.spans: list[Span] = []
        """In order; the last one is open while somebody speaks."""
        self.position = start
        """Samples that are judged."""

    def add(self, waveform: Waveform) -> None:
        """Judge what came in; less than a frame waits for more.

        Args:
            waveform: (num_samples,) float32 at 16 kHz.
        """
        waiting = np.concatenate((self._rest, waveform))
        whole = len(waiting) // FRAME * FRAME
        new, self._rest = waiting[:whole], waiting[whole:]
        if not whole:
            return
        heard = np.concatenate((self._past, new))
        for probability in self._detector(heard)[len(self._past) // FRAME :]:
            self._take(float(probability))
        self._past = heard[-RUN_IN_FRAMES * FRAME :]

    def forget(self, before: int) -> None:
        """Drop the spans that end before a sample, and cut the one that holds it."""
        self.spans = [span for span in self.spans if span.end > before]
        if self.spans and self.spans[0].start < before:
            self.spans[0].start = before

    def _take(self, probability: float) -> None:
        is_speaking = bool(self.spans) and self.spans[-1].is_open
        end = self.position + FRAME
        if is_speaking and probability >= SPEECH_ENDS:
            self.spans[-1].end = end
        elif is_speaking:
            self.spans[-1].is_open = False
        elif probability >= SPEECH_BEGINS:
            self.spans.append(Span(self.position, end))
        self.position = end


def to_samples(seconds: float) -> int:
    """Return the number of samples at 16 kHz."""
    return round(seconds * SAMPLING_RATE)
