"""Where memory runs out: what is said, that `auto` goes on with the same gradient, and what a plan refuses."""

import pytest
import torch
from accelerate import Accelerator
from conftest import fake_batch, tiny_whisper

from train.adapters import FinetuneSettings
from train.loss import TrainingObjective
from train.memory.device import explain_shortage, verify_fits, workload_of
from train.memory.fitting import statics_of
from train.memory.plan import plan_memory
from train.memory.shortage import Shortage
from train.memory.workload import Workload
from train.step import Updater

MESSAGE = "CUDA out of memory. Tried to allocate 2.50 KiB. GPU 0 has a total capacity of 23.65 GiB"
CPU = torch.device("cpu")


class _Small(TrainingObjective):
    """Runs out of memory above so many clips, until told otherwise."""

    max_clips = 2
    num_failures = 0

    def forward(self, input_features, *others, **named):
        if len(input_features) > self.max_clips:
            self.num_failures += 1
            raise torch.OutOfMemoryError(MESSAGE)
        return super().forward(input_features, *others, **named)


def _work(whisper, **values):
    given = {"optimizer": "adamw", "micro_batch_size": 8, "device": "cpu"}
    return Workload(
        **{"config": whisper.config, "finetune": FinetuneSettings(), "precision": "fp32", **given, **values}
    )


def _updater(whisper, objective, *, may_split):
    optimizer = torch.optim.SGD([p for p in whisper.parameters() if p.requires_grad], lr=0.1)
    shortage = Shortage(_work(whisper), CPU, may_split=may_split)
    return Updater(objective, optimizer, Accelerator(cpu=True), max_grad_norm=0.0, shortage=shortage)


@pytest.mark.usefixtures("fresh_accelerate")
def test_auto_goes_on_with_smaller_forwards_and_the_same_update():
    whole, cut = tiny_whisper(), tiny_whisper()
    objective = _Small(cut)
    batch = fake_batch(8)
    expected = _updater(whole, TrainingObjective(whole), may_split=False).update([batch], lr=0.1)
    updater = _updater(cut, objective, may_split=True)
    found = updater.update([batch], lr=0.1)
    assert objective.num_failures == 2  # 8, 4, then 2 clips
    assert found.num_label_tokens == expected.num_label_tokens
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
    updater.update([fake_batch(8, seed=1)], lr=0.1)
    assert objective.num_failures == 2  # it remembers


@pytest.mark.usefixtures("fresh_accelerate")
def test_without_auto_the_error_says_what_fits_and_no_weight_moves():
    whisper = tiny_whisper()
    before = [p.detach().clone() for p in whisper.parameters()]
    with pytest.raises(RuntimeError, match=r"2\.50 KiB were asked for.* with 8 clips of 1 s .*nearest that fits") as e:
        _updater(whisper, _Small(whisper), may_split=False).update([fake_batch(8)], lr=0.1)
    assert "trainer.micro_batch_size=" in str(e.value)
    assert all(torch.equal(p, q) for p, q in zip(before, whisper.parameters(), strict=True))


@pytest.mark.usefixtures("fresh_accelerate")
def test_one_clip_that_does_not_fit_ends_the_run():
    whisper = tiny_whisper()
    objective = _Small(whisper)
    objective.max_clips = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        _updater(whisper, objective, may_split=True).update([fake_batch(3)], lr=0.1)


def test_a_plan_that_cannot_fit_is_refused_with_the_nearest_one():
    whisper = tiny_whisper()
    work = _work(whisper, num_frames=3000, label_tokens=448)
    plan = plan_memory(work, statics_of(work.config, work.finetune))
    verify_fits(plan, plan.total_gib + 0.1, device="a card")
    with pytest.raises(RuntimeError, match=r"a card has .*the nearest that fits: .*scripts/plan\.py"):
        verify_fits(plan, plan.total_gib - 0.01, device="a card")
    with pytest.raises(RuntimeError, match="nothing of this model fits; take a smaller model="):
        verify_fits(plan, 0.01, device="a card")


def test_shapes_of_the_largest_micro_batch_are_read():
    work = workload_of(_work(tiny_whisper()), [fake_batch(2), fake_batch(4, num_frames=300)])
    assert (work.micro_batch_size, work.accumulation_steps, work.num_frames) == (4, 2, 300)
    assert work.label_tokens == fake_batch(4).labels.shape[1]


def test_a_message_without_a_size_is_explained_as_well():
    assert "memory was asked for" in explain_shortage("CUDA error", _work(tiny_whisper()), CPU)
