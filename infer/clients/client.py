"""The programs that people run a model in, each as its users run it: one question, one answer, one process a client.

A process of its own, so that memory and start are the client's, and so that one that crashes costs one row.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data.audio import Waveform, load_waveform
from data.rows import encoded
from data.sources import Source
from infer.compare.measurement import PROJECT, last_words, spread
from infer.compare.memory import MemoryMeter
from infer.decoding import DecodeSettings
from infer.score.held_out import read_held_out

INSTALL = 'pip install "mezzavoce[runtimes]"'


@dataclass(frozen=True)
class Heard:
    """What a client made of one clip."""

    text: str
    language: str | None = None
    """As an ISO code, where the client detected it."""


class Client(Protocol):
    """A loaded model in one client."""

    weights_bytes: int
    """Of the weights as they lie in memory, or of the file where the client does not say."""
    version: str
    """Of the package that computes."""

    def transcribe(self, waveform: Waveform) -> Heard:
        """Return what one clip says."""


@dataclass(frozen=True)
class ClientKind:
    """One client that can be asked."""

    name: str
    title: str
    format: str
    """The export format that it takes."""
    package: str
    """What must be importable."""
    module: str
    """Ours, with `load(request) -> Client`."""


CLIENTS: dict[str, ClientKind] = {
    kind.name: kind
    for kind in (
        ClientKind("mezzavoce", "Mezzavoce", "hf", "torch", "infer.clients.mezzavoce"),
        ClientKind(
            "transformers", "transformers pipeline", "hf", "transformers", "infer.clients.transformers_pipeline"
        ),
        ClientKind("faster_whisper", "faster-whisper", "ctranslate2", "faster_whisper", "infer.clients.faster_whisper"),
        ClientKind("openai_whisper", "openai-whisper", "openai", "whisper", "infer.clients.openai_whisper"),
        ClientKind("onnxruntime", "ONNX Runtime", "onnx", "onnxruntime", "infer.clients.onnx_runtime"),
        ClientKind("whisper_cpp", "whisper.cpp", "ggml", "pywhispercpp", "infer.clients.whisper_cpp"),
    )
}


@dataclass(frozen=True)
class ClientRequest:
    """What a client is asked."""

    client: str
    """A name in `CLIENTS`."""
    folder: str
    """What was exported in the format of the client; a file where the format is one."""
    sources: tuple[Mapping[str, Any], ...]
    """Of the held-out set, as mappings of `Source`."""
    decoding: Mapping[str, Any]
    """As a mapping of `DecodeSettings`; with `language: auto` the client detects it."""
    windows: str = "full"
    """`full`: 30 s, as stock clients hear; `trained`: the edges of the artefact, for those that can."""
    num_threads: int = 2
    latency_clips: int = 10
    """Clips that are timed one at a time, evenly from the shortest to the longest."""

    def settings(self) -> DecodeSettings:
        """Return how to decode."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.decoding.items()}
        return DecodeSettings(**values)


def run_client_in_process(request: ClientRequest, scratch: Path) -> dict[str, Any]:
    """Transcribe a held-out set with a client in a new process.

    Args:
        request: what to ask.
        scratch: a folder for the question and the answer; made if missing.

    Returns:
        `texts` and `languages` by the id of the clip, `latency_p50_s`, `latency_p95_s`, `rtfx` (one clip at a time),
        `audio_s`, `peak_bytes`, `weights_bytes` and `version`; or `absent` with what to install; or `failed` with its
        last words.
    """
    kind = CLIENTS[request.client]
    if find_spec(kind.package) is None:
        return {"absent": f"{kind.package} is not installed; type {INSTALL}"}
    scratch.mkdir(parents=True, exist_ok=True)
    question, answer = scratch / f"{request.client}.request.json", scratch / f"{request.client}.json"
    answer.unlink(missing_ok=True)
    question.write_text(json.dumps(asdict(request), ensure_ascii=False), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": str(request.num_threads)}
    command = [sys.executable, "-m", "infer.clients.client", str(question), str(answer)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0 or not answer.is_file():
        return {"failed": last_words(finished.stderr, finished.returncode)}
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def run_client(request: ClientRequest) -> dict[str, Any]:
    """Transcribe here and now; returns what `run_client_in_process` does."""
    torch.set_num_threads(request.num_threads)
    rows = read_held_out([Source(**source) for source in request.sources])
    waveforms = {
        row.id: load_waveform(encoded(row.audio), offset_s=row.offset_s, duration_s=row.duration_s) for row in rows
    }
    meter = MemoryMeter(torch.device("cpu"))
    client: Client = importlib.import_module(CLIENTS[request.client].module).load(request)
    gc.collect()
    heard: dict[str, Heard] = {}
    with meter:
        client.transcribe(waveforms[rows[0].id])  # the first call allocates
        latency_s = []
        for row in spread(rows, request.latency_clips):
            start = time.perf_counter()
            client.transcribe(waveforms[row.id])
            latency_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        for row in rows:
            heard[row.id] = client.transcribe(waveforms[row.id])
        processing_s = time.perf_counter() - start
    audio_s = sum(len(waveform) for waveform in waveforms.values()) / 16_000
    p50, p95 = np.quantile(latency_s, [0.5, 0.95]).tolist()
    return {
        "texts": {id_: item.text for id_, item in heard.items()},
        "languages": {id_: item.language for id_, item in heard.items()},
        "latency_p50_s": p50,
        "latency_p95_s": p95,
        "audio_s": audio_s,
        "rtfx": audio_s / processing_s,
        "peak_bytes": meter.figures()["peak_bytes"],
        "weights_bytes": client.weights_bytes,
        "version": client.version,
    }


def main(arguments: Sequence[str]) -> int:
    """Answer one question from a file into a file."""
    question, answer = map(Path, arguments)
    asked = json.loads(question.read_text(encoding="utf-8"))
    found = run_client(ClientRequest(**{**asked, "sources": tuple(asked["sources"])}))
    answer.write_text(json.dumps(found, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
