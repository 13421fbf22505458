"""Clips inside a page: short MP3 as data, so that one file can be listened to anywhere, also on a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from data.audio import SAMPLING_RATE, AudioError, Waveform, load_waveform
from data.rows import Row, encoded

MAX_CLIP_S = 30.0  # of one clip; what is longer is heard from its beginning
COMPRESSION = 0.8  # of 0 to 1; about 3 KB a second of speech
FORMAT = "audio/mpeg"


@dataclass(frozen=True)
class Player:
    """What stands beside an utterance."""

    source: str | None
    """Data URI; None where the page has no room left for it, or the file cannot be read."""
    remark: str = ""
    """Why there is none, or that it is cut."""


def embed_clips(rows: Sequence[Row | None], *, max_clips: int, max_bytes: int) -> list[Player]:
    """Return a player for each row, in order, until the caps are reached.

    Args:
        rows: of the manifest; None where an utterance has none.
        max_clips: players with sound.
        max_bytes: of all of them together, as they stand in the page.
    """
    players: list[Player] = []
    num_embedded = used = 0
    for row in rows:
        if row is None or num_embedded >= max_clips:
            players.append(Player(None, "" if row is None or max_clips == 0 else f"the page holds {max_clips} clips"))
            continue
        try:
            waveform = _load(row)
        except (AudioError, OSError) as e:
            players.append(Player(None, f"the clip cannot be read: {e}"))
            continue
        source = to_data_uri(waveform[: int(MAX_CLIP_S * SAMPLING_RATE)])
        if used + len(source) > max_bytes:
            players.append(Player(None, "no room left in the page"))
            continue
        is_cut = len(waveform) > MAX_CLIP_S * SAMPLING_RATE
        players.append(Player(source, f"the first {MAX_CLIP_S:g} s" if is_cut else ""))
        num_embedded, used = num_embedded + 1, used + len(source)
    return players


def to_data_uri(waveform: Waveform) -> str:
    """Encode a waveform (num_samples,) float32 at 16 kHz as MP3 inside a data URI."""
    buffer = io.BytesIO()
    samples = np.clip(waveform, -1.0, 1.0)
    soundfile.write(
        buffer,
        samples,
        SAMPLING_RATE,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=COMPRESSION,
        bitrate_mode="VARIABLE",
    )
    return f"data:{FORMAT};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _load(row: Row) -> Waveform:
    return load_waveform(
        encoded(row.audio), offset_s=row.offset_s, duration_s=row.duration_s, max_duration_s=None, name=str(row.audio)
    )
