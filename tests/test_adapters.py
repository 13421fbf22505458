"""What learns under each `finetune=`, that it really moves, and that adapters are merged in FP32 bit for bit."""

import pytest
import torch
from conftest import fake_batch, tiny_whisper
from transformers import WhisperForConditionalGeneration

from train.adapters import (
    FinetuneSettings,
    choose_trainable,
    count_parameters,
    enable_checkpointing,
    merged_state,
    trainable_state,
)
from train.loss import TrainingObjective


def _adapted(**options):
    settings = FinetuneSettings("lora", **{"rank": 3, "alpha": 7.0, **options})
    whisper = tiny_whisper()
    torch.manual_seed(1)
    choose_trainable(whisper, settings)
    return whisper


def _backward(whisper):
    objective = TrainingObjective(whisper).train()
    batch = fake_batch(2)
    objective(batch.input_features, batch.decoder_input_ids, batch.labels).backward()


def _moved(whisper):
    """Return the names of the parameters that one update of SGD moves."""
    before = {name: p.detach().clone() for name, p in whisper.named_parameters()}
    optimizer = torch.optim.SGD([p for p in whisper.parameters() if p.requires_grad], lr=1.0)
    _backward(whisper)
    optimizer.step()
    return {name for name, p in whisper.named_parameters() if not torch.equal(p, before[name])}


def test_full_is_everything_but_the_encoders_positions():
    whisper = tiny_whisper()
    choose_trainable(whisper, FinetuneSettings("full"))
    names = {name for name, _ in whisper.named_parameters()}
    learning = {name for name, p in whisper.named_parameters() if p.requires_grad}
    assert names - learning == {"model.encoder.embed_positions.weight"}
    # A key bias shifts all scores of a query alike: softmax does not see it, so in exact arithmetic it never moves.
    assert {name for name in learning - _moved(whisper) if not name.endswith("k_proj.bias")} == set()


def test_a_frozen_encoder_has_no_gradient_and_the_decoder_has():
    whisper = tiny_whisper()
    choose_trainable(whisper, FinetuneSettings("frozen_encoder"))
    _backward(whisper)
    assert all(p.grad is None and not p.requires_grad for p in whisper.model.encoder.parameters())
    assert all(p.grad is not None for p in whisper.model.decoder.parameters())


def test_a_frozen_encoder_keeps_no_activations():
    whisper = tiny_whisper()
    choose_trainable(whisper, FinetuneSettings("frozen_encoder"))
    seen = []
    whisper.model.encoder.layer_norm.register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    _backward(whisper)
    assert seen == [False]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_moves_every_adapter_and_nothing_else(checkpointing):
    whisper = _adapted()
    if checkpointing:
        enable_checkpointing(whisper)
    ups = {name for name, _ in whisper.named_parameters() if "lora_B" in name}
    adapters = {name for name, _ in whisper.named_parameters() if "lora_" in name}
    assert len(ups) == 2 * (2 + 2 * 1)  # q and v of two encoder layers, and of both attentions of one decoder layer
    assert {name for name, p in whisper.named_parameters() if p.requires_grad} == adapters
    assert _moved(whisper) == ups  # A has no gradient while B is zero
    _train_adapters(whisper)
    whisper.zero_grad()
    _backward(whisper)
    assert {name for name, p in whisper.named_parameters() if p.grad is not None and p.grad.any()} == adapters


@pytest.mark.parametrize("name", ["full", "lora", "frozen_encoder"])
def test_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for checkpointing in (False, True):
        whisper = _adapted() if name == "lora" else tiny_whisper()
        if name != "lora":
            choose_trainable(whisper, FinetuneSettings(name))
        calls = []
        whisper.model.decoder.layers[0].fc1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            enable_checkpointing(whisper)
        _backward(whisper)
        assert len(calls) == 1 + checkpointing  # forward once more in the backward
        gradients.append({n: p.grad for n, p in whisper.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][key], rtol=1e-5, atol=1e-6)


def _train_adapters(whisper):
    for name, p in whisper.named_parameters():
        if "lora_" in name:
            p.data.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))


