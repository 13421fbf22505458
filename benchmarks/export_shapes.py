"""Models with random weights for the benchmark of exports: large-v3's sizes and OpenAI's own vocabulary."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from transformers import AddedToken, GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from benchmarks.environment import PROJECT
from data.labels import special_id
from data.languages import LANGUAGE_CODES
from data.sources import Source
from data.windows import full_windows
from infer.artefact import write_artefact
from infer.clients.client import CLIENTS, ClientRequest, run_client_in_process
from infer.decoding import DecodeSettings
from infer.export.formats import FormatOptions, build_format, name_result, size_bytes
from train.vocabulary import special_tokens

MELS, VOCABULARY, WIDTH, HEADS = 128, 51_866, 1280, 20  # of large-v3


def openai_tokenizer() -> WhisperTokenizer:
    """Return large-v3's tokenizer, built from the ranks that openai-whisper carries."""
    file = str(files("whisper") / "assets/multilingual.tiktoken")
    vocabulary, merges = TikTokenConverter(file).extract_vocab_merges_from_model(file)
    tokenizer: WhisperTokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in merges],
        additional_special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens()[1:]],
        model_max_length=448,
        pad_token="<|endoftext|>",
    )
    return tokenizer


def write_random(folder: Path, *, layers: int, width: int, heads: int) -> Path:
    """Write an FP16 artefact of large-v3's mel bins and vocabulary, with random weights."""
    tokenizer = openai_tokenizer()
    assert len(tokenizer) == VOCABULARY, len(tokenizer)
    end, start = special_id(tokenizer, "<|endoftext|>"), special_id(tokenizer, "<|startoftranscript|>")
    config = WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=MELS, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None, dtype=torch.float16,
    )  # fmt: skip
    generation = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start, max_length=448,
        is_multilingual=True, no_timestamps_token_id=special_id(tokenizer, "<|notimestamps|>"),
        alignment_heads=[[layers - 1, 0]],
        lang_to_id={f"<|{code}|>": special_id(tokenizer, f"<|{code}|>") for code in LANGUAGE_CODES},
        task_to_id={task: special_id(tokenizer, f"<|{task}|>") for task in ("translate", "transcribe")},
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        model = WhisperForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return write_artefact(
        folder,
        model.state_dict(),
        config=config,
        generation_config=generation,
        tokenizer=tokenizer,
        windows=full_windows(),
        record={"source": {"name": "random"}},
    )


def measure_geometry(scratch: Path) -> list[dict[str, Any]]:
    """Load and decode a narrow model of large-v3's geometry in every client."""
    artefact = write_random(scratch / "geometry", layers=2, width=64, heads=1)
    clip = np.random.default_rng(0).normal(0, 0.1, 16_000 * 2).astype(np.float32)
    sf.write(scratch / "noise.wav", clip, 16_000)
    manifest = scratch / "noise.jsonl"
    row = {"audio": "noise.wav", "text": "noise", "language": "en"}
    manifest.write_text(json.dumps(row) + "\n", encoding="utf-8")
    options, results = FormatOptions(), []
    for client, kind in CLIENTS.items():
        path = artefact if kind.format == "hf" else scratch / f"geometry-{name_result(kind.format, options)}"
        found: dict[str, Any]
        try:
            if not path.exists():
                build_format(kind.format, artefact, path, options)
            decoding = asdict(DecodeSettings(max_new_tokens=8))
            request = ClientRequest(client, str(path), (asdict(Source(str(manifest))),), decoding, latency_clips=1)
            found = run_client_in_process(request, scratch / "asked")
        except (ImportError, RuntimeError, ValueError) as e:
            found = {"failed": str(e)}
        said = found.get("texts")
        facts = {k: found[k] for k in ("languages", "failed", "absent", "version") if k in found}
        results.append({"client": client, "decodes": said is not None, "texts": said, **facts})
    return results


