"""Keep the secrets of the environment out of everything that is said."""

from __future__ import annotations

import os

SECRET_WORDS = ("key", "token", "secret", "password", "credential")
SHORTEST = 8  # letters; what is shorter is a switch, not a secret


def names_a_secret(name: str) -> bool:
    """Say whether a name speaks of a key, token, secret or password."""
    words = name.lower().replace("-", "_").split("_")
    return any(word in words for word in SECRET_WORDS)


def redact(text: str) -> str:
    """Return a text without the values of the environment's secrets: a library may put a token into its error."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and names_a_secret(name) and value in text:
            text = text.replace(value, f"<{name}>")
    return text
