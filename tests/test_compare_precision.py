"""The floor counts what torch counts, the verdict needs the whole interval, and what a device cannot do says why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from infer.compare.arithmetic import ARITHMETICS, DeviceFacts, choose_arithmetics, compute_type, find_obstacle
from infer.compare.floor import Rates, count_work, floor_s, measure_rates
from infer.compare.measurement import Request, measure, measure_in_process
from infer.compare.verdict import build_rows, judge, shipped_verdict
from infer.decoding import DecodeSettings
from infer.encoder import encode
from infer.score.evaluation import Prediction
from infer.score.statistics import Comparison, Interval
from scripts.compare_precision import build_settings, compare_precision
from scripts.settings import compose_config

AMPERE, TURING = DeviceFacts("cuda", "A100", (8, 0)), DeviceFacts("cuda", "T4", (7, 5))
CPU = DeviceFacts("cpu", "this CPU")


def test_operations_are_those_that_torch_counts():
    sizes = {"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 96}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "attn_implementation": "eager"}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    config = WhisperConfig(vocab_size=300, d_model=32, suppress_tokens=None, begin_suppress_tokens=None)
    config = WhisperConfig(**{**config.to_dict(), **sizes, **heads, **ids})
    model = WhisperForConditionalGeneration(config).eval()
    num_frames, num_prefix, num_tokens = 200, 4, 7
    work = count_work(config, num_frames=num_frames, num_prefix=num_prefix, num_tokens=num_tokens, item_bytes=4)

    def step(width, cache):
        return model(
            decoder_input_ids=torch.zeros(1, width, dtype=torch.long),
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            past_key_values=cache,
            use_cache=True,
        ).past_key_values

    with torch.inference_mode():
        with FlopCounterMode(display=False) as encoder:
            hidden = encode(model.model.encoder, torch.randn(1, 80, num_frames))
        with FlopCounterMode(display=False) as prefix:
            cache = step(num_prefix - 1, None)
        with FlopCounterMode(display=False) as steps:
            for _ in range(num_tokens + 1):
                cache = step(1, cache)
    assert work.encoder_flops == encoder.get_total_flops()
    assert work.num_steps * work.step_flops == steps.get_total_flops()
    logits = 2 * 32 * 300 * (num_prefix - 1)  # nobody needs them
    # torch multiplies the half of the attention that the mask throws away
    assert 0.99 < work.prefix_flops / (prefix.get_total_flops() - logits) <= 1
    layers = model.model.decoder.layers
    read = sum(p.numel() for n, p in layers.named_parameters() if p.ndim == 2 and "encoder_attn.k" not in n)
    read -= sum(p.numel() for n, p in layers.named_parameters() if p.ndim == 2 and "encoder_attn.v" in n)
    speech = 3 * 2 * 100 * 32
    assert work.step_bytes == 4 * (read + 32 * 300 + speech)


def test_the_floor_is_bound_by_what_is_slower():
    config = WhisperConfig(d_model=1280, encoder_layers=32, decoder_layers=32, encoder_ffn_dim=5120)
    config.decoder_ffn_dim, config.vocab_size, config.num_mel_bins = 5120, 51866, 128
    work = count_work(config, num_frames=3000, num_prefix=4, num_tokens=30, item_bytes=2)
    assert work.encoder_flops == pytest.approx(2.3e12, rel=0.05)  # one 30 s window of large-v3
    assert work.step_bytes == pytest.approx(1.8e9, rel=0.1)
    card = Rates(flops_per_s=165e12, bytes_per_s=1e12, cached_bytes_per_s=1e12)  # an RTX 4090 D
    assert 0.060 < floor_s(work, card) < 0.085  # so 9 ms cannot be a transcription
    endless = Rates(flops_per_s=1e30, bytes_per_s=1e12, cached_bytes_per_s=1e12)
    assert floor_s(work, endless) == pytest.approx((work.encoder_bytes + 31 * work.step_bytes) / 1e12)


def test_rates_are_measured():
    rates = measure_rates("fp32", torch.device("cpu"), decoder_bytes=1e6, shapes=[(64, 64, 64)])
    assert 1e8 < rates.flops_per_s < 1e14
    assert 1e8 < rates.bytes_per_s < 1e13


def test_what_a_device_cannot_do_is_said():
    def reason(name, device):
        return find_obstacle(ARITHMETICS[name], device)

    assert "Ampere" in reason("tf32", CPU) and "this CPU" in reason("tf32", CPU)
    assert "T4" in reason("bf16", TURING) and "T4" in reason("tf32", TURING)
    assert reason("fp16", TURING) is None and reason("fp16", CPU) is None and reason("bf16", CPU) is None
    assert [reason(name, AMPERE) for name in ("fp32", "tf32", "fp16", "bf16")] == [None] * 4
    assert compute_type(ARITHMETICS["ctranslate2"], CPU) == "float32"
    assert compute_type(ARITHMETICS["ctranslate2"], AMPERE) == "float16"
    assert compute_type(ARITHMETICS["ctranslate2_int8"], AMPERE) == "int8_float16"
    assert [row.name for row in choose_arithmetics(("bf16",))] == ["fp32", "bf16"]
    with pytest.raises(ValueError, match="rows=int4 must be of fp32, tf32"):
        choose_arithmetics(("int4",))


@pytest.mark.parametrize(
    ("difference", "low", "high", "level"),
    [
        (0.0001, -0.001, 0.0012, "safe"),
        (-0.02, -0.03, -0.01, "safe"),  # better is no loss
        (0.001, -0.02, 0.02, "undecided"),  # not significant, and yet no proof
        (0.03, 0.01, 0.05, "unsafe"),
        (0.004, 0.001, 0.007, "undecided"),  # a real loss that may lie within the margin
    ],
)
def test_the_verdict_needs_the_whole_interval(difference, low, high, level):
    found = Comparison(0.1, 0.1 + difference, difference, Interval(low, high), 0.5, 0.5, 100)
    assert judge(found, margin=0.005, name="FP16", same="9 of 10").level == level


def _measured(texts, latency_s=(0.2, 0.1)):
    rows = [("a", "red green blue"), ("b", "cat dog bird"), ("c", "sun moon")]
    predictions = [
        asdict(Prediction(id_, "en", "en", reference, text, 2.0))
        for (id_, reference), text in zip(rows, texts, strict=True)
    ]
    return {
        "artefact": {"sha256": "ab"},
        "load_s": 1.0,
        "memory": {"weights_bytes": 10, "growth_bytes": 20},
        "latency_s": list(latency_s),
        "processing_s": 0.5,
        "audio_s": 6.0,
        "floor": {"floor_s": 0.15},
        "predictions": predictions,
    }


def test_rows_hold_what_was_measured_and_why_others_are_missing():
    right = ["red green blue", "cat dog bird", "sun moon"]
    found = {
        "fp32": _measured(right),
        "tf32": {"absent": "no card"},
        "fp16": _measured(["red green blue", "cat dog birch", "sun noon"], latency_s=(0.1, 0.1)),
        "bf16": {"failed": "the process ended with -11: Segmentation fault"},
    }
    rows = {r["name"]: r for r in build_rows([ARITHMETICS[n] for n in found], found, margin=0.005)}
    assert rows["fp32"]["headline"] == 0 and rows["fp32"]["versus"] is None
    assert rows["fp16"]["headline"] == 2 / 8
    assert rows["fp16"]["versus"]["identical"] == pytest.approx(1 / 3)
    assert rows["fp16"]["rtfx"] == 12
    assert rows["fp32"]["floor_s"] == pytest.approx(0.15)
    assert rows["fp16"]["floor_s"] is None  # nothing is faster than it can be
    assert "other programs" in rows["fp16"]["floor"]["absent"]
    assert rows["tf32"]["absent"] == "no card" and not rows["tf32"]["is_failure"]
    assert rows["bf16"]["is_failure"]
    assert shipped_verdict(list(rows.values()))["level"] in ("undecided", "unsafe")
    assert shipped_verdict([rows["tf32"]])["level"] == "unknown"


def test_half_and_full_arithmetic_are_measured_on_the_same_clips(artefact_dir: Path, corpus: Path):
    def ask(name):
        settings = asdict(DecodeSettings(max_new_tokens=8))
        return Request(name, str(artefact_dir), ({"path": str(corpus)},), settings, "cpu", 4, 2, 2, 1)

    full, half = measure(ask("fp32")), measure(ask("fp16"))
    assert [p["id"] for p in full["predictions"]] == [p["id"] for p in half["predictions"]]
    assert full["memory"]["weights_bytes"] == 2 * half["memory"]["weights_bytes"]
    assert (full["artefact"]["compute"], half["artefact"]["compute"]) == ("float32", "float16")
    assert len(full["latency_s"]) == 4 and min(full["latency_s"]) > 0
    assert full["floor"]["floor_s"] > 0
    assert full["audio_s"] == pytest.approx(sum(p["duration_s"] for p in full["predictions"]))


def test_a_process_that_fails_costs_one_row(artefact_dir: Path, corpus: Path, tmp_path: Path):
    request = Request("fp32", str(artefact_dir), ({"path": str(corpus)},), {"num_beams": 0}, "cpu", 4, 2, 2, 1)
    found = measure_in_process(request, tmp_path / "work")
    assert "num_beams=0" in found["failed"]


def test_a_whole_comparison_is_written(artefact_dir: Path, corpus: Path, tmp_path: Path):
    folder = tmp_path / "precision"
    overrides = [f"artefact={artefact_dir}", f"dataset.test={corpus}", f"report.dir={folder}", "rows=[tf32]"]
    fast = ["decoding.max_new_tokens=8", "latency_clips=2", "repeats=1", "device=cpu"]
    settings = build_settings(compose_config("compare_precision", [*overrides, *fast]))
    record = compare_precision(settings, console=Console(quiet=True))
    assert json.loads((folder / "precision.json").read_text())["rows"][0]["name"] == "fp32"
    assert record["rows"][1]["absent"].startswith("TF32 is an arithmetic of NVIDIA cards")
    markdown = (folder / "precision.md").read_text()
    assert "| FP32 |" in markdown and "TF32: TF32 is an arithmetic" in markdown and "## By language" in markdown
    assert (folder / "precision.png").read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in (folder / "precision-texts.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and lines[0].keys() >= {"id", "reference", "fp32"}
    assert all(p > 0 for p in (record["rows"][0]["latency_p50_s"], record["rows"][0]["rtfx"]))
