"""From an artefact to a folder for ONNX Runtime: encoder, decoder, and decoder with past.

The files are named as optimum names them. The decoder computes the keys and values of what it hears and of its prefix;
the decoder with past takes them, and returns the longer ones of the text. Batch and tokens are free, and so are the
frames, so that the windows of the artefact need nothing.

Shapes: `B` rows, `M` mel bins, `F` mel frames, `S` encoder positions, `T` tokens, `L` positions given before, `H` heads,
`D` width, `V` vocabulary.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from infer.artefact import RECORD_NAME, WEIGHTS_NAME, file_sha256, load_artefact
from infer.encoder import WindowedWhisper, encode

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
ENCODER, DECODER, WITH_PAST = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"
COPIED_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json"),
)
OPSET = 18
INSTALL = 'pip install "mezzavoce[runtimes]"'


def convert_to_onnx(artefact_dir: Path, target_dir: Path, *, dtype: str = "fp32", int8: bool = False) -> Path:
    """Convert a Whisper folder, and return the folder of the result.

    Args:
        artefact_dir: ours, or any in Hugging Face's format with safetensors.
        target_dir: the folder; one that is there is replaced when the new one is whole.
        dtype: `fp32` or `fp16`, of weights, of features and of the arithmetic; logits are FP32.
        int8: quantise the matrices by ONNX Runtime, each at run time with the range of what it meets; needs `fp32`.

    Raises:
        ValueError: for another dtype, or int8 over FP16.
        FileNotFoundError: if a file that runtimes need is missing.
        RuntimeError: if ONNX is not installed, or the folder cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} must be one of {', '.join(DTYPES)}")
    if int8 and dtype != "fp32":
        raise ValueError(f"int8=true is made of FP32 weights, found dtype={dtype}; give dtype=fp32")
    for name in COPIED_FILES:
        if not (artefact_dir / name).is_file():
            raise FileNotFoundError(f"{artefact_dir} has no {name}; ONNX Runtime's clients need it")
    try:
        import onnxscript  # noqa: F401
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as e:
        raise RuntimeError(f"ONNX is not installed ({e}); type {INSTALL}") from e
    model = load_artefact(artefact_dir, compute=dtype).model.eval()
    temporary = target_dir.parent / f".tmp-{target_dir.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=temporary) as scratch:
            made = Path(scratch) if int8 else temporary
            _export_all(model, made)
            for name in (ENCODER, DECODER, WITH_PAST) if int8 else ():
                quantize_dynamic(
                    made / name, temporary / name, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8
                )
        for name in COPIED_FILES:
            shutil.copyfile(artefact_dir / name, temporary / name)
        _write_record(temporary, artefact_dir, "int8" if int8 else dtype)
        if target_dir.exists():
            shutil.rmtree(target_dir)
        os.replace(temporary, target_dir)
    except OSError as e:
        raise RuntimeError(f"cannot write {target_dir}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target_dir


def cache_names(num_layers: int, prefix: str, parts: Sequence[str] = ("decoder", "encoder")) -> list[str]:
    """Return the names of keys and values, layer by layer, as optimum spells them.

    Args:
        num_layers: of the decoder.
        prefix: `present` for what comes out, `past_key_values` for what goes in.
        parts: `decoder` for those of the text, `encoder` for those of what is heard.
    """
    return [f"{prefix}.{i}.{part}.{kind}" for i in range(num_layers) for part in parts for kind in ("key", "value")]


class _Encoder(nn.Module):
    def __init__(self, model: WindowedWhisper) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        return encode(self.encoder, input_features)


class _Decoder(nn.Module):
    """The decoder over plain tensors; without `past` it computes what every step attends to."""

    def __init__(self, model: WindowedWhisper) -> None:
        super().__init__()
        self.decoder = model.model.decoder
        self.output = model.proj_out

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor | None = None, past: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        decoder = self.decoder
        length = past[0].shape[2] if past else 0
        num_tokens = input_ids.shape[1]
        stands = length + torch.arange(num_tokens)
        hidden = decoder.embed_tokens(input_ids) + decoder.embed_positions.weight[stands]
        mask = torch.arange(length + num_tokens) <= stands[:, None]
        present: list[Tensor] = []
        for i, layer in enumerate(decoder.layers):
            attention = layer.self_attn
            normed = layer.self_attn_layer_norm(hidden)
            keys, values = _heads(attention, attention.k_proj(normed)), _heads(attention, attention.v_proj(normed))
            if past:
                keys = torch.cat([past[4 * i], keys], dim=2)
                values = torch.cat([past[4 * i + 1], values], dim=2)
            hidden = hidden + _attend(attention, normed, keys, values, mask)
            heard = layer.encoder_attn
            if past:
                cross = past[4 * i + 2], past[4 * i + 3]
            else:
                states = encoder_hidden_states
                cross = _heads(heard, heard.k_proj(states)), _heads(heard, heard.v_proj(states))
            hidden = hidden + _attend(heard, layer.encoder_attn_layer_norm(hidden), *cross, None)
            normed = layer.final_layer_norm(hidden)
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(normed)))
            present += [keys, values] if past else [keys, values, *cross]
        return (self.output(decoder.layer_norm(hidden)).float(), *present)


