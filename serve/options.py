"""What a caller asks for, and whether the model that he asks has it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from data.languages import TASKS
from data.texts import TextError, clean_text, join_texts
from infer.decoding import Decoded, DecodeSettings
from serve.errors import ServiceError
from serve.warming import Facts

MAX_PROMPT_LENGTH = 4000  # characters; the model takes 223 tokens of its end
MAX_TEMPERATURE = 1.0
_CONTROL_TOKEN = re.compile(r"<\|.*?\|>")


@dataclass(frozen=True)
class Options:
    """What a caller asks for."""

    model: str = ""
    """Name of a model; empty takes the first."""
    language: str = "auto"
    """ISO code, or `auto`."""
    task: str = "transcribe"
    profile: str = ""
    """Name of a decode profile; empty takes the first."""
    timestamps: bool = False
    """Predict times of segments; only where `Engine.has_timestamps` says that the model can."""
    words: bool = False
    """Find when each word is said; all runtimes but ONNX Runtime can, also of models that predict no times."""
    temperature: float | None = None
    """In place of the profile's; above 0 tokens are drawn."""
    prompt: str | None = None
    """Text that came before."""


@dataclass(frozen=True)
class Progress:
    """How far a recording is."""

    num_done: int
    """Windows that are decoded."""
    num_windows: int
    text: str
    """Of the recording's beginning, up to the first window that is not decoded yet."""


def resolve(options: Options, facts: Facts, profiles: Mapping[str, DecodeSettings]) -> DecodeSettings:
    """Return the settings that options ask for; the language stays apart, each row has its own.

    Args:
        options: of a caller.
        facts: of the model that he asks.
        profiles: by name.

    Raises:
        ServiceError: 400 for what the model or its runtime does not have.
    """
    if options.language != "auto" and options.language not in facts.languages:
        raise _wrong(
            "language", f"language {options.language!r} is none that this model knows; GET /v1/models lists them"
        )
    if options.task not in TASKS:
        raise _wrong("task", f"task {options.task!r} must be one of {', '.join(TASKS)}")
    profile = options.profile or facts.profiles[0]
    if profile not in facts.profiles:
        raise _wrong("profile", f"profile {profile!r} must be one of {', '.join(facts.profiles)}")
    if options.timestamps and not facts.has_timestamps:
        raise _wrong("timestamp_granularities", "this model was not trained to predict times")
    if options.words and not facts.has_words:
        raise _wrong(
            "timestamp_granularities",
            f"runtime {facts.description['runtime']} finds no times of words; torch and ctranslate2 do",
        )
    settings = replace(
        profiles[profile],
        language="auto",
        task=options.task,
        timestamps=options.timestamps,
        word_times=options.words,
    )
    if options.temperature:
        if not 0 <= options.temperature <= MAX_TEMPERATURE:
            raise _wrong("temperature", f"temperature {options.temperature} must lie in 0 to {MAX_TEMPERATURE:g}")
        if facts.description["runtime"] != "torch":
            raise _wrong("temperature", f"{facts.description['runtime']} decodes at temperature 0 alone")
        settings = replace(settings, temperature=(float(options.temperature),))
    if options.prompt:
        _verify_prompt(options.prompt, facts.has_prompts)
    return settings


def progress_of(results: Sequence[Decoded | None]) -> Progress:
    """Return how far a recording is, of which each window is decoded or not."""
    begun: list[Decoded] = []
    for result in results:
        if result is None:
            break
        begun.append(result)
    texts = [decoded.text for decoded in begun if decoded.text]
    text = join_texts(texts, begun[0].language) if texts else ""
    return Progress(sum(result is not None for result in results), len(results), text)


def verify_profiles(profiles: Mapping[str, DecodeSettings]) -> None:
    """Make sure that the service can decode so.

    Raises:
        ValueError: for a profile that reads recordings by predicted times.
    """
    for name, settings in profiles.items():
        if settings.long_form != "chunked" or settings.timestamps or settings.word_times:
            raise ValueError(
                f"profile {name}: the service cuts recordings itself, and asks for times where a caller does; "
                "give decoding.long_form=chunked, decoding.timestamps=false and decoding.word_times=false"
            )


def _verify_prompt(prompt: str, has_prompts: bool) -> None:
    if not has_prompts:
        raise _wrong("prompt", "this runtime takes no prompt")
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise _wrong("prompt", f"the prompt has {len(prompt)} characters, at most {MAX_PROMPT_LENGTH} are taken")
    try:
        clean_text(prompt, may_be_empty=True)
    except TextError as e:
        raise _wrong("prompt", f"the prompt cannot be used: {e}") from e
    if _CONTROL_TOKEN.search(prompt):
        raise _wrong("prompt", "the prompt holds a control token, <|...|>")


def _wrong(param: str, message: str) -> ServiceError:
    return ServiceError(message, status=400, code=f"invalid_{param}", param=param)
