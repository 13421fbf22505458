"""Stock faster-whisper on a converted folder, told to decode as we do."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data.audio import SAMPLING_RATE, Waveform
from data.labels import PREFIX_LENGTH
from infer.backends.ctranslate2 import PATIENCE
from infer.clients.client import Client, ClientRequest, Heard
from infer.decoding import DecodeSettings
from infer.plain_search import verify_plain_search

WINDOW_SAMPLES = 30 * SAMPLING_RATE
CPU_TYPES = {"float16": "float32", "int8_float16": "int8_float32"}
"""What CTranslate2 computes in on a CPU, said aloud, since it would change the type by itself with a warning."""


class FasterWhisperClient:
    """A `faster_whisper.WhisperModel`."""

    def __init__(self, folder: Path, settings: DecodeSettings, *, num_threads: int) -> None:
        """Load the folder.

        Args:
            folder: from `convert_to_ctranslate2`.
            settings: greedy or beams.
            num_threads: of a clip.

        Raises:
            ValueError: for settings that are not offered.
        """
        from faster_whisper import WhisperModel

        verify_plain_search(settings, "faster-whisper")
        record = json.loads((folder / "mezzavoce.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        compute_type = CPU_TYPES.get(record["stored"], record["stored"])
        self._model = WhisperModel(
            str(folder), device="cpu", compute_type=compute_type, cpu_threads=num_threads, local_files_only=True
        )
        self._settings = settings
        # CTranslate2 stops at half of the prefix and the new tokens together; without a limit that is 224.
        wanted = settings.max_new_tokens
        room = self._model.max_length - PREFIX_LENGTH
        self._max_new_tokens = None if wanted is None else min(2 * wanted - PREFIX_LENGTH, room)
        # faster-whisper's own default, -1, is a list of its own and not the list of the model.
        self._suppressed: list[int] = list(config.get("suppress_ids") or [])
        self._suppress_blank = bool(config.get("suppress_ids_begin"))
        self.weights_bytes = (folder / "model.bin").stat().st_size
        self.version = f"faster-whisper {version('faster-whisper')}, ctranslate2 {version('ctranslate2')}"

    def transcribe(self, waveform: Waveform) -> Heard:
        """Return what one clip says."""
        # It fills a short clip up with zeros in the log-mel, which is no silence: Whisper was trained, in OpenAI's code
        # and ours, on samples of silence. Given those, the features are the same.
        padded = np.pad(waveform, (0, max(0, WINDOW_SAMPLES - len(waveform))))
        segments, info = self._model.transcribe(
            padded,
            language=None if self._settings.language == "auto" else self._settings.language,
            task=self._settings.task,
            beam_size=self._settings.num_beams,
            patience=PATIENCE if self._settings.num_beams > 1 else 1.0,
            temperature=0.0,
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
            condition_on_previous_text=False,
            without_timestamps=True,
            vad_filter=False,
            suppress_tokens=self._suppressed,
            suppress_blank=self._suppress_blank,
            max_new_tokens=self._max_new_tokens,
        )
        return Heard("".join(segment.text for segment in segments).strip(), info.language)


def load(request: ClientRequest) -> Client:
    """Load a folder."""
    return FasterWhisperClient(Path(request.folder), request.settings(), num_threads=request.num_threads)
