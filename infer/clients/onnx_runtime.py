"""ONNX Runtime on the exported graphs, decoded by our search."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from data.audio import Waveform
from data.windows import full_windows
from infer.backends.onnx import OnnxDecoder, load_onnx
from infer.clients.client import Client, ClientRequest, Heard
from infer.transcriber import Transcriber


class OnnxRuntimeClient:
    """Our transcriber over ONNX Runtime."""

    def __init__(self, transcriber: Transcriber, folder: Path) -> None:
        """Take a transcriber that is ready, and the folder of its graphs."""
        self._transcriber = transcriber
        self.weights_bytes = sum(file.stat().st_size for file in folder.glob("*.onnx*"))
        self.version = f"onnxruntime {version('onnxruntime')}"

    def transcribe(self, waveform: Waveform) -> Heard:
        """Return what one clip says."""
        (found,) = self._transcriber.transcribe([waveform])
        return Heard(found.text, found.detected_language)


def load(request: ClientRequest) -> Client:
    """Load a folder of graphs."""
    folder = Path(request.folder)
    artefact = load_onnx(folder, num_threads=request.num_threads)
    if request.windows == "full":
        artefact = replace(artefact, windows=full_windows())
    transcriber = Transcriber(artefact, request.settings(), batch_size=1, decoder=OnnxDecoder(artefact))
    return OnnxRuntimeClient(transcriber, folder)
