"""Why a row is not taken: every code, its message, and the record that goes into `quarantine.jsonl`."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path


class Reason(Enum):
    """Code of a fault in a row, with the sentence that explains it. Codes are stable; people filter by them."""

    AUDIO_MISSING = ("A01", "the audio file does not exist")
    AUDIO_EMPTY = ("A02", "the audio has no samples")
    AUDIO_TRUNCATED = ("A03", "the audio is shorter than the manifest says")
    AUDIO_CORRUPT = ("A04", "the audio cannot be decoded")
    AUDIO_NOT_FINITE = ("A05", "the audio holds NaN or infinite samples")
    AUDIO_SILENT = ("A06", "the audio is silent, and yet has a text")
    AUDIO_SAMPLING_RATE = ("A08", "the sampling rate is outside 4 to 192 kHz")
    AUDIO_CHANNELS = ("A09", "the audio has more than 8 channels")
    AUDIO_TOO_LONG = ("A10", "the clip is longer than the 30 s window")
    AUDIO_TOO_SHORT = ("A11", "the clip is shorter than 0.1 s")
    AUDIO_SCALE = ("A15", "the samples lie far outside -1 to 1")
    AUDIO_DURATION = ("M08", "the audio is longer than the manifest says")
    AUDIO_CHANGED = ("M11", "the audio file is another than when the run began")
    AUDIO_NOT_A_FILE = ("A18", "the audio path is not a regular file")
    TEXT_CONTROL = ("T02", "the transcript holds a control character or half a character")
    TEXT_EMPTY = ("T03", "the transcript is empty")
    TEXT_TOO_LONG = ("T04", "the transcript needs more label positions than the model has")
    TEXT_SPECIAL_TOKEN = ("T07", "the transcript holds a control token of the tokenizer")
    TEXT_LANGUAGE = ("T08", "the language is not one of Whisper's")
    TEXT_TASK = ("T10", "the task is neither transcribe nor translate")
    SEGMENT_TIME = ("T11", "a segment lies outside the clip's window")
    LINE_JSON = ("M01", "the line is not a JSON object with the fields of a manifest")
    LINE_ENCODING = ("T01", "the line is not UTF-8")
    LINE_DUPLICATE_ID = ("M02", "the id occurs twice")
    LINE_URL = ("M07", "the audio is a URL; a manifest names local files")
    LOSS_NOT_FINITE = ("L01", "the loss of this clip is not finite")

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


LINE_FAULTS = frozenset(
    reason.code
    for reason in (
        Reason.LINE_JSON,
        Reason.LINE_ENCODING,
        Reason.LINE_DUPLICATE_ID,
        Reason.LINE_URL,
        Reason.TEXT_LANGUAGE,
        Reason.TEXT_TASK,
        Reason.AUDIO_MISSING,
    )
)
"""Codes that the catalogue calls rejected: nothing but the line is at fault, and only its author can mend it."""


@dataclass(frozen=True)
class Rejected:
    """One row that is not taken."""

    manifest: str
    """Path of the manifest."""
    line: int
    """Line in the manifest, counted from 1."""
    id: str
    """Id of the row, or an empty string where the line has none."""
    audio: str
    code: str
    message: str
    byte_offset: int | None = None
    """Where the line begins in the manifest; None where lines are not bytes, as in Parquet."""
    duration_s: float | None = None
    """Length of the clip as stated or found; None where nobody knows."""

    @property
    def is_line_fault(self) -> bool:
        """True if the line itself cannot be used (rejected), False if its audio or text is bad (quarantined)."""
        return self.code in LINE_FAULTS

    def __str__(self) -> str:
        return f"{self.manifest}:{self.line}: [{self.code}] {self.message}"

    def as_record(self) -> dict[str, object]:
        """Return the JSON object for `quarantine.jsonl`, with size and SHA-256 of the audio file where there is one."""
        path = Path(self.audio) if self.audio else None
        try:
            if path is None or not path.is_file():
                return asdict(self)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {**asdict(self), "size": path.stat().st_size, "sha256": digest}
        except (OSError, ValueError):  # a file that may not be read; a path that is no path
            return asdict(self)


def reject(
    reason: Reason,
    *,
    manifest: Path | str,
    line: int,
    id: str = "",
    audio: object = "",
    detail: str = "",
    byte_offset: int | None = None,
    duration_s: float | None = None,
) -> Rejected:
    """Build the record of a row that is not taken; `detail` says what was found."""
    message = f"{reason.message}: {detail}" if detail else reason.message
    is_known = duration_s is not None and math.isfinite(duration_s)
    return Rejected(
        str(manifest),
        line,
        _writable(id),
        _writable(str(audio)),
        reason.code,
        _writable(message),
        byte_offset,
        duration_s if is_known else None,
    )


def _writable(text: str) -> str:
    """Replace half surrogate pairs, which JSON can spell and UTF-8 cannot: the record itself must be writable."""
    return text.encode("utf-8", "replace").decode("utf-8")


def summarise(rejected: Iterable[Rejected], *, num_shown: int = 5) -> str:
    """Count by code and show the first few records, as text for an error or a log."""
    rejected = list(rejected)
    counts = Counter(record.code for record in rejected)
    lines = [", ".join(f"{code} x{count}" for code, count in sorted(counts.items()))]
    lines += [f"  {record}" for record in rejected[:num_shown]]
    if len(rejected) > num_shown:
        lines.append(f"  ... and {len(rejected) - num_shown} more")
    return "\n".join(lines)
