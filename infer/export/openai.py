"""From an artefact to a `.pt` for openai-whisper: `whisper.load_model("model.pt")`.

The file is written with `torch.save` and holds plain numbers and tensors only, so `weights_only=True` loads it. We
never load one ourselves but in the client of openai-whisper: a `.pt` of somebody else is a program.

What a user has to know:

- openai-whisper sets the alignment heads of its own named models only, and takes the upper half of the decoder for any
  other file. For word times call `model.set_alignment_heads(dump)`, with the dump that `load_alignment_heads` returns
  of our file; a file of large-v3's shape can take OpenAI's own, `whisper._ALIGNMENT_HEADS["large-v3"]`.
- Its tokenizer is fixed. A model with OpenAI's vocabulary needs nothing. For a vocabulary of the model's own, which is
  moved to OpenAI's ids (`openai_layout`), `NAME.tiktoken` lies beside `NAME.pt`, in OpenAI's format of ranks, and a
  user puts it in the place of the package's own before anything is decoded::

      whisper.tokenizer.get_encoding = lambda name, num_languages: use_ranks("NAME.tiktoken", num_languages)

  with `use_ranks` of `infer.clients.openai_whisper`, or by copying the file over `whisper/assets/multilingual.tiktoken`
  in an environment of its own.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperConfig

from infer.artefact import load_tokenizer, refuse_remote_code
from infer.export.openai_layout import NUM_TEXT, Layout, openai_layout, openai_sizes, read_tensors, token_bytes

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
PLACEHOLDER = b"\xff<gap %d>"
"""In the ranks of a place that no token has; no text holds the byte 0xFF, so it is never merged to."""


def convert_to_openai(artefact_dir: Path, target_file: Path, *, dtype: str = "fp16") -> Path:
    """Write a Whisper folder as one file for openai-whisper, and return the file.

    Args:
        artefact_dir: ours, or any in Hugging Face's format with safetensors.
        target_file: such as `model.pt`; one that is there is replaced when the new one is whole. The ranks of a
            vocabulary of the model's own are written beside it, as `model.tiktoken`.
        dtype: `fp16` or `fp32`, of what is stored; openai-whisper loads it into FP32 modules and casts as it decodes.

    Raises:
        ValueError: for another `dtype`, or a vocabulary that does not fit.
        FileNotFoundError: if a file that is needed is missing.
        RuntimeError: if the file cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} must be one of {', '.join(DTYPES)}")
    for name in ("config.json", "tokenizer.json"):
        if not (artefact_dir / name).is_file():
            raise FileNotFoundError(f"{artefact_dir} has no {name}; openai-whisper's file is made of it")
    refuse_remote_code(artefact_dir)
    config = WhisperConfig.from_pretrained(str(artefact_dir))
    tokenizer = load_tokenizer(artefact_dir)
    layout = openai_layout(tokenizer, config.vocab_size)
    sizes = openai_sizes(config, layout)
    state: dict[str, Tensor] = {
        name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in read_tensors(artefact_dir, config, layout)
    }
    content: dict[str, Any] = {"dims": sizes, "model_state_dict": state}
    heads = _alignment_heads(artefact_dir, sizes)
    if heads is not None:
        content["alignment_heads"] = heads
    content["suppress_tokens"] = _suppressed(artefact_dir, layout)
    ranks = target_file.with_suffix(".tiktoken")
    temporary = target_file.parent / f".tmp-{target_file.name}-{uuid.uuid4().hex[:8]}"
    try:
        target_file.parent.mkdir(parents=True, exist_ok=True)
        ranks.unlink(missing_ok=True)
        if layout.is_moved:
            _write_ranks(ranks, token_bytes(tokenizer, layout.num_text))
        torch.save(content, temporary)
        os.replace(temporary, target_file)
    except OSError as e:
        raise RuntimeError(f"cannot write {target_file}: {e.strerror or e}") from e
    finally:
        temporary.unlink(missing_ok=True)
    return target_file


def load_alignment_heads(file: Path) -> bytes | None:
    """Return what `model.set_alignment_heads` takes; None where the artefact had none."""
    heads: str | None = torch.load(file, map_location="cpu", weights_only=True, mmap=True).get("alignment_heads")
    return None if heads is None else heads.encode()


def load_suppressed(file: Path) -> list[int]:
    """Return what `DecodingOptions(suppress_tokens=...)` takes: ids of the artefact's list, where they are now."""
    found: list[int] = torch.load(file, map_location="cpu", weights_only=True, mmap=True).get("suppress_tokens") or []
    return list(found)


def _suppressed(artefact_dir: Path, layout: Layout) -> list[int]:
    """Return the places of the ids that the artefact never says."""
    file = artefact_dir / "generation_config.json"
    listed = json.loads(file.read_text(encoding="utf-8")).get("suppress_tokens") if file.is_file() else None
    wanted = {index for index in listed or [] if index >= 0}
    return [place for place, index in enumerate(layout.rows) if index in wanted]


def _alignment_heads(artefact_dir: Path, sizes: dict[str, int]) -> str | None:
    """Return the heads in OpenAI's spelling: booleans, compressed, in base 85."""
    file = artefact_dir / "generation_config.json"
    heads = json.loads(file.read_text(encoding="utf-8")).get("alignment_heads") if file.is_file() else None
    if not heads:
        return None
    mask = np.zeros((sizes["n_text_layer"], sizes["n_text_head"]), dtype=bool)
    mask[tuple(np.array(heads).T)] = True
    return base64.b85encode(gzip.compress(mask.tobytes(), mtime=0)).decode()


def _write_ranks(file: Path, words: list[bytes]) -> None:
    """Write one line a place of OpenAI's text vocabulary."""
    words = words + [b""] * (NUM_TEXT - len(words))
    named = [word or PLACEHOLDER % i for i, word in enumerate(words)]
    lines = (f"{base64.b64encode(word).decode()} {i}\n" for i, word in enumerate(named))
    file.write_text("".join(lines), encoding="ascii")
