"""A transcript in the forms that OpenAI's API answers with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import Response
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from infer.subtitles import FORMATS
from infer.transcript import Transcript

MEDIA_TYPES = {"text": "text/plain", "srt": "text/plain", "vtt": "text/vtt"}


def write_answer(
    transcript: Transcript, response_format: str, *, task: str, granularities: Sequence[str] = ()
) -> Response:
    """Return the answer to a request.

    Args:
        transcript: what was heard.
        response_format: `json`, `text`, `srt`, `verbose_json` or `vtt`.
        task: `transcribe` or `translate`.
        granularities: `segment` and `word`, of `verbose_json`; none is `segment`.
    """
    if response_format in MEDIA_TYPES:
        writer = FORMATS["txt" if response_format == "text" else response_format]
        return Response(writer(transcript), media_type=f"{MEDIA_TYPES[response_format]}; charset=utf-8")
    is_verbose = response_format == "verbose_json"
    body = verbose(transcript, task, granularities or ("segment",)) if is_verbose else short(transcript)
    return Response(_json(body), media_type="application/json")


def short(transcript: Transcript) -> dict[str, Any]:
    """Return the `json` form: the text, and how long the recording is."""
    usage = {"type": "duration", "seconds": round(transcript.duration_s, 3)}
    return {"text": transcript.text, "usage": usage}


def verbose(transcript: Transcript, task: str, granularities: Sequence[str]) -> dict[str, Any]:
    """Return the `verbose_json` form, and beside OpenAI's fields how sure the model was of the language and of words.

    As with OpenAI, who asks for words alone gets no segments.
    """
    times: dict[str, Any] = {}
    if "segment" in granularities:
        times["segments"] = _segments(transcript)
    if "word" in granularities:
        times["words"] = _words(transcript)
    return {
        "task": task,
        "language": LANGUAGES.get(transcript.language, transcript.language),
        "language_code": transcript.language,
        "language_probability": round(transcript.language_probability, 4) if transcript.is_detected else None,
        "duration": round(transcript.duration_s, 3),
        "text": transcript.text,
        **times,
        "is_cut": transcript.is_cut,
        "usage": short(transcript)["usage"],
    }


def _segments(transcript: Transcript) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "seek": 0,
            "start": round(segment.start_s, 3),
            "end": round(segment.end_s, 3),
            "text": segment.text,
            "tokens": [],
            "temperature": segment.temperature or 0.0,
            "avg_logprob": segment.avg_logprob or 0.0,
            "compression_ratio": segment.compression_ratio or 0.0,
            "no_speech_prob": segment.no_speech_prob or 0.0,
        }
        for i, segment in enumerate(transcript.segments)
    ]


def _words(transcript: Transcript) -> list[dict[str, Any]]:
    return [
        {
            "word": word.text,
            "start": round(word.start_s, 3),
            "end": round(word.end_s, 3),
            "probability": round(word.probability, 4),
        }
        for segment in transcript.segments
        for word in segment.words
    ]


def event(body: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"data: {_json(body)}\n\n".encode()


def last_event(transcript: Transcript) -> bytes:
    """Return the event that ends a stream, with the whole text."""
    return event({"type": "transcript.text.done", **short(transcript)})


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, allow_nan=False)
