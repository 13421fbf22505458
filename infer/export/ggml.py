"""From an artefact to one file for whisper.cpp, in its ggml format.

The file holds the sizes, the mel filters, the vocabulary and the tensors. A vocabulary of the model's own is moved to
OpenAI's ids (`openai_layout`), since whisper.cpp counts the ids of its special tokens from there. It carries no windows
and no decode settings: whisper.cpp hears 30 s, and a user passes the rest.

Which tensors stay FP32 and FP16 is as in whisper.cpp: vectors and positions are FP32, convolutions FP16, and all other
matrices what is asked for.

Source: ggml-org/whisper.cpp `models/convert-h5-to-ggml.py`, `examples/common-ggml.cpp`, `src/whisper.cpp`.
"""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor

from infer.artefact import load_tokenizer, refuse_remote_code
from infer.export.ggml_blocks import BLOCK, q5_0_blocks, q8_0_blocks
from infer.export.openai_layout import Layout, openai_layout, openai_sizes, read_tensors, token_bytes
from infer.export.widening import num_copies

STORED = ("f16", "q8_0", "q5_0")
MAGIC = 0x67676D6C
QUANTIZED = 2 * 1000
"""Version 2 of ggml's blocks; stands in front of the type."""
FILE_TYPES = {"f16": 1, "q8_0": QUANTIZED + 7, "q5_0": QUANTIZED + 8}
F32, F16 = 0, 1
TENSOR_TYPES = {"f16": F16, "q8_0": 8, "q5_0": 6}
CONVOLUTION_BIASES = ("encoder.conv1.bias", "encoder.conv2.bias")
POSITIONS = ("encoder.positional_embedding", "decoder.positional_embedding")
SIZES = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)


def convert_to_ggml(artefact_dir: Path, target_file: Path, *, stored: str = "f16") -> Path:
    """Write a Whisper folder as one file for whisper.cpp, and return the file.

    One tensor is in memory at a time. FP16 weights come out as they went in under `f16`.

    Args:
        artefact_dir: ours, or any in Hugging Face's format with safetensors.
        target_file: such as `ggml-model-f16.bin`; one that is there is replaced when the new one is whole.
        stored: one of `STORED`.

    Raises:
        ValueError: for another `stored`, a vocabulary that does not fit, or a width that blocks do not divide.
        FileNotFoundError: if a file that is needed is missing.
        RuntimeError: if the file cannot be written.
    """
    if stored not in STORED:
        raise ValueError(f"stored={stored} must be one of {', '.join(STORED)}")
    for name in ("config.json", "tokenizer.json"):
        if not (artefact_dir / name).is_file():
            raise FileNotFoundError(f"{artefact_dir} has no {name}; whisper.cpp's file is made of it")
    refuse_remote_code(artefact_dir)
    config = WhisperConfig.from_pretrained(str(artefact_dir))
    width = config.d_model * num_copies(config)
    if stored != "f16" and width % BLOCK:
        raise ValueError(
            f"the width {width} is not a multiple of {BLOCK}, which stored={stored} needs; give stored=f16"
        )
    tokenizer = load_tokenizer(artefact_dir)
    layout = openai_layout(tokenizer, config.vocab_size)
    words = token_bytes(tokenizer, layout.num_text)
    temporary = target_file.parent / f".tmp-{target_file.name}-{uuid.uuid4().hex[:8]}"
    try:
        target_file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            _write_head(file, config, layout, words, stored)
            for name, tensor in read_tensors(artefact_dir, config, layout):
                _write_tensor(file, name, tensor, stored)
        os.replace(temporary, target_file)
    except OSError as e:
        raise RuntimeError(f"cannot write {target_file}: {e.strerror or e}") from e
    finally:
        temporary.unlink(missing_ok=True)
    return target_file


def _write_head(file: BinaryIO, config: WhisperConfig, layout: Layout, words: list[bytes], stored: str) -> None:
    sizes = openai_sizes(config, layout)
    file.write(struct.pack("<I", MAGIC))
    file.write(struct.pack("<11i", *(sizes[name] for name in SIZES), FILE_TYPES[stored]))
    filters = np.ascontiguousarray(WhisperFeatureExtractor(config.num_mel_bins).mel_filters.T, dtype="<f4")
    file.write(struct.pack("<2i", *filters.shape))
    file.write(filters.tobytes())
    file.write(struct.pack("<i", len(words)))  # whisper.cpp names the ids that follow itself
    for word in words:
        file.write(struct.pack("<I", len(word)) + word)


def _write_tensor(file: BinaryIO, name: str, tensor: Tensor, stored: str) -> None:
    values: NDArray[np.float32] = tensor.to(torch.float32).numpy()
    if name in CONVOLUTION_BIASES:
        values = values.reshape(-1, 1)
    kind, data = _stored(name, values, stored)
    encoded = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(encoded), kind))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(encoded)
    file.write(data)


def _stored(name: str, values: NDArray[np.float32], stored: str) -> tuple[int, bytes]:
    """Return ggml's type of a tensor, and its bytes."""
    if values.ndim < 2 or name in (*CONVOLUTION_BIASES, *POSITIONS):
        return F32, values.astype("<f4").tobytes()
    halves = values.astype("<f2")
    if stored == "f16" or values.ndim != 2:
        return F16, halves.tobytes()
    blocks = q8_0_blocks if stored == "q8_0" else q5_0_blocks
    return TENSOR_TYPES[stored], blocks(halves.astype(np.float32))
