"""How live text is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamSettings:
    """When a window is decoded, when its words are final, and where it is cut."""

    step_s: float = 0.4
    """New sound between two passes, at least; a slow machine takes more."""
    first_s: float = 0.8
    """Length of a window before its first pass: what is heard in less is mostly guessed."""
    end_silence_s: float = 0.6
    """Silence that ends an utterance."""
    max_window_s: float = 12.0
    """A longer window is cut, at a pause if it has one."""
    longest_window_s: float = 20.0
    """A window is cut here where it is quietest, pause or not."""
    min_pause_s: float = 0.15
    """Shortest silence that a window is cut in."""
    lead_s: float = 0.3
    """Silence that is kept before and after speech."""
    min_speech_s: float = 0.1
    """Less than this in an utterance is a click, and is not decoded."""
    agreement: int = 2
    """Passes in a row that must say a word before it is final; more are surer, and each costs `step_s`."""
    held_words: int = 1
    """Words at the end of a pass that wait while somebody speaks; in Chinese and Japanese twice as many characters."""

    def __post_init__(self) -> None:
        for name in ("step_s", "first_s", "end_silence_s", "min_pause_s", "lead_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 seconds")
        if not 1 <= self.agreement <= 5:
            raise ValueError(f"agreement={self.agreement} must be 1 to 5 passes; 2 is usual")
        if not 0 <= self.held_words <= 5:
            raise ValueError(f"held_words={self.held_words} must be 0 to 5 words; 1 is usual")
        if not 1 <= self.max_window_s <= self.longest_window_s <= 30:
            raise ValueError(
                f"max_window_s={self.max_window_s} and longest_window_s={self.longest_window_s} must lie in 1 to 30 s, "
                "the longest not below the other: Whisper hears 30 s at once"
            )
