"""Whisper's languages by ISO code."""

from __future__ import annotations

import difflib

from transformers.models.whisper.tokenization_whisper import LANGUAGES

TASKS = ("transcribe", "translate")

LANGUAGE_CODES: tuple[str, ...] = tuple(LANGUAGES)
"""Codes in the order of Whisper's vocabulary; models before large-v3 lack the last, `yue`."""


def verify_language(language: str) -> str:
    """Return the code, or say which one was meant.

    Args:
        language: an ISO code such as `de`. Names such as `german` are refused, with the code to type.

    Raises:
        ValueError: if it is not one of Whisper's codes.
    """
    if language in LANGUAGES:
        return language
    by_name = {name: code for code, name in LANGUAGES.items()}
    lowered = language.strip().lower()
    near = by_name.get(lowered) or lowered.replace("_", "-").split("-")[0]
    if near not in LANGUAGES:
        matches = difflib.get_close_matches(lowered, [*LANGUAGES, *by_name], n=1)
        near = by_name.get(matches[0], matches[0]) if matches else ""
    hint = f"; did you mean {near!r}?" if near else "."
    known = f"Whisper knows {len(LANGUAGES)} codes: en, zh, de, es, ru ..."
    raise ValueError(f"unknown language {language!r}{hint} {known}")
