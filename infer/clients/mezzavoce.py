"""Our own runtime, beside the others."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from data.audio import Waveform
from data.windows import full_windows
from infer.artefact import load_artefact
from infer.clients.client import Client, ClientRequest, Heard
from infer.transcriber import Transcriber


class MezzavoceClient:
    """Our transcriber on an artefact."""

    def __init__(self, transcriber: Transcriber) -> None:
        """Take a transcriber that is ready."""
        self._transcriber = transcriber
        parameters = transcriber.artefact.model.parameters()
        self.weights_bytes = sum(p.numel() * p.element_size() for p in parameters)
        self.version = f"torch {version('torch')}"

    def transcribe(self, waveform: Waveform) -> Heard:
        """Return what one clip says."""
        (found,) = self._transcriber.transcribe([waveform])
        return Heard(found.text, found.detected_language)


def load(request: ClientRequest) -> Client:
    """Load an artefact."""
    artefact = load_artefact(Path(request.folder), device=torch.device("cpu"))
    if request.windows == "full":
        artefact = replace(artefact, windows=full_windows())
    return MezzavoceClient(Transcriber(artefact, request.settings(), batch_size=1))
