"""What an examination finds, whom it concerns, and the verdict on each runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TRANSFORMERS = "transformers"
FASTER_WHISPER = "faster-whisper"
OPENAI = "openai-whisper"
WHISPER_CPP = "whisper.cpp"
ONNX = "onnxruntime"
OURS = "mezzavoce"
RUNTIMES = (TRANSFORMERS, FASTER_WHISPER, OPENAI, WHISPER_CPP, ONNX, OURS)
"""Who may run a folder; all but transformers and ours through `scripts/export.py`."""
HALF_RUNTIMES = (FASTER_WHISPER, WHISPER_CPP, OPENAI, OURS)
"""Those whose usual format, or whose arithmetic on a card, is FP16."""


@dataclass(frozen=True)
class Finding:
    """One fault."""

    code: str
    """Of the check that found it."""
    found: str
    advice: str
    """What to type, or to do."""
    breaks: tuple[str, ...] = ()
    """Runtimes that fail with it, or give another text without a word."""
    troubles: tuple[str, ...] = ()
    """Runtimes that work, with something missing or slower."""
    can_repair: bool = False
    """Whether `fix=true` mends it."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a folder in one runtime."""

    runtime: str
    level: str
    """`works`, `trouble` or `broken`."""
    codes: tuple[str, ...]
    """Of the findings behind it."""


def judge(findings: Sequence[Finding]) -> tuple[Verdict, ...]:
    """Return a verdict for every runtime."""
    verdicts = []
    for runtime in RUNTIMES:
        breaking = tuple(f.code for f in findings if runtime in f.breaks)
        troubling = tuple(f.code for f in findings if runtime in f.troubles and f.code not in breaking)
        level = "broken" if breaking else "trouble" if troubling else "works"
        verdicts.append(Verdict(runtime, level, breaking + troubling))
    return tuple(verdicts)