def test_merging_is_fp32_arithmetic_bit_for_bit_and_stock_whisper_takes_it():
    whisper = _adapted()
    _train_adapters(whisper)
    merged = merged_state(whisper)
    stock = WhisperForConditionalGeneration(whisper.config)
    assert merged.keys() == stock.state_dict().keys()
    plain = tiny_whisper().state_dict()
    state = whisper.state_dict()
    num_adapted = 0
    for name, tensor in merged.items():
        owner = name.removesuffix(".weight")
        expected = plain[name]
        if f"{owner}.lora_A.default.weight" in state:
            down, up = state[f"{owner}.lora_A.default.weight"], state[f"{owner}.lora_B.default.weight"]
            expected = expected + (7.0 / 3) * (up @ down)
            num_adapted += 1
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, expected), name
    assert num_adapted == 8

    stock.load_state_dict(merged)
    batch = fake_batch(2, num_frames=3000)
    inputs = {"input_features": batch.input_features, "decoder_input_ids": batch.decoder_input_ids}
    with torch.no_grad():
        adapted = whisper.eval()(**inputs).logits
        assert torch.allclose(stock.eval()(**inputs).logits, adapted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(tiny_whisper().eval()(**inputs).logits, adapted, rtol=1e-2, atol=1e-2)


def test_an_average_stands_in_for_the_adapters():
    whisper = _adapted()
    _train_adapters(whisper)
    halved = {name: tensor / 2 for name, tensor in trainable_state(whisper).items()}
    found = merged_state(whisper, replaced=halved)
    name = "model.encoder.layers.0.self_attn.q_proj"
    up, down = halved[f"{name}.lora_B.default.weight"], halved[f"{name}.lora_A.default.weight"]
    expected = tiny_whisper().state_dict()[f"{name}.weight"] + (7.0 / 3) * (up @ down)
    assert torch.equal(found[f"{name}.weight"], expected)


def test_an_average_stands_in_for_plain_weights():
    whisper = tiny_whisper()
    choose_trainable(whisper, FinetuneSettings("full"))
    doubled = {name: 2 * tensor for name, tensor in trainable_state(whisper).items()}
    found = merged_state(whisper, replaced=doubled)
    state = whisper.state_dict()
    assert all(torch.equal(found[name], doubled.get(name, state[name])) for name in found)


def test_an_fp16_base_halves_what_is_frozen_and_keeps_adapters_in_fp32():
    whisper = _adapted(base_dtype="fp16")
    assert {p.dtype for p in whisper.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in whisper.parameters() if not p.requires_grad} == {torch.float16}
    _train_adapters(whisper)
    merged = merged_state(whisper)
    name = "model.decoder.layers.0.encoder_attn.v_proj"
    state = whisper.state_dict()
    up, down = state[f"{name}.lora_B.default.weight"], state[f"{name}.lora_A.default.weight"]
    expected = tiny_whisper().state_dict()[f"{name}.weight"].half().float() + (7.0 / 3) * (up @ down)
    assert merged[f"{name}.weight"].dtype is torch.float32
    assert torch.equal(merged[f"{name}.weight"], expected)


def test_an_fp16_base_learns_under_autocast():
    whisper = _adapted(base_dtype="fp16")
    with torch.autocast("cpu", torch.float16):
        _backward(whisper)
    ups = [p for name, p in whisper.named_parameters() if "lora_B" in name]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool(p.grad.any()) for p in ups)


def test_more_targets_are_taken_and_unknown_ones_refused():
    whisper = _adapted(target_modules=("fc1",))
    assert {n.split(".lora_")[0].rsplit(".", 1)[1] for n, p in whisper.named_parameters() if p.requires_grad} == {"fc1"}
    with pytest.raises(ValueError, match="nonesuch"):
        _adapted(target_modules=("nonesuch",))


def test_counts():
    whisper = _adapted()
    learning, total = count_parameters(whisper)
    assert learning == 8 * (16 * 3 + 3 * 16)
    assert total == learning + sum(p.numel() for p in tiny_whisper().parameters())


@pytest.mark.parametrize("wrong", [{"name": "prefix"}, {"base_dtype": "int4"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="finetune"):
        FinetuneSettings(**wrong)


@pytest.mark.parametrize("options", [{}, {"every_layers": 2}, {"offload": True}])
@pytest.mark.parametrize("base_dtype", ["fp32", "fp16", "int8"])
def test_every_adapter_moves_under_recomputing(base_dtype, options):
    if base_dtype == "int8":
        pytest.importorskip("bitsandbytes")
    whisper = _adapted(base_dtype=base_dtype)
    enable_checkpointing(whisper, **options)
    # LoRA begins with B = 0, where A has no gradient: it moves from the second update on.
    moved = set()
    for _ in range(2):
        with torch.autocast("cpu", torch.float16, enabled=base_dtype != "fp32"):
            moved |= _moved(whisper)
    assert moved == {name for name, p in whisper.named_parameters() if p.requires_grad}


def test_every_second_layer_is_recomputed_and_the_gradient_stays():
    whisper, plain = tiny_whisper(), tiny_whisper()
    enable_checkpointing(whisper, every_layers=2, offload=True)
    assert [layer.gradient_checkpointing for layer in whisper.model.encoder.layers] == [True, False]
    for model in (whisper, plain):
        _backward(model)
    for p, q in zip(whisper.parameters(), plain.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


def test_an_int8_base_is_merged_within_its_rounding():
    pytest.importorskip("bitsandbytes")
    before = tiny_whisper().state_dict()
    merged = merged_state(_adapted(base_dtype="int8"))
    assert merged.keys() == before.keys()
    for name, tensor in before.items():
        assert float((merged[name] - tensor).abs().max()) <= float(tensor.abs().max()) / 240, name
