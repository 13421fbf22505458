"""Bring a reference and a hypothesis to one spelling before they are compared, by the profile of their language."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from infer.score.profile import Metric, profile_of
from infer.score.spelling import package_versions

__all__ = ["NORMALISER_VERSION", "UNDETERMINED", "Metric", "describe_scoring", "headline_metric", "normalise"]

NORMALISER_VERSION = 2
"""Recorded beside every number; raise it with any change that can move a score.

2: traditional Chinese is compared in simplified characters; British English in American spelling; Quranic signs and
Arabic-Indic digits are folded in Arabic; a language without a profile is refused.
"""

UNDETERMINED = "und"
"""ISO 639-2 code for a text whose language is not known: the basic rule, nothing folded."""


def normalise(text: str, language: str) -> str:
    """Return `text` in the spelling that scores compare.

    Args:
        text: any string; empty is allowed, and punctuation alone becomes empty.
        language: ISO code as in Whisper's tokenizer (`de`, `yue`), or `und`.

    Raises:
        ValueError: if `language` is no code, or has no profile.
    """
    return profile_of(language).apply(text)


def headline_metric(language: str) -> Metric:
    """Return the rate a language is judged by: `cer` where words are written without spaces and for Korean.

    Raises:
        ValueError: if `language` is no code, or has no profile.

    Source: the languages of OpenAI's chart of large-v3 (zh, ja, th, lo, my, ko); km, bo and yue added by the same rule.
    """
    return profile_of(language).metric


def describe_scoring(languages: Iterable[str]) -> dict[str, Any]:
    """Return what the scores of these languages were made with, to stand beside them."""
    profiles = {language: profile_of(language) for language in sorted(set(languages))}
    return {
        "normaliser_version": NORMALISER_VERSION,
        "profiles": {code: {"name": p.name, "sha256": p.sha256[:12]} for code, p in profiles.items()},
        "packages": package_versions(),
    }
