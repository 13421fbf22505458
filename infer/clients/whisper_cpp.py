"""whisper.cpp through pywhispercpp, greedy, each clip one window of 30 s."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data.audio import SAMPLING_RATE, Waveform
from infer.clients.client import Client, ClientRequest, Heard
from infer.decoding import DecodeSettings
from infer.plain_search import verify_plain_search

MIN_SAMPLES = SAMPLING_RATE // 5
"""whisper.cpp says nothing of a shorter clip; it hears it with the silence that every window ends in anyway."""


class WhisperCppClient:
    """A ggml file in whisper.cpp."""

    def __init__(self, file: Path, settings: DecodeSettings, *, num_threads: int) -> None:
        """Load the file; whisper.cpp's own log is dropped.

        Args:
            file: from `convert_to_ggml`.
            settings: greedy or beams; whisper.cpp is asked for no times, no fallback and no silence rule.
            num_threads: of a clip.

        Raises:
            ValueError: for settings that are not offered.
        """
        from pywhispercpp.model import Model

        verify_plain_search(settings, "whisper.cpp")
        is_beam = settings.num_beams > 1
        beams = {"beam_search": {"beam_size": settings.num_beams, "patience": -1.0}}
        search = beams if is_beam else {"greedy": {"best_of": 1}}
        self._model = Model(
            str(file),
            params_sampling_strategy=int(is_beam),
            redirect_whispercpp_logs_to=None,
            # With its flash attention, the default, texts differ by more than rounding explains.
            context_params={"flash_attn": False},
            n_threads=num_threads,
            language=settings.language,
            translate=settings.task == "translate",
            no_timestamps=True,
            single_segment=True,
            no_context=True,
            temperature=0.0,
            temperature_inc=0.0,
            entropy_thold=-1e9,
            logprob_thold=-1e9,
            no_speech_thold=2.0,
            suppress_blank=False,
            max_tokens=max(1, settings.max_new_tokens - 1)
            if settings.max_new_tokens
            else 0,  # it stops behind one more
            print_progress=False,
            print_realtime=False,
            print_timestamps=False,
            **search,
        )
        self._language = settings.language
        self.weights_bytes = file.stat().st_size
        self.version = f"pywhispercpp {version('pywhispercpp')}"

    def transcribe(self, waveform: Waveform) -> Heard:
        """Return what one clip says."""
        heard = np.pad(waveform, (0, max(0, MIN_SAMPLES - len(waveform))))
        segments = self._model.transcribe(np.ascontiguousarray(heard, dtype=np.float32))
        text = "".join(segment.text for segment in segments)
        return Heard(text.strip(), self._detected())

    def _detected(self) -> str | None:
        import _pywhispercpp as whisper_cpp  # what the package itself calls

        if self._language != "auto":
            return None
        context: Any = getattr(self._model, "_ctx")  # noqa: B009  # its wrapper has no word for the language
        return str(whisper_cpp.whisper_lang_str(whisper_cpp.whisper_full_lang_id(context)))


def load(request: ClientRequest) -> Client:
    """Load a ggml file."""
    return WhisperCppClient(Path(request.folder), request.settings(), num_threads=request.num_threads)
