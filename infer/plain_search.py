"""Which settings mean the same search in every client: the likeliest text, without times, silence rules or fallback."""

from __future__ import annotations

import json
from pathlib import Path

from infer.decoding import DecodeSettings

LACKED_LISTS = {
    "openai_whisper": ("begin_suppress_tokens",),
    "whisper_cpp": ("suppress_tokens", "begin_suppress_tokens"),
}
"""By client, the lists of `generation_config.json` that it cannot be given; whisper.cpp has a pattern of text alone."""


def lacked_lists(client: str, artefact_dir: Path) -> tuple[str, ...]:
    """Return the lists of an artefact that a client does without, because it knows none of its kind."""
    file = artefact_dir / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return tuple(name for name in LACKED_LISTS.get(client, ()) if generation.get(name))


def verify_plain_search(
    settings: DecodeSettings, program: str, *, has_beams: bool = True, has_words: bool = False
) -> None:
    """Stop where the same settings would not mean the same search.

    Args:
        settings: how to decode.
        program: that is asked, for the message.
        has_beams: whether it searches with beams as ours does.
        has_words: whether it finds times of words as ours does.

    Raises:
        ValueError: naming the setting.
    """
    if settings.word_times and not has_words:
        raise ValueError(
            f"decoding.word_times=true is not offered under {program}; torch and CTranslate2 find times of words"
        )
    unlike = {
        "num_beams": settings.num_beams != 1 and not has_beams,
        "timestamps": settings.timestamps,
        "long_form": settings.long_form == "sequential",
        "temperature": settings.temperature != (0.0,),
        "no_speech_threshold": settings.no_speech_threshold is not None,
        "max_repetitions": settings.max_repetitions is not None,
    }
    for name, is_unlike in unlike.items():
        if is_unlike:
            raise ValueError(
                f"decoding.{name}={getattr(settings, name)} is not offered under {program}; "
                f"type decoding=greedy{' or decoding=beam5' if has_beams else ''}"
            )
