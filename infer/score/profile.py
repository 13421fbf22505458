"""Scoring profiles: what counts as the same in a language, read from `profiles/*.yaml`, each step with its reason.

They lie in the package and not in `conf/`, because they define the measure and are no setting: a rate with another
profile is another rate. And the error rates are also used where Hydra is not: in validation, in the modules for
`evaluate.load`, in a program that imports `infer`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from infer.score.spelling import STEPS, Step

Metric = Literal["wer", "cer"]

PROFILES_DIR = Path(__file__).parent / "profiles"

_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
_CODE_POINTS = re.compile(r"U\+([0-9A-F]{4,6})(?:-U\+([0-9A-F]{4,6}))?")
_FIELDS = {"languages", "metric", "why", "steps"}


@dataclass(frozen=True)
class Profile:
    """How texts of some languages are brought to one spelling, and which rate judges them."""

    name: str
    languages: tuple[str, ...]
    metric: Metric
    why: str
    steps: tuple[Step, ...]
    reasons: tuple[tuple[str, str], ...]
    """Name and reason of each step, for people to read."""
    sha256: str
    """Of the file; stands beside every number."""

    def apply(self, text: str) -> str:
        """Return the spelling that scores compare."""
        for step in self.steps:
            text = step(text)
        return text


def profile_of(language: str) -> Profile:
    """Look up the profile of a language.

    Args:
        language: ISO code as in Whisper's tokenizer (`de`, `yue`), or `und`.

    Raises:
        ValueError: if it is no code, or a code without a profile.
    """
    try:
        return load_profiles()[language]
    except KeyError:
        pass
    if not _LANGUAGE_CODE.fullmatch(language):
        raise ValueError(
            f"language={language!r} is not a language code; use the ISO code in lower case, such as en, zh or yue"
        )
    near = difflib.get_close_matches(language, load_profiles(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no scoring profile for language {language!r}; {hint}Add it to the languages of a file in {PROFILES_DIR}, or "
        "use und for the basic rule"
    )


@cache
def load_profiles() -> Mapping[str, Profile]:
    """Read every profile, by language.

    Raises:
        ValueError: if a file is no profile, or a language stands in two.
    """
    profiles: dict[str, Profile] = {}
    for path in sorted(PROFILES_DIR.glob("*.yaml")):
        profile = read_profile(path)
        for language in profile.languages:
            other = profiles.setdefault(language, profile)
            if other is not profile:
                raise ValueError(f"language {language!r} stands in {other.name}.yaml and {profile.name}.yaml; keep one")
    return profiles


def read_profile(path: Path) -> Profile:
    """Read one profile.

    Raises:
        ValueError: if it is no profile, with what is wrong and what is allowed.
    """
    data = path.read_bytes()
    try:
        content = yaml.safe_load(data)
        if not isinstance(content, dict) or content.keys() != _FIELDS:
            raise ValueError(f"it must have {', '.join(sorted(_FIELDS))}")
        languages = tuple(content["languages"])
        wrong = [code for code in languages if not (isinstance(code, str) and _LANGUAGE_CODE.fullmatch(code))]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no language code; write it in quotes if YAML reads it as another thing")
        if content["metric"] not in ("wer", "cer"):
            raise ValueError(f"metric={content['metric']!r} must be wer or cer")
        if not content["why"]:
            raise ValueError("the profile has no reason")
        return Profile(
            name=path.stem,
            languages=languages,
            metric=content["metric"],
            why=str(content["why"]),
            steps=tuple(map(_build_step, content["steps"])),
            reasons=tuple((str(step["do"]), str(step["why"])) for step in content["steps"]),
            sha256=hashlib.sha256(data).hexdigest(),
        )
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as e:
        raise ValueError(f"{path} is no scoring profile: {e}") from e


def _build_step(fields: Mapping[str, Any]) -> Step:
    """Build one step from its entry in the file."""
    name = str(fields.get("do"))
    if not fields.get("why"):
        raise ValueError(f"step {name!r} has no reason; write why: ...")
    if name == "replace":
        return _translate({ord(old): str(new) for old, new in fields["pairs"].items()})
    if name == "delete":
        return _translate(dict.fromkeys(code for entry in fields["characters"] for code in _code_points(entry)))
    if name not in STEPS:
        raise ValueError(f"unknown step {name!r}; steps are {', '.join([*STEPS, 'replace', 'delete'])}")
    return STEPS[name]


def _translate(table: Mapping[int, str | None]) -> Step:
    """Return a step that replaces single characters."""
    return lambda text: text.translate(table)


def _code_points(entry: str) -> range:
    """Read `U+064B` or `U+064B-U+0652`."""
    match = _CODE_POINTS.fullmatch(str(entry))
    if match is None:
        raise ValueError(f"{entry!r} is no code point; write U+0640 or U+064B-U+0652")
    first = int(match[1], 16)
    return range(first, int(match[2] or match[1], 16) + 1)
