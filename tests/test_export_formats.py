"""Exports: types are cast once, shards hold every tensor, nothing half-built is left, PEFT merges what we merge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TEXTS, tiny_whisper
from rich.console import Console
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

import scripts.export
from infer.artefact import load_artefact, write_artefact
from infer.export.formats import FORMATS, FormatOptions, HfOptions, name_result, verify_installed
from infer.export.hf import convert_to_hf
from infer.half import RejectedError
from infer.weights import INDEX_NAME, StoredWeights, weights_sha256
from scripts.export import build_settings, export
from scripts.settings import compose_config

QUIET = Console(quiet=True)
assert TEXTS


def export_with(*overrides: str):
    return export(build_settings(compose_config("export", list(overrides))), console=QUIET)


def test_a_folder_in_shards_is_the_same_model(artefact_dir: Path, tmp_path: Path):
    target = convert_to_hf(artefact_dir, tmp_path / "shards", max_shard_gib=2e-5)
    assert (target / INDEX_NAME).is_file()
    assert len(list(target.glob("model-*.safetensors"))) > 2
    whole = load_file(artefact_dir / "model.safetensors")
    cut = StoredWeights(target)
    assert set(cut) == set(whole)
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    loaded = load_artefact(target)
    assert (loaded.stored, len(loaded.sha256), loaded.record["trained_steps"]) == ("float16", 64, 3)
    assert loaded.record["windows_s"] == [1.0, 3.0, 30.0]
    assert loaded.record["made_of"]["sha256"] == weights_sha256(artefact_dir)
    stock = WhisperForConditionalGeneration.from_pretrained(str(target), dtype=torch.float16).state_dict()
    assert all(torch.equal(stock[name], whole[name]) for name in whole)


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_another_type_is_one_cast_away(artefact_dir: Path, tmp_path: Path, dtype: str, kind: torch.dtype):
    whole = load_file(artefact_dir / "model.safetensors")
    made = load_file(convert_to_hf(artefact_dir, tmp_path / dtype, dtype=dtype) / "model.safetensors")
    assert all(torch.equal(made[name], whole[name].to(kind)) for name in whole)


def test_what_does_not_fit_fp16_is_refused_and_leaves_nothing(artefact_dir: Path, tmp_path: Path):
    wide = convert_to_hf(artefact_dir, tmp_path / "fp32", dtype="fp32")
    whisper = tiny_whisper()
    state = {name: t.float() for name, t in load_file(wide / "model.safetensors").items()}
    state["model.encoder.conv1.weight"][0, 0, 0] = 7e4
    loaded = load_artefact(artefact_dir)
    huge = write_artefact(
        tmp_path / "huge",
        state,
        config=whisper.config,
        generation_config=loaded.model.generation_config,
        tokenizer=loaded.tokenizer,
        windows=loaded.windows,
        record={},
    )
    with pytest.raises(RejectedError, match=r"conv1\.weight reaches 7e\+04"):
        convert_to_hf(huge, tmp_path / "half")
    assert {p.name for p in tmp_path.iterdir()} == {"export", "fp32", "huge"}


def test_the_script_writes_each_format_and_says_how_large(artefact_dir: Path, tmp_path: Path):
    pytest.importorskip("ctranslate2", reason="the extra `runtimes` is not installed")
    out = tmp_path / "out"
    made = export_with(
        f"artefact={artefact_dir}", f"export.dir={out}", "formats=[hf,ctranslate2]", "options.hf.dtype=bf16",
        "options.ctranslate2.quantization=int8",
    )  # fmt: skip
    assert [item.path for item in made] == [out / "hf-bf16", out / "ctranslate2-int8"]
    assert all(item.size_bytes == sum(f.stat().st_size for f in item.path.iterdir()) for item in made)
    assert {p.name for p in tmp_path.iterdir()} == {"export", "out"}
    vocabulary = json.loads((out / "ctranslate2-int8/vocabulary.json").read_text())
    assert vocabulary[-1] == ""  # by which CTranslate2 knows a multilingual model
    import ctranslate2

    assert ctranslate2.models.Whisper(str(out / "ctranslate2-int8")).is_multilingual


def test_a_format_that_fails_publishes_none(artefact_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(name: str, artefact_dir: Path, target: Path, options: FormatOptions) -> Path:
        if name == "ctranslate2":
            raise RuntimeError("no more disk")
        return convert_to_hf(artefact_dir, target)

    monkeypatch.setattr(scripts.export, "build_format", failing)
    with pytest.raises(RuntimeError, match="no more disk"):
        export_with(f"artefact={artefact_dir}", f"export.dir={tmp_path / 'out'}", "formats=[hf,ctranslate2]")
    assert {p.name for p in tmp_path.iterdir()} == {"export"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["artefact=a", "formats=[hf,doc]"], "must name some of hf, ctranslate2, onnx, openai, ggml, adapter"),
        (["artefact=a", "formats=[hf,hf]"], "each once"),
        (["artefact=a", "run.dir=r"], "give one of artefact="),
        ([], "give one of artefact="),
        (["artefact=a", "formats=[adapter]"], "formats=adapter needs run.dir="),
        (["artefact=a", "export.step=3"], r"export\.step=3 needs run\.dir="),
        (["artefact=a", "options.ggml.stored=q4_0"], r"options\.ggml\.stored=q4_0 must be one of f16, q8_0, q5_0"),
        (["artefact=a", "options.onnx.int8=true", "options.onnx.dtype=fp16"], r"needs options\.onnx\.dtype=fp32"),
        (["artefact=a", "export.dtype=int8"], r"export\.dtype=int8 must be one of"),
    ],
)
def test_mistakes_are_named_before_anything_is_built(overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        build_settings(compose_config("export", overrides))


def test_names_say_what_is_stored_and_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch):
    assert name_result("ggml", FormatOptions()) == "ggml-f16.bin"
    assert name_result("hf", FormatOptions(hf=HfOptions("bf16"))) == "hf-bf16"
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], packages=("not_there",)))
    with pytest.raises(RuntimeError, match=r"formats=onnx needs not_there; type pip install"):
        verify_installed(("hf", "onnx"))


@pytest.mark.usefixtures("fresh_accelerate", "kept_logging")
def test_peft_merges_the_adapters_into_what_we_merged(artefact_dir: Path, corpus: Path, tmp_path: Path):
    from peft import PeftModel

    from scripts.train import build_settings as build_training
    from train.run import run_training

    base, run = artefact_dir, tmp_path / "run"
    small = ["tracker=none", "window.edges_s=[1,3,30]", "trainer.micro_batch_size=4", "trainer.max_steps=2"]
    rest = ["trainer.num_workers=0", "trainer.eval_every_steps=0", "window.full_share=0", f"run.dir={run}"]
    lora = ["finetune=lora", "finetune.rank=3", "optimizer.lr=0.01"]
    data = ["model=tiny", f"model.path={base}", "dataset=manifest", f"dataset.train={corpus}"]
    run_training(build_training(compose_config("train", [*data, *small, *rest, *lora])))
    (made,) = export_with(f"run.dir={run}", "formats=[adapter]")
    assert made.path == run / "exports/adapter"
    stock = WhisperForConditionalGeneration.from_pretrained(str(base), dtype=torch.float32)
    before = stock.model.decoder.layers[0].self_attn.q_proj.weight.detach().clone()
    merged = PeftModel.from_pretrained(stock, str(made.path)).merge_and_unload().state_dict()
    assert not torch.equal(merged["model.decoder.layers.0.self_attn.q_proj.weight"], before)
    ours = load_file(made.path / "merged/model.safetensors")
    shipped = load_file(run / "export/model.safetensors")
    for name, tensor in ours.items():
        assert torch.equal(tensor, shipped[name])
        assert torch.allclose(tensor.float(), merged[name], rtol=2**-10, atol=1e-7), name
