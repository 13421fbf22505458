"""A transcript in the forms that OpenAI's API answers with."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Response
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from infer.subtitles import FORMATS
from infer.transcript import Transcript

MEDIA_TYPES = {"text": "text/plain", "srt": "text/plain", "vtt": "text/vtt"}


def write_answer(transcript: Transcript, response_format: str, *, task: str) -> Response:
    """Return the answer to a request.

    Args:
        transcript: what was heard.
        response_format: `json`, `text`, `srt`, `verbose_json` or `vtt`.
        task: `transcribe` or `translate`.
    """
    if response_format in MEDIA_TYPES:
        writer = FORMATS["txt" if response_format == "text" else response_format]
        return Response(writer(transcript), media_type=f"{MEDIA_TYPES[response_format]}; charset=utf-8")
    body = verbose(transcript, task) if response_format == "verbose_json" else short(transcript)
    return Response(_json(body), media_type="application/json")


def short(transcript: Transcript) -> dict[str, Any]:
    """Return the `json` form: the text, and how long the recording is."""
    usage = {"type": "duration", "seconds": round(transcript.duration_s, 3)}
    return {"text": transcript.text, "usage": usage}


def verbose(transcript: Transcript, task: str) -> dict[str, Any]:
    """Return the `verbose_json` form, and beside OpenAI's fields how sure the model was of the language."""
    segments = [
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
    return {
        "task": task,
        "language": LANGUAGES.get(transcript.language, transcript.language),
        "language_code": transcript.language,
        "language_probability": round(transcript.language_probability, 4) if transcript.is_detected else None,
        "duration": round(transcript.duration_s, 3),
        "text": transcript.text,
        "segments": segments,
        "is_cut": transcript.is_cut,
        "usage": short(transcript)["usage"],
    }


def event(body: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"data: {_json(body)}\n\n".encode()


def last_event(transcript: Transcript) -> bytes:
    """Return the event that ends a stream, with the whole text."""
    return event({"type": "transcript.text.done", **short(transcript)})


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, allow_nan=False)
