"""The stock `transformers` pipeline on a folder in Hugging Face's format."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import pipeline
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE
from transformers.utils import logging

from data.audio import SAMPLING_RATE, Waveform
from data.labels import PREFIX_LENGTH
from infer.clients.client import Client, ClientRequest, Heard
from infer.decoding import DecodeSettings
from infer.plain_search import verify_plain_search


class PipelineClient:
    """The pipeline `automatic-speech-recognition`."""

    def __init__(self, folder: Path, settings: DecodeSettings) -> None:
        """Load the folder, to compute in FP32 as all runtimes do on a CPU."""
        verify_plain_search(settings, "the transformers pipeline")
        logging.set_verbosity_error()
        self._pipeline = pipeline(
            "automatic-speech-recognition", model=str(folder), dtype=torch.float32, device=torch.device("cpu")
        )
        config = self._pipeline.model.config
        limit = settings.max_new_tokens or config.max_target_positions - PREFIX_LENGTH
        self._options: dict[str, Any] = {
            "task": settings.task,
            "num_beams": settings.num_beams,
            "max_new_tokens": limit,
            **({} if settings.language == "auto" else {"language": settings.language}),
        }
        self.weights_bytes = sum(p.numel() * p.element_size() for p in self._pipeline.model.parameters())
        self.version = f"transformers {version('transformers')}"

    def transcribe(self, waveform: Waveform) -> Heard:
        """Return what one clip says."""
        # The pipeline may write into what it is given.
        clip = {"raw": waveform.copy(), "sampling_rate": SAMPLING_RATE}
        found = self._pipeline(clip, generate_kwargs=dict(self._options), return_language=True)
        name = next((chunk["language"] for chunk in found.get("chunks", []) if chunk.get("language")), None)
        return Heard(found["text"].strip(), TO_LANGUAGE_CODE.get(name, name))


def load(request: ClientRequest) -> Client:
    """Load a folder."""
    return PipelineClient(Path(request.folder), request.settings())
