"""What the page does: transcribe one recording, or two ways beside each other, and say what went wrong."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from infer.transcript import Transcript
from serve.engine import Engine, Options, Progress
from serve.errors import ServiceError
from serve.page.results import show_comparison, show_error, show_progress, show_transcript, speed
from serve.page.texts import Texts

logger = logging.getLogger(__name__)


def say(error: Exception, texts: Texts) -> str:
    """Return an error as HTML; what is not meant for people goes into the log alone."""
    if isinstance(error, ServiceError):
        return show_error(texts, texts.error(error), error.message if error.code in texts.errors else "")
    logger.error("the page failed", exc_info=error)
    return show_error(texts, texts.unexpected)


async def transcribe(engine: Engine, texts: Texts, path: str | None, options: Options) -> AsyncIterator[str]:
    """Yield how far a recording is, and at last its transcript or what went wrong, as HTML.

    Args:
        engine: transcribes.
        texts: of the page.
        path: of the file that was uploaded or recorded; None where there is none.
        options: what is asked for.
    """
    if path is None:
        yield show_error(texts, texts.no_audio)
        return
    news: asyncio.Queue[Progress | None] = asyncio.Queue()
    begin = time.monotonic()
    yield show_progress(texts, 0, 0, "")
    work = asyncio.ensure_future(_ask(engine, path, options, news))
    try:
        while (progress := await news.get()) is not None:
            yield show_progress(texts, progress.num_done, progress.num_windows, progress.text)
        transcript = await work
    except Exception as e:
        yield say(e, texts)
        return
    finally:
        work.cancel()  # somebody pressed Stop or left; the place in the queue is free at once
    name = name_of(engine, texts, options.model, transcript.language)
    elapsed_s = time.monotonic() - begin
    yield show_transcript(transcript, texts, language_name=name, elapsed_s=elapsed_s, audio_path=path)


async def compare(engine: Engine, texts: Texts, path: str | None, sides: tuple[Options, Options]) -> AsyncIterator[str]:
    """Yield two transcripts of one recording beside each other, or what went wrong, as HTML."""
    if path is None:
        yield show_error(texts, texts.no_audio)
        return
    yield show_progress(texts, 0, 0, "")
    shown: list[tuple[str, str, Transcript]] = []
    try:
        for options in sides:  # one after the other, so that their times are their own
            begin = time.monotonic()
            transcript = await _ask(engine, path, options, None)
            elapsed_s = time.monotonic() - begin
            title = f"{options.model} · {texts.profiles.get(options.profile, options.profile)}"
            shown.append((title, _remark(engine, texts, options, transcript, elapsed_s), transcript))
    except Exception as e:
        yield say(e, texts)
        return
    yield show_comparison(texts, shown)


def name_of(engine: Engine, texts: Texts, model: str, language: str) -> str:
    """Return how the page calls a language."""
    return texts.language_name(language, dict(engine.languages(model)).get(language, language))


async def _ask(engine: Engine, path: str, options: Options, news: asyncio.Queue[Progress | None] | None) -> Transcript:
    try:
        wanted = replace(options, timestamps=engine.has_timestamps(options.model))
        return await engine.transcribe(Path(path), wanted, on_progress=None if news is None else news.put_nowait)
    finally:
        if news is not None:
            news.put_nowait(None)


def _remark(engine: Engine, texts: Texts, options: Options, transcript: Transcript, elapsed_s: float) -> str:
    facts = engine.describe(options.model)
    rate = speed(transcript.duration_s, elapsed_s, texts) if elapsed_s > 0 else ""
    language = name_of(engine, texts, options.model, transcript.language)
    stored = f"{facts.get('stored', '?')} → {facts.get('compute', '?')}"
    return " · ".join(part for part in (language, f"{stored}, {facts.get('runtime', 'torch')}", rate) if part)