def measure_sizes(
    scratch: Path, files: Sequence[tuple[str, str, Mapping[str, Any]]], *, layers: int = 2, reckoned_layers: int = 32
) -> dict[str, Any]:
    """Compare quantised files with FP16 files of the same runtime, at large-v3's width, vocabulary and positions.

    Files of `layers` and of half as many are written. What a layer adds is the same for each, so the files of all 32
    are reckoned from these two, and take no disk; but for a byte a tensor, whose name has a digit more from layer 10.

    Args:
        scratch: for the files; each is removed when it is measured, but the artefacts.
        files: client, format and options; the FP16 one of a format stands before those that are held against it.
        layers: of encoder and decoder, an even number.
        reckoned_layers: of the model whose files are reckoned; large-v3 has 32.
    """
    few, more = (_written_sizes(scratch / f"wide-{n}", files, layers=n) for n in (layers // 2, layers))
    whole = {file: reckon_size(few[file], more[file], layers=layers, wanted=reckoned_layers) for file in more}
    parameters = num_parameters(layers=reckoned_layers)
    return {
        "layers": layers,
        "width": WIDTH,
        "vocabulary": VOCABULARY,
        "files": _against_halves(more),
        "reckoned": {"layers": reckoned_layers, "parameters": parameters, "files": _against_halves(whole)},
    }


def _written_sizes(
    scratch: Path, files: Sequence[tuple[str, str, Mapping[str, Any]]], *, layers: int
) -> dict[str, tuple[str, int]]:
    """Return the format and the bytes of each file, by its name."""
    artefact = write_random(scratch / "export", layers=layers, width=WIDTH, heads=HEADS)
    sizes: dict[str, tuple[str, int]] = {}
    for _, name, changes in files:
        options = FormatOptions(**{name: type(getattr(FormatOptions(), name))(**changes)})
        if getattr(options, name).stored == "fp32":
            continue
        path = build_format(name, artefact, scratch / name_result(name, options), options)
        sizes[path.name] = name, weights_size(path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        print(layers, path.name, sizes[path.name][1], flush=True)
    return sizes


def reckon_size(few: tuple[str, int], more: tuple[str, int], *, layers: int, wanted: int) -> tuple[str, int]:
    """Return the format and the bytes of a file with more layers.

    Args:
        few: format and bytes at half of `layers`.
        more: format and bytes at `layers`.
        layers: of the larger file.
        wanted: of the file that is reckoned.
    """
    half = layers // 2
    return more[0], more[1] + round((more[1] - few[1]) * (wanted - layers) / (layers - half))


def _against_halves(sizes: Mapping[str, tuple[str, int]]) -> list[dict[str, Any]]:
    """Return each file with its share of the first file of its format, which holds FP16."""
    halves: dict[str, int] = {}
    rows = []
    for file, (name, size) in sizes.items():
        halves.setdefault(name, size)
        rows.append({"file": file, "weights_file_bytes": size, "size_of_fp16": size / halves[name]})
    return rows


def num_parameters(*, layers: int) -> int:
    """Return the parameters of a model of large-v3's width, counted without memory; a tied weight counts once."""
    config = WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=MELS, d_model=WIDTH, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
    )  # fmt: skip
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def weights_size(path: Path) -> int:
    """Return the size without tokenizers and records, which weigh more than the weights of a tiny model."""
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.suffix not in (".json",))


def measure_large(scratch: Path, *, layers: int) -> dict[str, Any]:
    """Export a random model to hf and ctranslate2, each in a process whose peak memory is read."""
    wide = layers >= 32
    width, heads = (WIDTH, HEADS) if wide else (768, 12)
    free = shutil.disk_usage(scratch).free
    artefact = write_random(scratch / "large", layers=layers, width=width, heads=heads)
    fp32_bytes = 2 * (artefact / "model.safetensors").stat().st_size
    if free < 4 * fp32_bytes:
        raise SystemExit(f"the disk has {free / 1e9:.0f} GB, this needs {4 * fp32_bytes / 1e9:.0f}")
    formats = []
    for name, changes in (("hf", {}), ("hf", {"dtype": "fp32"}), ("ctranslate2", {})):
        target = scratch / f"large-out-{name}-{changes.get('dtype', 'fp16')}"
        command = [sys.executable, "-m", "benchmarks.export_shapes", name, str(artefact), str(target)]
        start = time.perf_counter()
        finished = subprocess.run(
            [*command, json.dumps(changes)], cwd=PROJECT, check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        facts = json.loads(finished.stdout.splitlines()[-1])
        size = size_bytes(target)
        shutil.rmtree(target)
        peak = facts["peak_bytes"]
        formats.append(
            {"format": name, **changes, "seconds": seconds, "peak_bytes": peak, "size_bytes": size,
             "of_fp32": peak / fp32_bytes, "at_start_bytes": facts["at_start_bytes"]}
        )  # fmt: skip
        print(formats[-1], flush=True)
    return {"parameters": fp32_bytes // 4, "fp32_bytes": fp32_bytes, "formats": formats}


def _export_here(name: str, artefact: str, target: str, changes: str) -> None:
    """Build one format in this process, and print its peak memory."""
    at_start = _peak_bytes()
    options = FormatOptions(**{name: type(getattr(FormatOptions(), name))(**json.loads(changes))})
    build_format(name, Path(artefact), Path(target), options)
    print(json.dumps({"peak_bytes": _peak_bytes(), "at_start_bytes": at_start}))


def _peak_bytes() -> int:
    """Return the most that this program held; `ru_maxrss` would begin with what the starting process held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _export_here(*sys.argv[1:])
