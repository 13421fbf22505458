"""Long recordings by predicted times: each window begins where the last whole segment ended.

Source: Radford et al. 2022, arXiv:2212.04356, section 4.5; openai/whisper `transcribe.py`.
"""

from __future__ import annotations

import math

from data.features import FRAMES_PER_S, MAX_WINDOW_S
from infer.decoding import Decoded, judged
from infer.reading import TokenReader
from infer.subtitles import Segment
from infer.word_times import fit_segment, moved

FRAMES_PER_TIMESTAMP = 2  # 0.02 s
RESET_TEMPERATURE = 0.5  # a text that needed more chance than this is no prompt for the next window
GRACE_WINDOWS = 10  # beyond one a second of audio: more is a model that does not move on


class SequentialRecording:
    """How far one recording is read, and what it said so far."""

    def __init__(self, duration_s: float, reader: TokenReader, *, conditioned: bool = False) -> None:
        """Begin at its beginning.

        Args:
            duration_s: of the recording.
            reader: of the model's tokens.
            conditioned: whether what was said becomes the prompt of what follows.
        """
        self.duration_s = duration_s
        self.num_frames = math.ceil(round(duration_s * FRAMES_PER_S, 6))
        self.seek = 0
        self.segments: list[Segment] = []
        self.windows: list[Decoded] = []
        self._reader = reader
        self._conditioned = conditioned
        self._prompt: list[int] = []
        self._last_word_end_s = 0.0

    @property
    def is_done(self) -> bool:
        """Whether all of it is read."""
        return self.seek >= self.num_frames

    @property
    def size(self) -> int:
        """Frames of the next window: 30 s, or what is left."""
        return min(MAX_WINDOW_S * FRAMES_PER_S, self.num_frames - self.seek)

    @property
    def language(self) -> str:
        """Language of the first window, which all others take; `auto` before it."""
        return self.windows[0].language if self.windows else "auto"

    @property
    def prompt(self) -> list[int]:
        """Tokens of the text before the next window, without times, as the labels of training have them."""
        return self._prompt

    def take(self, decoded: Decoded) -> None:
        """Keep the whole segments of a window and move to the end of the last one.

        A model can make no way: the same time again and again. Then the rest of the window is taken as it is.

        Args:
            decoded: what the window at `seek` says.
        """
        size = self.size
        self.windows.append(decoded)
        parts, advance = self._parts(decoded, size)
        num_expected = GRACE_WINDOWS + self.seek / FRAMES_PER_S
        if advance == 0 or len(self.windows) > num_expected:
            parts, advance = self._whole(decoded, size), size
        num_before = 0
        for start, end, tokens in parts:
            num_text = self._reader.num_text(tokens)
            self._add(start, end, tokens, decoded, (num_before, num_before + num_text))
            num_before += num_text
        if self._conditioned:
            said = [token for _, _, tokens in parts for token in self._reader.words(tokens)]
            self._prompt = [] if decoded.temperature > RESET_TEMPERATURE else [*self._prompt, *said]
        self.seek += min(advance, size)

    def _parts(self, decoded: Decoded, size: int) -> tuple[list[tuple[int, int, list[int]]], int]:
        """Return (first frame, last frame, tokens) of each segment, counted from the window, and frames to move on."""
        tokens = list(decoded.tokens)
        if decoded.no_speech:
            return [], size
        begin = self._reader.timestamp_begin
        is_time = [token >= begin for token in tokens]
        cuts = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
        if not cuts:
            return self._whole(decoded, size), size
        ends_alone = is_time[-2:] == [False, True]  # nothing is said behind the last time
        if ends_alone:
            cuts.append(len(tokens))
        parts = []
        last = 0
        for cut in cuts:
            piece = tokens[last:cut]
            parts.append((self._frame(piece[0]), self._frame(piece[-1]), piece))
            last = cut
        return parts, size if ends_alone else self._frame(tokens[last - 1])

    def _whole(self, decoded: Decoded, size: int) -> list[tuple[int, int, list[int]]]:
        """Return a window as one segment, up to the last time that it names."""
        if decoded.no_speech:
            return []
        times = [token for token in decoded.tokens if token >= self._reader.timestamp_begin]
        end = self._frame(times[-1]) if times else 0
        return [(0, end or size, list(decoded.tokens))]

    def _frame(self, token: int) -> int:
        return FRAMES_PER_TIMESTAMP * max(0, token - self._reader.timestamp_begin)

    def _add(self, start: int, end: int, tokens: list[int], decoded: Decoded, place: tuple[int, int]) -> None:
        """Keep a segment; `place` says which of the window's tokens of text are its own."""
        text = self._reader.text(tokens)
        first, last = (min((self.seek + frame) / FRAMES_PER_S, self.duration_s) for frame in (start, end))
        if not text or last <= first:
            return
        segment = judged(Segment(first, last, text), decoded)
        if decoded.alignment is not None:
            words = moved(decoded.alignment.between(*place), self.seek / FRAMES_PER_S, end_s=self.duration_s)
            segment = fit_segment(segment, words, median_s=decoded.alignment.median_s, last_end_s=self._last_word_end_s)
            self._last_word_end_s = segment.words[-1].end_s if segment.words else self._last_word_end_s
        self.segments.append(segment)