def _heads(attention: Any, projected: Tensor) -> Tensor:
    """Split (B, T, D) into (B, H, T, D / H)."""
    return projected.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def _attend(attention: Any, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    queries = _heads(attention, attention.q_proj(hidden) * attention.scaling)
    scores = queries @ keys.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    mixed = scores.softmax(dim=-1) @ values
    projected: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return projected


def _export_all(model: WindowedWhisper, folder: Path) -> None:
    """Write the three graphs; weights above 2 GB go into a file beside theirs."""
    config, dtype = model.config, model.dtype
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    rows, tokens, positions, length = Dim("batch"), Dim("tokens"), Dim("positions"), Dim("past")
    features = torch.zeros(2, config.num_mel_bins, 2 * 60, dtype=dtype)
    hidden = torch.zeros(2, 60, config.d_model, dtype=dtype)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    past = [torch.zeros(2, heads, size, config.d_model // heads, dtype=dtype) for _, size in _slots(layers)]
    free = [{0: rows, 2: length if part == "decoder" else positions} for part, _ in _slots(layers)]
    halves = Dim("half_frames")
    with torch.inference_mode(False), torch.no_grad():
        _export(
            _Encoder(model),
            (features,),
            ({0: rows, 2: 2 * halves},),
            ["input_features"],
            ["last_hidden_state"],
            folder / ENCODER,
        )
        _export(
            _Decoder(model),
            (ids, hidden),
            ({0: rows, 1: tokens}, {0: rows, 1: positions}),
            ["input_ids", "encoder_hidden_states"],
            ["logits", *cache_names(layers, "present")],
            folder / DECODER,
        )
        _export(
            _Decoder(model),
            (ids, None, past),
            ({0: rows, 1: tokens}, None, free),
            ["input_ids", *cache_names(layers, "past_key_values")],
            ["logits", *cache_names(layers, "present", ("decoder",))],
            folder / WITH_PAST,
        )


def _slots(num_layers: int) -> Iterator[tuple[str, int]]:
    for _ in range(num_layers):
        yield from (("decoder", 5), ("decoder", 5), ("encoder", 60), ("encoder", 60))


def _export(
    module: nn.Module, inputs: Any, free: Any, input_names: list[str], output_names: list[str], file: Path
) -> None:
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    torch.onnx.export(
        module.eval(),
        inputs,
        str(file),
        dynamo=True,
        dynamic_shapes=free,
        input_names=input_names,
        output_names=output_names,
        opset_version=OPSET,
        external_data=size > 2**31 - 2**26,
        verbose=False,
    )


def _write_record(folder: Path, artefact_dir: Path, stored: str) -> None:
    file = artefact_dir / RECORD_NAME
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    weights = artefact_dir / WEIGHTS_NAME
    made_of = record.get("files", {}).get(WEIGHTS_NAME) or (file_sha256(weights) if weights.is_file() else "")
    content = {
        **{key: value for key, value in record.items() if key != "files"},
        "format": "onnx",
        "stored": stored,
        "made_of": {"path": artefact_dir.name, "sha256": made_of},
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")
