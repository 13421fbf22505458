"""One update: the cut into micro-batches never changes the gradient, and what is not finite never moves a weight.

The scaler is held against an oracle of fifteen lines, the weights against torch's own AdamW on the good updates alone;
both exactly, since the scale is a power of two and the fake objective is computed in FP32.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import fake_batch, tiny_whisper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import collate
from data.labels import IGNORE_INDEX, Labels
from data.loaders import UpdateBatches
from data.plan import Position
from train.ema import WeightAverage
from train.feed import Feed
from train.guard import NonFiniteError
from train.heartbeat import Heartbeat
from train.loop import Loop
from train.loss import TrainingObjective
from train.precision import Device, PrecisionSettings, resolve_precision
from train.ranks import Ranks
from train.runtime import build_accelerator
from train.schedule import ScheduleSettings
from train.step import Updater

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

CUTS = {"1x16": [16], "2x8": [8, 8], "4x4": [4, 4, 4, 4], "unequal": [5, 1, 10]}


def _accelerator(mode, **options):
    settings = PrecisionSettings(mode, **options)
    return build_accelerator(resolve_precision(settings, Device("cpu", "cpu")), settings)


def _cut(sizes):
    batches, first = [], 0
    for size in sizes:
        batches.append(fake_batch(size, first_clip=first))
        first += size
    return batches


def _run(mode, batches, *, objective=None, max_grad_norm=0.0, **options):
    """Return the result of one update, and the unscaled gradient that the optimizer saw (None where it saw none)."""
    accelerator = _accelerator(mode, **options)
    objective = objective or TrainingObjective(tiny_whisper())
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(
        lambda o, *_: seen.append(torch.cat([p.grad.flatten().clone() for p in o.param_groups[0]["params"]]))
    )
    updater = Updater(accelerator.prepare(objective), optimizer, accelerator, max_grad_norm=max_grad_norm)
    return updater.update(batches, lr=0.1), seen[0] if seen else None


def _difference(a, b):
    return float((a - b).norm() / b.norm())


def _hugging_face_gradient(batch):
    whisper = tiny_whisper()
    whisper(
        input_features=batch.input_features, decoder_input_ids=batch.decoder_input_ids, labels=batch.labels
    ).loss.backward()
    return torch.cat([p.grad.flatten() for p in whisper.parameters() if p.requires_grad])


@pytest.mark.parametrize(("mode", "bound"), [("fp32", 1e-6), ("fp16", 2e-3)])
def test_accumulation_never_changes_the_gradient(mode, bound, fresh_accelerate):
    """Hugging Face's Trainer would make it 2 and 4 times larger here. Labels are of unlike length."""
    found = {}
    for name, sizes in CUTS.items():
        fresh_accelerate()
        found[name] = _run(mode, _cut(sizes))
    whole, gradient = found["1x16"]
    assert whole.num_label_tokens == sum(3 + 2 * (i % 7) - 1 for i in range(16))
    for result, other in found.values():
        assert result.num_label_tokens == whole.num_label_tokens
        assert result.loss == pytest.approx(whole.loss, rel=bound)
        assert _difference(other, gradient) <= bound
    reference = _hugging_face_gradient(fake_batch(16))
    assert _difference(gradient, reference) <= (1e-5 if mode == "fp32" else 2e-2)


