"""The live tab: sound of each browser as it comes, and the text so far."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import soxr

from data.audio import SAMPLING_RATE, Waveform
from infer.decoding import Decoded
from serve.engine import Engine, Options
from serve.errors import ServiceError
from serve.live import MAX_WAITING_S, Places, hear, with_language
from serve.page.actions import say
from serve.page.results import show_live
from serve.page.texts import Texts
from serve.stream_settings import StreamSettings
from serve.streaming import Stream

FORGOTTEN_S = 30.0  # a browser that has sent nothing for so long has gone


@dataclass
class Speaker:
    """Somebody who speaks into the page."""

    stream: Stream
    lines: list[str] = field(default_factory=list)
    """Utterances that are complete."""
    final: str = ""
    tentative: str = ""
    resampler: soxr.ResampleStream | None = None
    rate: int = 0
    heard_s: float = field(default_factory=time.monotonic)
    """When sound came last, on the monotonic clock."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LiveTab:
    """All who speak now, by the session of their browser."""

    def __init__(self, engine: Engine, places: Places, stream: StreamSettings) -> None:
        self._engine = engine
        self._stream = stream
        self._places = places
        self._speakers: dict[str, Speaker] = {}

    async def hear(
        self, session: str, sound: tuple[int, npt.NDArray[np.int16]] | None, options: Options, texts: Texts
    ) -> str | None:
        """Take in what a browser sends, and return the text so far as HTML; None if there is nothing new.

        Args:
            session: of the browser.
            sound: sampling rate and samples, (num_samples,) or (num_samples, num_channels).
            options: what is asked for.
            texts: of the page.
        """
        if sound is None:
            return None
        try:
            speaker = self._speaker(session)
            speaker.heard_s = time.monotonic()
            if speaker.stream.waiting_s > MAX_WAITING_S:
                raise ServiceError("the machine is too slow for live text", status=503, code="too_slow")
            speaker.stream.add(_to_waveform(speaker, *sound))
            if speaker.lock.locked():  # a pass is under way and will go on with this sound
                return None
            async with speaker.lock:
                is_new = await self._pass(speaker, options, is_over=False)
        except Exception as e:
            self.leave(session)
            return say(e, texts)
        return show_live(speaker.lines, speaker.final, speaker.tentative, texts) if is_new else None

    async def finish(self, session: str, options: Options, texts: Texts) -> str | None:
        """Make final what was said, and free the place."""
        speaker = self._speakers.get(session)
        if speaker is None:
            return None
        try:
            async with speaker.lock:
                await self._pass(speaker, options, is_over=True)
        except Exception as e:
            return say(e, texts)
        finally:
            self.leave(session)
        return show_live(speaker.lines, "", "", texts, is_over=True)

    def leave(self, session: str) -> None:
        """Forget somebody, as when the page is closed."""
        if self._speakers.pop(session, None) is not None:
            self._places.give_back()

    def _speaker(self, session: str) -> Speaker:
        found = self._speakers.get(session)
        if found is None:
            now = time.monotonic()
            for other in [name for name, s in self._speakers.items() if now - s.heard_s > FORGOTTEN_S]:
                self.leave(other)
            self._places.take()
            found = self._speakers[session] = Speaker(Stream(self._stream))
        return found

    async def _pass(self, speaker: Speaker, options: Options, *, is_over: bool) -> bool:
        is_new = False

        async def decode(waveform: Waveform, language: str) -> Decoded:
            return await self._engine.transcribe_window(waveform, with_language(options, language))

        while (window := speaker.stream.next_window(is_over=is_over)) is not None:
            heard = await hear(decode, window)
            update = speaker.stream.take(window, heard)
            speaker.final, speaker.tentative, is_new = update.text, update.tentative, True
            if update.is_end:
                speaker.lines += [update.text] if update.text else []
                speaker.final = speaker.tentative = ""
        return is_new


def _to_waveform(speaker: Speaker, rate: int, samples: npt.NDArray[np.int16]) -> Waveform:
    channels = samples.astype(np.float32).reshape(len(samples), -1)
    mono: Waveform = (channels.mean(axis=1) / np.float32(32768)).astype(np.float32)
    if rate == SAMPLING_RATE:
        return mono
    if speaker.resampler is None or speaker.rate != rate:
        speaker.resampler, speaker.rate = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32"), rate
    return np.asarray(speaker.resampler.resample_chunk(mono), dtype=np.float32)
