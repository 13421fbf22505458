"""What a live conversation was told: the `session` of OpenAI's realtime events, as far as it has a meaning here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve.engine import Engine, Options
from serve.errors import ServiceError
from serve.stream_settings import StreamSettings

RATES = (16_000, 24_000)
DEFAULT_RATE = 24_000  # Hz; OpenAI's only one
NEVER_S = 1e6  # of silence; without turn detection utterances end where the client says so
HOSTED_NAMES = ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
"""Of OpenAI's own models, which clients name by habit; they get the first model."""


@dataclass(frozen=True)
class Session:
    """Settings of one conversation."""

    options: Options = field(default_factory=Options)
    rate: int = DEFAULT_RATE
    """Of the PCM16 that comes in, Hz."""
    end_silence_s: float | None = StreamSettings.end_silence_s
    """None ends utterances only where the client commits."""
    stream: StreamSettings = field(default_factory=StreamSettings)
    """Of the service."""

    @property
    def stream_settings(self) -> StreamSettings:
        """As the core takes them."""
        return replace(self.stream, end_silence_s=NEVER_S if self.end_silence_s is None else self.end_silence_s)

    def as_dict(self) -> dict[str, Any]:
        """Return it as the server says it."""
        detection = None
        if self.end_silence_s is not None:
            detection = {"type": "server_vad", "silence_duration_ms": round(1000 * self.end_silence_s)}
        language = None if self.options.language == "auto" else self.options.language
        return {
            "type": "transcription",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": self.rate},
                    "transcription": {
                        "model": self.options.model,
                        "language": language,
                        "prompt": self.options.prompt or "",
                    },
                    "turn_detection": detection,
                }
            },
        }


def update_session(session: Session, said: Mapping[str, Any], engine: Engine) -> Session:
    """Return a session with what a client asks for.

    Args:
        session: as it is.
        said: the `session` of a `session.update`; what it does not name stays.
        engine: knows the models and their languages.

    Raises:
        ServiceError: 400 for what is not offered, with the name of the field.
    """
    if said.get("type", "transcription") != "transcription":
        raise invalid(f"session.type={said['type']!r} is not offered here; give 'transcription'", "session.type")
    heard = _mapping(_mapping(said, "audio", "session"), "input", "session.audio")
    if heard.get("format") is not None:
        session = replace(session, rate=_rate(_mapping(heard, "format", "session.audio.input")))
    if heard.get("transcription") is not None:
        asked = _mapping(heard, "transcription", "session.audio.input")
        session = replace(session, options=_options(session.options, asked, engine))
    if "turn_detection" in heard:
        session = replace(session, end_silence_s=_end_silence_s(heard["turn_detection"]))
    return session


def choose_model(name: str, engine: Engine) -> str:
    """Return the model that a client means.

    Raises:
        ServiceError: 404 if it is not served.
    """
    known = engine.models()
    if not name or name in HOSTED_NAMES:
        return known[0]
    if name not in known:
        raise ServiceError(
            f"the model {name!r} is not served here; give one of {', '.join(known)}",
            status=404,
            code="model_not_found",
            param="model",
        )
    return name


def invalid(message: str, param: str | None = None, *, code: str = "invalid_value") -> ServiceError:
    """Return what a client is told that asks for something that is not offered."""
    return ServiceError(message, status=400, code=code, param=param)


def _mapping(parent: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    found = parent.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise invalid(f"{path}.{name} must be an object", f"{path}.{name}")
    return found


def _rate(asked: Mapping[str, Any]) -> int:
    path = "session.audio.input.format"
    if asked.get("type", "audio/pcm") != "audio/pcm":
        raise invalid(f"{path}.type={asked['type']!r} is not offered; give 'audio/pcm'", f"{path}.type")
    rate = asked.get("rate", DEFAULT_RATE)
    if rate not in RATES or isinstance(rate, bool):
        allowed = " or ".join(map(str, RATES))
        raise invalid(f"{path}.rate={rate!r} is not offered; give {allowed}", f"{path}.rate")
    return int(rate)


def _options(options: Options, asked: Mapping[str, Any], engine: Engine) -> Options:
    path = "session.audio.input.transcription"
    for name in ("model", "language", "prompt"):
        if not isinstance(asked.get(name), str | None):
            raise invalid(f"{path}.{name} must be a text", f"{path}.{name}")
    if asked.get("model"):
        options = replace(options, model=choose_model(asked["model"], engine))
    if "language" in asked:
        language = asked["language"] or "auto"
        known = [code for code, _ in engine.languages(options.model)]
        if language != "auto" and language not in known:
            raise invalid(
                f"{path}.language={language!r} is not known to this model; give one of {', '.join(known)}, or none",
                f"{path}.language",
            )
        options = replace(options, language=language)
    if "prompt" in asked:
        options = replace(options, prompt=asked["prompt"] or None)
    return options


def _end_silence_s(asked: Any) -> float | None:
    path = "session.audio.input.turn_detection"
    if asked is None:
        return None
    if not isinstance(asked, Mapping) or asked.get("type", "server_vad") != "server_vad":
        raise invalid(f"{path} must be null or have the type 'server_vad'", path)
    silence_ms = asked.get("silence_duration_ms", round(1000 * StreamSettings.end_silence_s))
    if isinstance(silence_ms, bool) or not isinstance(silence_ms, int | float) or not 200 <= silence_ms <= 10_000:
        raise invalid(
            f"{path}.silence_duration_ms={silence_ms!r} must lie in 200 to 10000", f"{path}.silence_duration_ms"
        )
    return silence_ms / 1000