class _Squares(nn.Module):
    """An objective in FP32 even under autocast; its gradient overflows where it is told to, its loss never does."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.plant = False
        self.w.register_hook(lambda g: torch.full_like(g, float("inf")) if self.plant else g)

    def forward(self, input_features, decoder_input_ids, labels, *, num_label_tokens=None):
        return (input_features[:, :6, 0] * self.w).square().sum()


def _oracle(overflows, *, scale, growth_interval):
    """Return after each update: the scale, whether it was skipped, and how many were applied."""
    tracker = applied = 0
    rows = []
    for overflow in overflows:
        if overflow:
            scale, tracker = scale * 0.5, 0
        else:
            applied += 1
            tracker += 1
            if tracker == growth_interval:
                scale, tracker = scale * 2.0, 0
        rows.append((scale, overflow, applied))
    return rows


PLAN = [True, True, False, False, False, False, True, False, False, False, False, False, False, True, False]
OPTIMIZERS = {"fused": {"fused": True}, "plain": {"foreach": False, "fused": False}}


def _warmed(applied, warmup=10):
    return min(1.0, (applied + 1) / warmup)


def _loop(updater, accelerator):
    parts = SimpleNamespace(
        updater=updater,
        accelerator=accelerator,
        whisper=tiny_whisper(),
        matmul_flops_per_s=None,
        dataset=SimpleNamespace(num_rows=3, audio_s=1.0),
        memory=None,
        refused=(),
        run_dir=Path("no-folder-is-made"),
        ranks=Ranks(),
        heartbeat=Heartbeat(0, 1, timeout_s=1.0),
    )
    settings = SimpleNamespace(
        dataset=SimpleNamespace(on_bad="strict", max_bad_share=0.0),
        trainer=SimpleNamespace(max_steps=len(PLAN), loss_chunk_tokens=0),
        schedule=ScheduleSettings("constant", warmup_steps=10),
        optimizer=SimpleNamespace(lr=0.01),
    )
    return Loop(parts, settings)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_planted_overflows_follow_the_oracle_exactly(kind):
    options = {"lr": 0.01, "weight_decay": 0.1, **OPTIMIZERS[kind]}
    accelerator = _accelerator("fp16", init_scale=1024.0, growth_interval=3)
    objective = _Squares()
    optimizer = torch.optim.AdamW([objective.w], **options)
    average = WeightAverage(objective.named_parameters(), decay=0.5)
    updater = Updater(accelerator.prepare(objective), optimizer, accelerator, max_grad_norm=0.05, average=average)
    loop = _loop(updater, accelerator)

    reference = nn.Parameter(objective.w.detach().clone())
    plain = torch.optim.AdamW([reference], **options)
    mean = reference.detach().clone()
    oracle = _oracle(PLAN, scale=1024.0, growth_interval=3)
    for i, (scale, skipped, applied) in enumerate(oracle):
        objective.plant = PLAN[i]
        batch = fake_batch(3, num_frames=2, seed=i)
        before = objective.w.detach().clone(), average.average["w"].clone(), loop._lr()
        updates = iter([UpdateBatches((batch,), Position(0, i), Position(0, i + 1))])
        result, _ = loop._update(Feed(updates, torch.device("cpu")))

        assert (result.loss_scale, result.skipped, loop.progress.applied) == (scale, skipped, applied)
        assert (loop.progress.attempted, loop.progress.position) == (i + 1, Position(0, i + 1))
        assert math.isfinite(result.loss)
        if skipped:
            assert result.grad_norm is None
            assert torch.equal(objective.w, before[0])
            assert torch.equal(average.average["w"], before[1])
            assert loop._lr() == before[2]  # the schedule stood still
        else:
            for group in plain.param_groups:
                group["lr"] = 0.01 * _warmed(applied - 1)
            plain.zero_grad()
            loss = (batch.input_features[:, :6, 0] * reference).square().sum()
            (loss * (1 / batch.num_label_tokens)).backward()
            norm = torch.nn.utils.clip_grad_norm_([reference], 0.05)
            plain.step()
            mean.lerp_(reference.detach(), 0.5)
            assert result.grad_norm == float(norm) > 0.05
        assert torch.equal(objective.w, reference)
        assert torch.equal(average.average["w"], mean)
    assert loop.guard.num_skipped == sum(PLAN)
    state = optimizer.state[objective.w]
    assert float(state["step"]) == oracle[-1][2]
    assert torch.equal(state["exp_avg_sq"], plain.state[reference]["exp_avg_sq"])


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_without_a_scaler_a_bad_gradient_is_skipped_all_the_same(mode, value):
    objective = TrainingObjective(tiny_whisper())
    weight = objective.whisper.model.decoder.layers[0].fc1.weight
    weight.register_hook(lambda g: g.clone().index_fill_(0, torch.tensor([0]), value))
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    accelerator = _accelerator(mode)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=0.1, fused=True)
    average = WeightAverage(objective.named_parameters(), decay=0.5)
    updater = Updater(accelerator.prepare(objective), optimizer, accelerator, max_grad_norm=1.0, average=average)
    result = updater.update([fake_batch(2)], lr=0.1)
    assert result.skipped
    assert result.grad_norm is None
    assert result.loss_scale is None
    assert math.isfinite(result.loss)
    assert all(torch.equal(p, before[name]) for name, p in objective.named_parameters())
    assert all(torch.equal(mean, before[name]) for name, mean in average.average.items())
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("mode", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_clip_without_a_finite_loss_is_named_and_left_out(mode, value, fresh_accelerate):
    batches = _cut([4, 4])
    batches[1].input_features[2, 5, 7] = value  # clip 6
    result, gradient = _run(mode, batches, init_scale=256.0)
    assert result.bad_clips == (6,)
    assert not result.skipped
    fresh_accelerate()
    clean = _cut([4, 4])
    expected, reference = _run(mode, [clean[0], clean[1].select([0, 1, 3])], init_scale=256.0)
    assert _difference(gradient, reference) <= 1e-6
    assert (result.loss, result.num_label_tokens) == (pytest.approx(expected.loss, rel=1e-6), expected.num_label_tokens)
    assert result.loss_scale == expected.loss_scale == (256.0 if mode == "fp16" else None)


def test_a_whole_bad_micro_batch_is_left_out():
    batches = _cut([2, 2])
    batches[0].input_features[:] = float("nan")
    result, gradient = _run("fp32", batches)
    assert result.bad_clips == (0, 1)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("mode", ["fp32", "fp16"])
def test_no_clip_left_stops_the_run_and_names_the_module(mode):
    batch = fake_batch(2)
    batch.input_features[:] = float("nan")
    objective = TrainingObjective(tiny_whisper())
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"first non-finite output in whisper\.model\.encoder\.conv1"):
        _run(mode, [batch], objective=objective)
    assert all(torch.equal(p, before[name]) for name, p in objective.named_parameters())


def test_the_norm_is_the_true_one_and_clipping_comes_after_unscaling():
    batch = fake_batch(3, num_frames=2)
    plain = _Squares()
    (plain(batch.input_features, None, None) / batch.num_label_tokens).backward()
    norm = float(plain.w.grad.norm())
    objective = _Squares()
    result, gradient = _run("fp16", [batch], objective=objective, max_grad_norm=norm / 4, init_scale=65536.0)
    assert result.grad_norm == pytest.approx(norm, rel=1e-6)
    assert torch.allclose(gradient, plain.w.grad / 4, rtol=1e-4)
    assert torch.allclose(objective.w, plain.w - 0.1 * plain.w.grad / 4, rtol=1e-5)


def test_a_small_gradient_is_not_clipped(fresh_accelerate):
    batch = fake_batch(3, num_frames=2)
    _, free = _run("fp32", [batch], objective=_Squares(), max_grad_norm=0.0)
    fresh_accelerate()
    _, below = _run("fp32", [batch], objective=_Squares(), max_grad_norm=1e3)
    assert torch.equal(free, below)


def _filler(num_frames=100):
    return collate([torch.zeros(80, num_frames)], [Labels((256,), (IGNORE_INDEX,))], clips=(), audio_s=0.0, pad_id=256)


@pytest.mark.parametrize("first", [True, False])
def test_a_filler_contributes_nothing(first, fresh_accelerate):
    batch = fake_batch(4)
    plain, reference = _run("fp32", [batch])
    fresh_accelerate()
    filled, gradient = _run("fp32", [_filler(), batch] if first else [batch, _filler()])
    assert torch.equal(gradient, reference)
    assert filled == plain


def test_an_update_of_fillers_alone_has_a_loss_and_a_gradient_of_zero():
    result, gradient = _run("fp16", [_filler()])
    assert (result.loss, result.grad_norm, result.skipped, result.num_label_tokens) == (0.0, 0.0, False, 1)
    assert not gradient.any()


def test_the_blank_of_a_batch_is_a_filler_of_its_shape():
    batch = fake_batch(3)
    batch.input_features[:] = float("nan")
    blank = batch.blank()
    assert (blank.clips, blank.num_label_tokens, blank.audio_s) == ((), 0, 0.0)
    assert blank.input_features.shape == batch.input_features.shape
    _, gradient = _run("fp32", [blank])
    assert not gradient.any()


def test_the_rate_is_set_before_the_step():
    objective = _Squares()
    accelerator = _accelerator("fp32")
    optimizer = torch.optim.SGD([objective.w], lr=123.0)
    updater = Updater(accelerator.prepare(objective), optimizer, accelerator, max_grad_norm=0.0)
    before = objective.w.detach().clone()
    updater.update([fake_batch(1, num_frames=2)], lr=0.0)
    assert torch.equal(objective.w, before)


class _Questions(TorchDispatchMode):
    """Count what makes the host wait for a device: a value asked for, or a shape that hangs on values."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITING:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_update_waits_for_the_device_once(mode, kind, monkeypatch):
    """In the model, the loss, the norm, the scaler, the optimizer and the average nothing is asked for."""
    objective = TrainingObjective(tiny_whisper())
    accelerator = _accelerator(mode, init_scale=256.0)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, **OPTIMIZERS[kind])
    average = WeightAverage(objective.named_parameters(), decay=0.5)
    updater = Updater(accelerator.prepare(objective), optimizer, accelerator, max_grad_norm=0.1, average=average)
    reads, order = [], []
    read = Updater._read

    def counted(self, figures):
        reads.append(len(figures))
        order.append("wait")
        return read(self, figures)

    monkeypatch.setattr(Updater, "_read", counted)
    for _ in range(2):
        reads.clear()
        batches = _cut([2, 3])
        with _Questions() as questions:
            result = updater.update(batches, lr=0.01, meanwhile=lambda: order.append("meanwhile"))
        assert reads == [3]
        # An optimizer that is not fused reads its own step count, which lies on the host.
        assert questions.names == [] or (kind == "plain" and set(questions.names) == {"_local_scalar_dense"})
        assert len(questions.names) <= len(parameters)
        assert result.grad_norm > 0.1
    assert order == ["meanwhile", "wait"] * 2


def test_the_counter_of_questions_sees_one():
    with _Questions() as questions:
        float(torch.ones(1) + 1)
        bool(torch.ones(()) > 0)
        torch.tensor([True, False, True]).nonzero()
    assert questions.names.count("_local_scalar_dense") + questions.names.count("is_nonzero") == 2
    assert questions.names[-1] == "nonzero"
