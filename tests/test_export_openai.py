"""openai-whisper takes the file as it is: the same logits as transformers, its own ranks, the model's suppress list."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from data.sources import Source
from infer.artefact import load_tokenizer
from infer.clients.client import ClientRequest, run_client, run_client_in_process
from infer.decoding import DecodeSettings
from infer.export.openai import convert_to_openai, load_suppressed
from infer.export.openai_layout import openai_layout

whisper_package = pytest.importorskip("whisper", reason="the extra `runtimes` is not installed")


@pytest.fixture
def artefact_dir(lay_artefact, tmp_path: Path) -> Path:
    return lay_artefact(tmp_path / "export", (30,))


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_logits_are_those_of_transformers(artefact_dir: Path, tmp_path: Path, dtype: str):
    file = convert_to_openai(artefact_dir, tmp_path / "model.pt", dtype=dtype)
    content = torch.load(file, weights_only=True)  # no code in it
    assert {tensor.dtype for tensor in content["model_state_dict"].values()} == {getattr(torch, f"float{dtype[2:]}")}
    theirs = whisper_package.load_model(str(file), device="cpu")
    reference = WhisperForConditionalGeneration.from_pretrained(artefact_dir, dtype=torch.float32).eval()
    rows = torch.tensor(openai_layout(load_tokenizer(artefact_dir), reference.config.vocab_size).rows)
    torch.manual_seed(0)
    mel = torch.randn(2, reference.config.num_mel_bins, 3000)
    places = torch.tensor([[50258, 3, 7, 11], [50258, 50363, 2, 50257]])
    with torch.no_grad():
        found = theirs(mel, places)
        expected = reference(input_features=mel, decoder_input_ids=rows[places]).logits[..., rows]
    assert float((found - expected).abs().max()) < 2e-4 * float(expected.abs().max())


def test_ranks_of_a_learnt_vocabulary_write_what_the_tokenizer_writes(artefact_dir: Path, tmp_path: Path):
    from infer.clients.openai_whisper import use_ranks

    file = convert_to_openai(artefact_dir, tmp_path / "model.pt")
    encoding = use_ranks(str(file.with_suffix(".tiktoken")), 100)
    tokenizer = load_tokenizer(artefact_dir)
    for text in (" narrow", "你好", "здравствуй", "مرحبا", "a b  c!"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert encoding.decode(ids) == text
        assert encoding.decode(encoding.encode(text)) == text


def test_what_the_model_never_says_is_not_said_there_either(artefact_dir: Path, corpus: Path, tmp_path: Path):
    """The list goes with the file, at the places that the tokens have there, and changes the text as it does ours."""
    said = heard(artefact_dir, corpus, tmp_path)
    tokenizer = load_tokenizer(artefact_dir)
    ids = tokenizer.encode(next(text for text in said.values() if text), add_special_tokens=False)
    start_id = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    file = artefact_dir / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**generation, "suppress_tokens": [*ids[:2], start_id]}), encoding="utf-8")
    manifest = artefact_dir / "mezzavoce.json"
    record = json.loads(manifest.read_text(encoding="utf-8"))
    del record["files"]["generation_config.json"]
    manifest.write_text(json.dumps(record), encoding="utf-8")
    exported = convert_to_openai(artefact_dir, tmp_path / "listed.pt")
    assert set(load_suppressed(exported)) == {*ids[:2], 50258}
    ours = heard(artefact_dir, corpus, tmp_path)
    assert ours != said
    assert heard(exported, corpus, tmp_path) == ours


def heard(path: Path, corpus: Path, scratch: Path) -> dict[str, str]:
    """What ours hears of a folder, or openai-whisper of a file."""
    decoding = dataclasses.asdict(DecodeSettings(max_new_tokens=8, language="en"))
    source = dataclasses.asdict(Source(str(corpus)))
    client = "mezzavoce" if path.is_dir() else "openai_whisper"
    request = ClientRequest(client, str(path), (source,), decoding, num_threads=1, latency_clips=1)
    # openai-whisper reads with other ranks until its process ends
    found = run_client(request) if path.is_dir() else run_client_in_process(request, scratch / "asked")
    return found["texts"]
