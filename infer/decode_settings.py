"""How text is read off the model: one frozen value that stands beside every number that comes from it.

The words are OpenAI's (`whisper/transcribe.py`, `whisper/decoding.py`), and so are the thresholds of `longform`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from data.features import MAX_WINDOW_S
from data.languages import TASKS, verify_language

LONG_FORMS = ("chunked", "sequential")


@dataclass(frozen=True)
class DecodeSettings:
    """How text is read off the model; stands beside every number that comes from it."""

    name: str = "greedy"
    language: str = "auto"
    """An ISO code, or `auto`: detected for each clip."""
    task: str = "transcribe"
    num_beams: int = 1
    max_new_tokens: int | None = None
    """None allows 50 a second of window: no language is spoken faster, and a model that loops ends early."""
    timestamps: bool = False
    """Predict segment times; only for models that were trained with them."""
    word_times: bool = False
    """Find when each word is said, by what the model listened to; for models with and without segment times."""
    temperature: tuple[float, ...] = (0.0,)
    """Tried in turn until a window passes the thresholds; 0 is the search, above it tokens are drawn."""
    compression_ratio_threshold: float | None = None
    """A text that zlib makes smaller than this many times is a loop, and fails; None lets it pass."""
    logprob_threshold: float | None = None
    """A mean log-probability a token, in nats, below this fails; None lets it pass."""
    no_speech_threshold: float | None = None
    """A window with a higher `no_speech_prob` is silence, unless `avg_logprob` is above its threshold."""
    max_repetitions: int | None = None
    """A phrase that ends a text more often than this in a row fails, and is at last written once; None lets it be."""
    long_form: str = "chunked"
    """Recordings over 30 s: `chunked` cuts at quiet points, `sequential` goes on where the last segment ended."""
    piece_s: float = 30.0
    """With `chunked`, the longest piece in seconds, 1 to 30: a model of short clips alone reads short pieces."""
    condition_on_previous_text: bool = False
    """With `sequential`, give the text of the last windows as a prompt; only for models that were trained so."""
    detect_language: bool = True
    """Detect, and score, the language also where it is given."""
    seed: int = 0
    """Of the draws above temperature 0; a window draws the same whatever shares its batch."""

    def __post_init__(self) -> None:
        if self.language != "auto":
            verify_language(self.language)
        if self.task not in TASKS:
            raise ValueError(f"decoding.task={self.task!r} must be one of {', '.join(TASKS)}")
        if self.num_beams < 1:
            raise ValueError(f"decoding.num_beams={self.num_beams} must be 1 (greedy) or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"decoding.max_new_tokens={self.max_new_tokens} must be 1 or more, or null")
        self._verify_temperatures()
        self._verify_thresholds()
        self._verify_long_form()

    def _verify_temperatures(self) -> None:
        given = list(self.temperature)
        if not given or not all(math.isfinite(t) and t >= 0 for t in given) or given != sorted(set(given)):
            raise ValueError(f"decoding.temperature={given} must rise from 0 or more, as [0.0] or [0.0, 0.2, 0.4]")
        if len(given) > 1 and not self.has_fallback:
            raise ValueError(
                f"decoding.temperature={given} needs a threshold that sends a window to the next one; "
                "give decoding.compression_ratio_threshold=2.4, or one temperature"
            )

    def _verify_thresholds(self) -> None:
        if self.compression_ratio_threshold is not None and self.compression_ratio_threshold <= 0:
            raise ValueError(
                f"decoding.compression_ratio_threshold={self.compression_ratio_threshold} must be above 0, as 2.4"
            )
        if self.logprob_threshold is not None and self.logprob_threshold > 0:
            raise ValueError(f"decoding.logprob_threshold={self.logprob_threshold} must be 0 or less, as -1.0")
        if self.no_speech_threshold is not None and not 0 <= self.no_speech_threshold <= 1:
            raise ValueError(f"decoding.no_speech_threshold={self.no_speech_threshold} must lie in 0 to 1, as 0.6")
        if self.max_repetitions is not None and self.max_repetitions < 1:
            raise ValueError(f"decoding.max_repetitions={self.max_repetitions} must be 1 or more, or null")

    def _verify_long_form(self) -> None:
        if self.long_form not in LONG_FORMS:
            raise ValueError(f"decoding.long_form={self.long_form!r} must be one of {', '.join(LONG_FORMS)}")
        if self.long_form == "sequential" and not self.timestamps:
            raise ValueError(
                "decoding.long_form=sequential follows predicted times; give decoding.timestamps=true as well, "
                "or decoding.long_form=chunked for a model that was trained without them"
            )
        if not 1 <= self.piece_s <= MAX_WINDOW_S:
            raise ValueError(f"decoding.piece_s={self.piece_s} must lie in 1 to {MAX_WINDOW_S} seconds")
        if self.condition_on_previous_text and self.long_form != "sequential":
            raise ValueError("decoding.condition_on_previous_text=true needs decoding.long_form=sequential")

    @property
    def has_fallback(self) -> bool:
        """Whether some threshold can send a window to the next temperature."""
        thresholds = (self.compression_ratio_threshold, self.logprob_threshold, self.max_repetitions)
        return any(threshold is not None for threshold in thresholds)
