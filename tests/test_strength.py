"""Weights between base and trained model: both ends bit for bit, LoRA scaled as its definition says, one cast."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import scripts.sweep_strength
import scripts.train
from data.windows import build_windows
from infer.artefact import write_artefact
from scripts.export import read_run
from scripts.settings import compose_config
from scripts.sweep_strength import gentlest, suggest, sweep
from train.checkpoint import load_checkpoint
from train.run import run_training
from train.strength import blend, export_strength, load_endpoints


@pytest.fixture
def base(lively, tokenizer, tmp_path: Path) -> Path:
    """A base model in FP32."""
    return write_artefact(
        tmp_path / "base",
        {name: tensor.detach().clone() for name, tensor in lively.state_dict().items()},
        config=lively.config,
        generation_config=lively.generation_config,
        tokenizer=tokenizer,
        windows=build_windows([1, 3, 30]),
        record={},
    )


def train(base: Path, corpus: Path, run_dir: Path, *overrides: str) -> Path:
    fixed = ["model=tiny", f"model.path={base}", "dataset=manifest", f"dataset.train={corpus}", f"run.dir={run_dir}"]
    small = ["tracker=none", "window.edges_s=[1,3,30]", "trainer.micro_batch_size=4", "trainer.max_steps=2"]
    rest = ["trainer.num_workers=0", "trainer.eval_every_steps=0", "window.full_share=0", "optimizer.lr=0.01"]
    run_training(scripts.train.build_settings(compose_config("train", [*fixed, *small, *rest, *overrides])))
    return run_dir


@pytest.mark.usefixtures("fresh_accelerate", "kept_logging")
def test_lora_at_a_strength_is_its_adapter_scaled(base: Path, corpus: Path, tmp_path: Path):
    run = train(base, corpus, tmp_path / "run", "finetune=lora", "finetune.rank=4", "finetune.alpha=8")
    endpoints = load_endpoints(read_run(run))
    trained = load_checkpoint(run / "checkpoints/step-000002").model
    plain = load_file(base / "model.safetensors")
    name = "model.encoder.layers.0.self_attn.q_proj"
    down, up = trained[f"{name}.lora_A.default.weight"], trained[f"{name}.lora_B.default.weight"]
    assert up.abs().max() > 0
    for strength in (0.0, 0.3, 1.0, 1.5):
        state = blend(endpoints, strength)
        expected = plain[f"{name}.weight"].double() + strength * (8 / 4) * (up.double() @ down.double())
        torch.testing.assert_close(state[f"{name}.weight"].double(), expected, rtol=1e-5, atol=1e-6)
        untouched = "model.decoder.layers.0.fc1.weight"
        assert torch.equal(state[untouched], plain[untouched])
    at_half = load_file(export_strength(endpoints, 0.5, tmp_path / "half") / "model.safetensors")
    assert torch.equal(at_half[f"{name}.weight"], blend(endpoints, 0.5)[f"{name}.weight"].half())
    assert json.loads((tmp_path / "half/mezzavoce.json").read_text())["strength"] == 0.5
    shipped, again = load_file(run / "export/model.safetensors"), export_strength(endpoints, 1.0, tmp_path / "one")
    assert all(torch.equal(tensor, shipped[key]) for key, tensor in load_file(again / "model.safetensors").items())
    with pytest.raises(ValueError, match="strength 3 must lie in 0"):
        blend(endpoints, 3.0)


@pytest.mark.usefixtures("fresh_accelerate", "kept_logging")
def test_a_full_run_is_swept_from_the_base_and_the_chosen_one_is_exported(base: Path, corpus: Path, tmp_path: Path):
    run = train(base, corpus, tmp_path / "run", "finetune=full")
    lines = corpus.read_text(encoding="utf-8").splitlines()
    new, old = corpus.with_name("new.jsonl"), corpus.with_name("old.jsonl")
    new.write_text("\n".join(lines[:5]) + "\n", encoding="utf-8")
    old.write_text("\n".join(lines[5:]) + "\n", encoding="utf-8")
    fixed = [f"run.dir={run}", "strengths=[0,0.5,1]", f"dataset.test={new}", f"retention.sets=[{old}]"]
    more = ["decoding.max_new_tokens=8", f"export.dir={tmp_path / 'chosen'}", "export.strength=0.5"]
    settings = scripts.sweep_strength.build_settings(compose_config("sweep_strength", [*fixed, *more]))
    points, best = sweep(settings, console=Console(quiet=True))
    assert [point.strength for point in points] == [0.0, 0.5, 1.0]
    assert points[0].retention.forgetting is not None and points[0].retention.forgetting.difference == 0
    assert best in points
    record = json.loads((run / "strength/strength.json").read_text())
    assert record["suggested"] == best.strength and record["settings"]["targets"] == ["new"]
    assert (run / "strength/strength.png").read_bytes()[:4] == b"\x89PNG"
    chosen = load_file(tmp_path / "chosen/model.safetensors")
    plain, endpoints = load_file(base / "model.safetensors"), load_endpoints(read_run(run))
    for name, tensor in chosen.items():
        middle = (plain[name].double() + endpoints.trained[name].double()) / 2
        torch.testing.assert_close(tensor.double(), middle, rtol=2**-10, atol=2**-24)  # one rounding to FP16
    assert all(torch.equal(blend(endpoints, 0.0)[name], tensor) for name, tensor in plain.items())


@dataclass
class Scored:
    strength: float
    target: float
    forgetting: float


POINTS = [Scored(0.0, 0.5, 0.0), Scored(0.5, 0.2, 0.004), Scored(0.75, 0.1, 0.02), Scored(1.0, 0.05, 0.1)]


def test_the_suggested_strength_weighs_what_is_learnt_against_what_is_forgotten():
    assert suggest(POINTS, weight=1.0).strength == 0.75
    assert suggest(POINTS, weight=0.1).strength == 1.0
    assert suggest(POINTS, weight=10.0).strength == 0.5
    assert suggest([Scored(0.5, 0.1, -0.2), Scored(1.0, 0.1, 0.0)], weight=1.0).strength == 0.5  # of equals the lesser


def test_the_gentlest_strength_forgets_no_more_than_is_borne():
    assert gentlest(POINTS, max_forgetting=0.005).strength == 0.5
    assert gentlest(POINTS, max_forgetting=0.5).strength == 1.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strengths=[0.5,1]"], "must hold 0"),
        (["strengths=[0,3]"], "strength 3 must lie in 0"),
        (["export.strength=0.3"], "export.strength=0.3 must be one of"),
        (["retention.sets=[]"], "what the training was for"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_loaded(overrides, message):
    config = compose_config("sweep_strength", ["run.dir=r", "retention.sets=[o.jsonl]", *overrides])
    with pytest.raises(ValueError, match=message):
        scripts.sweep_strength.build_settings(config)
