"""From an artefact to a folder for ONNX Runtime: encoder, decoder, decoder with past, and the tokenizer."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from infer.artefact import RECORD_NAME, load_artefact, refuse_remote_code
from infer.encoder import WindowedWhisper
from infer.export.onnx_files import join_graphs
from infer.export.onnx_graphs import DecoderGraph, DecoderWithPastGraph, EncoderGraph, cache_names
from infer.export.onnx_int8 import quantise_graphs
from infer.weights import file_sha256, weights_sha256

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
GRAPHS = ENCODER, DECODER, DECODER_WITH_PAST = "encoder.onnx", "decoder.onnx", "decoder_with_past.onnx"
COPIED_FILES = ("config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json")
OPTIONAL_FILES = ("tokenizer_config.json", "processor_config.json")
MAX_PROTOBUF_BYTES = 2**31 - 2**24
"""Of a graph with its weights in it, which is how they are traced; larger ones are traced into a file beside it."""
OPSET = 18
INSTALL = 'pip install "mezzavoce[runtimes]"'


def convert_to_onnx(artefact_dir: Path, target: Path, *, dtype: str = "fp32", int8: bool = False) -> Path:
    """Write the folder, and return it.

    Batch, frames, tokens and past are free in the graphs, so any window that the model was trained with goes in.
    Features and logits are FP32 in any case; FP16 graphs hold FP16 weights, hidden states and caches. On a CPU without
    FP16 arithmetic ONNX Runtime casts them and computes in FP32. The weights of all three lie in one file beside them.

    Args:
        artefact_dir: ours, or any in Hugging Face's format with safetensors.
        target: the folder; one that is there is replaced when the new one is whole.
        dtype: a name in `DTYPES`.
        int8: quantise all matrices, tables and filters, one scale a channel; activations as they come, at run time.

    Raises:
        ValueError: for another type, or int8 of FP16 graphs.
        FileNotFoundError: if a file is missing.
        RuntimeError: if a package is not installed, or the folder cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} must be one of {', '.join(DTYPES)}")
    if int8 and dtype != "fp32":
        raise ValueError(f"int8=true needs dtype=fp32, found {dtype}: ONNX Runtime quantises FP32 graphs")
    for name in COPIED_FILES:
        if not (artefact_dir / name).is_file():
            raise FileNotFoundError(f"{artefact_dir} has no {name}; artefact= takes the export/ folder of a run")
    refuse_remote_code(artefact_dir)
    _verify_packages()
    temporary = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        model = load_artefact(artefact_dir, compute="fp32").model.to(DTYPES[dtype]).eval()
        traced = temporary / "traced"
        traced.mkdir()
        is_large = _export_graphs(model, traced)
        if int8:
            whole, traced = traced, temporary / "int8"
            traced.mkdir()
            quantise_graphs(whole, traced, GRAPHS, is_large=is_large)
            shutil.rmtree(whole)
        join_graphs(traced, temporary, GRAPHS)
        shutil.rmtree(traced)
        for name in (*COPIED_FILES, *OPTIONAL_FILES):
            if (artefact_dir / name).is_file():
                shutil.copyfile(artefact_dir / name, temporary / name)
        _write_record(temporary, artefact_dir, "int8" if int8 else dtype)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except OSError as e:
        raise RuntimeError(f"cannot write {target}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _verify_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise RuntimeError(f"ONNX export needs onnx, onnxscript and onnxruntime ({e}); type {INSTALL}") from e


def _export_graphs(model: WindowedWhisper, folder: Path) -> bool:
    """Trace the three graphs, and return whether weights lie beside them."""
    # Of examples no size is 1: torch.export would take it for a constant.
    config = model.config
    rows, frames, tokens = Dim("rows"), Dim("half_frames"), Dim("tokens")
    features = torch.zeros(2, config.num_mel_bins, 64)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    present = cache_names(config.decoder_layers, "present", with_encoder=True)
    with torch.inference_mode():
        states = EncoderGraph(model)(features)
        past = list(DecoderGraph(model)(ids, states)[1:])
    states, past = states.clone(), [cache.clone() for cache in past]
    _export(
        EncoderGraph(model),
        (features,),
        folder / ENCODER,
        inputs=["input_features"],
        outputs=["encoder_hidden_states"],
        shapes=({0: rows, 2: 2 * frames},),
    )
    _export(
        DecoderGraph(model),
        (ids, states),
        folder / DECODER,
        inputs=["input_ids", "encoder_hidden_states"],
        outputs=["logits", *present],
        shapes=({0: rows, 1: tokens}, {0: rows, 1: Dim("positions")}),
    )
    own, cross = {0: rows, 2: Dim("past")}, {0: rows, 2: Dim("positions")}
    _export(
        DecoderWithPastGraph(model),
        (ids, past),
        folder / DECODER_WITH_PAST,
        inputs=["input_ids", *cache_names(config.decoder_layers, "past", with_encoder=True)],
        outputs=["logits", *cache_names(config.decoder_layers, "present", with_encoder=False)],
        shapes=({0: rows, 1: tokens}, [own, own, cross, cross] * config.decoder_layers),
    )
    return any(folder.glob("*.data"))


def _export(
    graph: nn.Module,
    arguments: tuple[Any, ...],
    file: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: Any,
) -> None:
    num_bytes = sum(p.numel() * p.element_size() for p in graph.parameters())
    silent = io.StringIO()  # the exporter prints its progress, and warns that axes which are equal share a name
    with contextlib.redirect_stdout(silent), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.eval(),
            arguments,
            str(file),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            opset_version=OPSET,
            external_data=num_bytes > MAX_PROTOBUF_BYTES,
            verbose=False,
        )


def _write_record(folder: Path, artefact_dir: Path, stored: str) -> None:
    file = artefact_dir / RECORD_NAME
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content = {
        **{key: value for key, value in record.items() if key != "files"},
        "format": "onnx",
        "stored": stored,
        "made_of": {"path": artefact_dir.name, "sha256": weights_sha256(artefact_dir, record.get("files"))},
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    }
    text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")
