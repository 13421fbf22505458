"""What a file of audio is, without its samples: how long, of which format, and whether it contradicts itself."""

from __future__ import annotations

import math
from pathlib import Path

from data.audio import open_clip
from data.reasons import Reason

MAX_COUNTED_S = 3_600.0  # so much is decoded to find the length of a file whose header does not say; seconds of work


def probe_duration_s(
    source: Path | bytes,
    *,
    offset_s: float | None = None,
    max_duration_s: float | None = MAX_COUNTED_S,
    name: str | None = None,
) -> float:
    """Return the length of a file from `offset_s` on, in seconds; it is decoded only where no header says it.

    Args:
        source: a regular file, or the bytes of one.
        offset_s: where the clip begins, in seconds.
        max_duration_s: where decoding gives up, in seconds; None goes on to the end. A length that a header states is
            returned whatever it is.
        name: what errors call the clip; the path by default.

    Raises:
        AudioError: if the file is missing, cut or cannot be opened as audio, if it ends before `offset_s`, or if it was
            decoded up to `max_duration_s` and goes on.
    """
    with open_clip(source, name) as clip:
        if clip.file is not None:
            found_s = float(clip.file.frames) / clip.rate
        else:
            limit_s = math.inf if max_duration_s is None else max_duration_s
            found_s = sum(len(block) for block in clip.decode(0.0, limit_s + 0.5)) / clip.rate
            if found_s > limit_s:
                clip.fail(
                    Reason.AUDIO_TOO_LONG,
                    f"more than {limit_s:g} s, and no header to trust; state duration_s",
                )
        if offset_s and offset_s >= found_s:
            clip.fail(Reason.AUDIO_TRUNCATED, f"{offset_s:g} s lies behind the end at {found_s:.2f} s")
        return found_s - (offset_s or 0.0)


def verify_container(source: Path | bytes, *, thorough: bool = False, name: str | None = None) -> None:
    """Hold the header of a file against its content, without decoding it.

    Args:
        source: a regular file, or the bytes of one.
        thorough: go through every page and frame of a long Ogg, MP3 or AAC stream, too.
        name: what errors call the clip; the path by default.

    Raises:
        AudioError: if the file is missing, empty, cut, contradicts itself, or is of no known format.
    """
    with open_clip(source, name, thorough=thorough):
        pass


def find_format(source: Path | bytes, *, name: str | None = None) -> str:
    """Return FFmpeg's name of the format that a file has by its content.

    Raises:
        AudioError: as `verify_container`.
    """
    with open_clip(source, name) as clip:
        return clip.format
