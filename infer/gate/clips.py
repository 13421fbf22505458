"""The clips that the gate judges on: written out once, so that every runtime hears the same samples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from data.audio import SAMPLING_RATE, Waveform, load_waveform
from data.rows import Row, encoded
from data.sources import Source
from infer.compare.measurement import spread
from infer.score.held_out import read_held_out

PAUSE_S = 1.0  # between clips that are joined; a quiet point is looked for in it
PAUSE_LEVEL = 1e-4  # of full scale; digital silence is heard nowhere
NUM_SOUND_SAMPLES = 30 * SAMPLING_RATE


@dataclass(frozen=True)
class GateClips:
    """Held-out clips as files of 16 kHz in one folder, with their manifest."""

    manifest: Path
    rows: tuple[Row, ...]
    sha256: str
    """Of ids, languages, texts and samples."""

    @property
    def source(self) -> Source:
        """The manifest as a source."""
        return Source(str(self.manifest))

    def waveforms(self) -> list[Waveform]:
        """Load all of them."""
        return [load_waveform(encoded(row.audio)) for row in self.rows]


def write_clips(rows: Sequence[Row], folder: Path, *, count: int) -> GateClips:
    """Write some rows of held-out sets as clips of their own.

    Args:
        rows: of the sets.
        folder: for the files; made if missing.
        count: at most so many, evenly from the shortest to the longest.

    Raises:
        AudioError: if a clip cannot be read.
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("the gate has no clips to judge on; type dataset.test=test.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    lines = []
    for i, row in enumerate(spread(rows, count)):
        waveform = load_waveform(encoded(row.audio), offset_s=row.offset_s, duration_s=row.duration_s)
        name = f"{i:05d}-{re.sub(r'[^0-9A-Za-z]+', '-', row.id)[-40:]}.wav"
        soundfile.write(folder / name, waveform, SAMPLING_RATE, subtype="FLOAT")
        fields = {"id": row.id, "text": row.text, "language": row.language, "task": row.task}
        digest.update(json.dumps(fields, ensure_ascii=False, sort_keys=True).encode() + waveform.tobytes())
        flags = {"no_speech": True} if row.no_speech else {}
        speaker = {"speaker": row.speaker} if row.speaker else {}
        lines.append(
            json.dumps(
                {**fields, "audio": name, "duration_s": len(waveform) / SAMPLING_RATE, **flags, **speaker},
                ensure_ascii=False,
            )
        )
    manifest = folder / "clips.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return GateClips(manifest, read_held_out([Source(str(manifest))]), digest.hexdigest())


@dataclass(frozen=True)
class LongRecording:
    """A recording over 30 s, and what is said in it where that is known."""

    waveform: Waveform
    text: str | None
    language: str
    starts_s: tuple[float, ...] = ()
    """Where each joined clip begins."""
    clips: tuple[Waveform, ...] = ()
    """The joined clips."""

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return len(self.waveform) / SAMPLING_RATE


def join_clips(clips: GateClips, *, long_s: float) -> LongRecording:
    """Join clips of one language, that with most of them, with pauses between.

    Args:
        clips: at least one.
        long_s: seconds, at least; shorter if the clips do not suffice.
    """
    by_language: dict[str, list[Row]] = {}
    for row in clips.rows:
        if not row.no_speech:
            by_language.setdefault(row.language, []).append(row)
    language = max(by_language, key=lambda code: (_seconds(by_language[code]), code))
    rng = np.random.default_rng(0)
    pause = (PAUSE_LEVEL * rng.standard_normal(round(PAUSE_S * SAMPLING_RATE))).astype(np.float32)
    parts: list[Waveform] = [pause]
    starts_s: list[float] = []
    texts: list[str] = []
    for row in sorted(by_language[language], key=lambda row: row.id):
        length = sum(map(len, parts))
        if length - len(pause) >= long_s * SAMPLING_RATE:
            break
        starts_s.append(length / SAMPLING_RATE)
        parts += [load_waveform(encoded(row.audio)), pause]
        texts.append(row.text)
    return LongRecording(np.concatenate(parts), " ".join(texts), language, tuple(starts_s), tuple(parts[1::2]))


def open_long(path: Path) -> LongRecording:
    """Open a recording: audio alone, or a JSON-lines file whose first line has `audio`, `text` and `language`.

    Raises:
        FileNotFoundError: if it is not there.
        AudioError: if it cannot be read.
        ValueError: if the line lacks something.
    """
    if not path.is_file():
        raise FileNotFoundError(f"gate.long_recording={path} is not there; give audio, or a manifest of one recording")
    if path.suffix != ".jsonl":
        return LongRecording(load_waveform(path, max_duration_s=None), None, "auto")
    try:
        fields = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        audio, text, language = path.parent / fields["audio"], str(fields["text"]), str(fields["language"])
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise ValueError(f'{path}:1: a line is {{"audio": "talk.wav", "text": "...", "language": "de"}}') from e
    return LongRecording(load_waveform(audio, max_duration_s=None), text, language)


def _seconds(rows: Sequence[Row]) -> float:
    return sum(row.duration_s or 0.0 for row in rows)


def made_sounds() -> dict[str, Waveform]:
    """Return 30 s each of silence, clipped noise, and chords with a beat: no speech, and hard on half arithmetic."""
    rng = np.random.default_rng(0)
    t = np.arange(NUM_SOUND_SAMPLES) / SAMPLING_RATE
    noise = np.clip(4.0 * rng.standard_normal(NUM_SOUND_SAMPLES), -1.0, 1.0)
    chords = np.array([[220.0, 277.2, 329.6], [196.0, 246.9, 293.7], [174.6, 220.0, 261.6], [164.8, 207.7, 246.9]])
    notes = chords[(t // 2).astype(int) % len(chords)]
    music = sum(
        np.sin(2 * np.pi * k * notes[:, i] * t + 0.3 * np.sin(2 * np.pi * 5 * t)) / k
        for k in range(1, 6)
        for i in range(notes.shape[1])
    )
    beat = np.exp(-12.0 * (t % 0.5)) * rng.standard_normal(NUM_SOUND_SAMPLES)
    mixed = music + 3.0 * beat
    return {
        "silence": np.zeros(NUM_SOUND_SAMPLES, dtype=np.float32),
        "clipped noise": noise.astype(np.float32),
        "music": (0.98 * mixed / np.abs(mixed).max()).astype(np.float32),
    }
