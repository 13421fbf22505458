"""Which weights decay, that fused AdamW moves them as the textbook does, and what is said where it cannot be built."""

import importlib.util

import pytest
import torch
from conftest import tiny_whisper
from torch import nn

from train.optim import OptimizerSettings, build_optimizer, group_parameters


def test_matrices_decay_and_norms_and_biases_do_not():
    model = nn.ModuleDict(
        {"conv": nn.Conv1d(2, 3, 3), "linear": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "table": nn.Embedding(4, 3)}
    )
    model["table"].requires_grad_(False)
    decayed, plain = group_parameters(model.named_parameters(), weight_decay=0.25)
    assert [id(p) for p in decayed["params"]] == [id(model["conv"].weight), id(model["linear"].weight)]
    assert decayed["weight_decay"] == 0.25
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {"conv.bias", "linear.bias", "norm.weight", "norm.bias"}
    assert plain["weight_decay"] == 0.0


def test_every_trainable_weight_of_a_whisper_is_in_one_group_once():
    whisper = tiny_whisper()
    groups = group_parameters(whisper.named_parameters(), weight_decay=0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in whisper.parameters() if p.requires_grad}


def _textbook(weights, gradients, *, lr, betas, eps, decays):
    """AdamW of Loshchilov and Hutter (arXiv:1711.05101, algorithm 2), in float64."""
    weights = [w.double() for w in weights]
    m = [torch.zeros_like(w) for w in weights]
    v = [torch.zeros_like(w) for w in weights]
    for t, step in enumerate(gradients, start=1):
        for i, g in enumerate(step):
            g = g.double()
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            m_hat, v_hat = m[i] / (1 - betas[0] ** t), v[i] / (1 - betas[1] ** t)
            weights[i] = weights[i] * (1 - lr * decays[i]) - lr * m_hat / (v_hat.sqrt() + eps)
    return weights


def test_adamw_equals_torchs_plain_one_and_the_textbook():
    torch.manual_seed(0)
    settings = OptimizerSettings("adamw", lr=0.01, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-5)
    ours, plain = nn.Linear(5, 4), nn.Linear(5, 4)
    plain.load_state_dict(ours.state_dict())
    start = [p.detach().clone() for p in ours.parameters()]
    optimizer = build_optimizer(settings, ours.named_parameters())
    assert optimizer.defaults["fused"]
    reference = torch.optim.AdamW(
        [{"params": [plain.weight], "weight_decay": 0.3}, {"params": [plain.bias], "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.95),
        eps=1e-5,
        foreach=False,
        fused=False,
    )
    gradients = [[torch.randn_like(p) for p in start] for _ in range(8)]
    for step in gradients:
        for model, stepper in ((ours, optimizer), (plain, reference)):
            for p, g in zip(model.parameters(), step, strict=True):
                p.grad = g.clone()
            stepper.step()
    expected = _textbook(start, gradients, lr=0.01, betas=(0.8, 0.95), eps=1e-5, decays=[0.3, 0.0])
    for p, q, r in zip(ours.parameters(), plain.parameters(), expected, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)
        assert torch.allclose(p.double(), r, rtol=1e-5, atol=1e-6)


def test_adafactor_learns():
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(OptimizerSettings("adafactor", lr=0.1), model.named_parameters())
    assert isinstance(optimizer, torch.optim.Adafactor)
    losses = []
    for _ in range(20):
        loss = model(torch.ones(1, 4)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_adafactor_takes_the_decay_of_its_groups():
    model = nn.Linear(4, 4)
    optimizer = build_optimizer(OptimizerSettings("adafactor", weight_decay=0.3), model.named_parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_8_bit_without_bitsandbytes_says_what_to_type():
    with pytest.raises(RuntimeError, match=r"needs bitsandbytes: pip install 'mezzavoce\[8bit\]'"):
        build_optimizer(OptimizerSettings("adamw_8bit"), nn.Linear(2, 2).named_parameters())


def test_nothing_to_train_is_said_so():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable; look at finetune="):
        build_optimizer(OptimizerSettings(), model.named_parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "sgd"}, "optimizer=sgd must be one of adamw, adamw_8bit, adafactor"),
        ({"lr": 0.0}, r"optimizer\.lr=0\.0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        OptimizerSettings(**wrong)


def test_8_bit_moments_stay_in_32_bit_for_embeddings_and_resume_bit_for_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from train.optim import embedding_parameters

    def build():
        torch.manual_seed(0)
        model = nn.ModuleDict({"table": nn.Embedding(100, 64), "linear": nn.Linear(64, 128)})
        settings = OptimizerSettings("adamw_8bit", lr=0.01)
        return model, build_optimizer(settings, model.named_parameters(), embeddings=embedding_parameters(model))

    def step(model, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    model, optimizer = build()
    for seed in range(4):
        step(model, optimizer, seed)
    dtypes = {name: optimizer.state[p]["state1"].dtype for name, p in model.named_parameters()}
    assert dtypes["table.weight"] is torch.float32 and dtypes["linear.weight"] is torch.uint8
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    path = save_checkpoint(tmp_path, 4, Checkpoint(weights, optimizer.state_dict(), {}, {}))
    resumed, fresh = build()
    loaded = load_checkpoint(path)
    resumed.load_state_dict(loaded.model)
    fresh.load_state_dict(loaded.optimizer)
    for seed in range(4, 8):
        step(model, optimizer, seed)
        step(resumed, fresh, seed)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
