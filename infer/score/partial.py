"""A long evaluation that can be stopped: predictions appended as they come, read back and verified.

The file belongs to one artefact, one way of decoding and one set; its name is the hash of all three, so that no other
evaluation ever reads it. Each line has a checksum, and is held against the set again when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.rows import Row
from infer.score.evaluation import Prediction

logger = logging.getLogger(__name__)

VERSION = 1


@dataclass(frozen=True)
class Known:
    """What an earlier start has left."""

    predictions: Mapping[str, Prediction]
    """By id."""
    processing_s: float
    """Seconds that they took."""


def held_out_sha256(rows: Sequence[Row]) -> str:
    """Hash a held-out set: ids, texts, languages, tasks, and where each clip lies in its file. Audio is not read."""
    digest = hashlib.sha256()
    for row in rows:
        audio = row.audio.name if isinstance(row.audio, Path) else ""
        fields = [row.id, row.text, row.language, row.task, audio, row.offset_s, row.duration_s]
        digest.update(json.dumps(fields, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


class PartialPredictions:
    """Predictions of an evaluation that is not finished."""

    def __init__(
        self,
        folder: Path,
        rows: Sequence[Row],
        *,
        artefact: Mapping[str, Any],
        settings: Mapping[str, Any],
        rank: int = 0,
    ) -> None:
        """Name the files; nothing is read or written yet.

        Args:
            folder: made when the first prediction comes.
            rows: the set.
            artefact: what identifies the weights and their arithmetic; `sha256` among it.
            settings: how text is decoded.
            rank: of this process, which writes a file of its own.

        Raises:
            ValueError: if the artefact has no hash to know it by.
        """
        if not artefact.get("sha256"):
            raise ValueError(
                "an evaluation can only be continued for an artefact with a hash in mezzavoce.json or one weights file"
            )
        self._rows = {row.id: row for row in rows}
        self._key = {
            "version": VERSION,
            "artefact": dict(artefact),
            "settings": dict(settings),
            "set_sha256": held_out_sha256(rows),
        }
        text = json.dumps(self._key, sort_keys=True, default=str)
        self._stem = f"partial-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self._folder = folder
        self._path = folder / f"{self._stem}-{rank}.jsonl"

    def read(self) -> Known:
        """Return what all processes of an earlier start have left; half a line at the end of a file is dropped.

        Raises:
            RuntimeError: if a line is damaged or does not belong to the set; it names the file and the line.
        """
        predictions: dict[str, Prediction] = {}
        processing_s = 0.0
        for path in sorted(self._folder.glob(f"{self._stem}-*.jsonl")):
            for number, line in enumerate(_whole_lines(path), start=1):
                prediction, seconds = self._verified(line, path, number)
                predictions[prediction.id] = prediction
                processing_s += seconds
        if predictions:
            logger.info("%d of %d utterances were transcribed before", len(predictions), len(self._rows))
        return Known(predictions, processing_s)

    def append(self, predictions: Sequence[Prediction], *, processing_s: float) -> None:
        """Write predictions and the seconds that they took to the end of the file of this process.

        Raises:
            RuntimeError: if the file cannot be written.
        """
        lines = []
        for i, prediction in enumerate(predictions):
            body = json.dumps([dataclasses.asdict(prediction), processing_s if i == 0 else 0.0], ensure_ascii=True)
            lines.append(json.dumps({"crc32": zlib.crc32(body.encode()), "body": body}) + "\n")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _drop_half_line(self._path)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise RuntimeError(f"cannot write {self._path}: {e.strerror or e}; give another report.dir=") from e

    def remove(self) -> None:
        """Delete the files, the evaluation being finished."""
        for path in self._folder.glob(f"{self._stem}-*.jsonl"):
            path.unlink(missing_ok=True)

    def _verified(self, line: str, path: Path, number: int) -> tuple[Prediction, float]:
        try:
            stored = json.loads(line)
            if zlib.crc32(stored["body"].encode()) != stored["crc32"]:
                raise ValueError("its checksum is wrong")
            fields, seconds = json.loads(stored["body"])
            prediction = Prediction(**fields)
            row = self._rows[prediction.id]
            if (row.text, row.language) != (prediction.reference, prediction.language):
                raise ValueError(f"{prediction.id!r} has another text in the set")
        except (ValueError, KeyError, TypeError) as e:
            raise RuntimeError(f"{path}:{number} is damaged ({e}); delete the file to start anew") from e
        return prediction, float(seconds)


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def _drop_half_line(path: Path) -> None:
    """Cut off what a process that was killed left behind the last whole line."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
