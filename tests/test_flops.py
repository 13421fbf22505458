"""Operations counted from the shapes equal those that torch counts while they run, for each way of fine-tuning."""

import dataclasses

import pytest
import torch
from conftest import tiny_whisper
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from data.labels import IGNORE_INDEX
from train.adapters import FinetuneSettings, choose_trainable, enable_checkpointing
from train.flops import PARTS, FlopCount
from train.loss import TrainingObjective
from train.memory.pace import clip_flops, estimate_pace
from train.memory.workload import Workload

NUM_CLIPS, NUM_LABELS = 3, 11
WAYS = {
    "full": FinetuneSettings("full"),
    "frozen_encoder": FinetuneSettings("frozen_encoder"),
    "lora": FinetuneSettings("lora", rank=4, alpha=8.0),
    "lora_all": FinetuneSettings("lora", rank=2, alpha=4.0, target_modules=("q_proj", "k_proj", "fc1", "fc2")),
}

# torch counts the attention kernels of CUDA, and has the rules for it, but does not know the one of the CPU.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: (
        sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, out_shape=None, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}


def _whisper(way, *, checkpointing):
    whisper = tiny_whisper()
    whisper.config.use_cache = False
    choose_trainable(whisper, WAYS[way])
    if checkpointing:
        enable_checkpointing(whisper)
    return whisper.train()


def _run(whisper, num_frames, *, num_masked=0, **options):
    """Return torch's count of the forward, and of forward and backward."""
    objective = TrainingObjective(whisper, **options)
    batch = (
        torch.randn(NUM_CLIPS, 80, num_frames),
        torch.ones(NUM_CLIPS, NUM_LABELS, dtype=torch.long),
        torch.ones(NUM_CLIPS, NUM_LABELS, dtype=torch.long),
    )
    batch[2][0, :num_masked] = IGNORE_INDEX
    counts = []
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        loss = objective(*batch)
        counts.append(counter.get_total_flops())
        loss.backward()
        counts.append(counter.get_total_flops())
    return counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_the_count_equals_torchs(way, checkpointing):
    whisper = _whisper(way, checkpointing=checkpointing)
    count = FlopCount(whisper)
    for num_frames in (100, 60):
        found = count.of(NUM_CLIPS, num_frames, NUM_LABELS)
        forward, total = _run(whisper, num_frames)
        assert found.forward == forward
        assert found.needed + found.recomputed == total


@pytest.mark.parametrize("chunk_tokens", [0, 8])
def test_logits_count_for_label_tokens_alone_and_chunks_are_made_again(chunk_tokens):
    whisper = _whisper("full", checkpointing=False)
    found = FlopCount(whisper, loss_chunk_tokens=chunk_tokens).of(
        NUM_CLIPS, 60, NUM_LABELS, num_label_tokens=NUM_CLIPS * NUM_LABELS - 4
    )
    forward, total = _run(whisper, 60, num_masked=4, chunk_tokens=chunk_tokens)
    assert found.forward == pytest.approx(forward, rel=1e-12)
    assert found.needed + found.recomputed == pytest.approx(total, rel=1e-12)


def test_what_is_computed_twice_is_counted_apart():
    kept = FlopCount(_whisper("full", checkpointing=False)).of(NUM_CLIPS, 100, NUM_LABELS)
    again = FlopCount(_whisper("full", checkpointing=True)).of(NUM_CLIPS, 100, NUM_LABELS)
    assert again.needed == kept.needed
    assert kept.recomputed < 0.1 * kept.needed < again.recomputed < again.forward


def test_parts_add_up_and_a_short_window_costs_less():
    count = FlopCount(_whisper("full", checkpointing=False))
    parts = count.by_part(NUM_CLIPS, 3000, NUM_LABELS)
    assert tuple(parts) == PARTS
    assert sum(part.needed for part in parts.values()) == count.of(NUM_CLIPS, 3000, NUM_LABELS).needed
    assert count.by_part(2 * NUM_CLIPS, 3000, NUM_LABELS)["logits"].forward == 2 * parts["logits"].forward
    assert count.of(NUM_CLIPS, 600, NUM_LABELS).forward < count.of(NUM_CLIPS, 3000, NUM_LABELS).forward / 5


def test_the_pace_of_a_plan_counts_as_a_run_does():
    whisper = _whisper("lora", checkpointing=True)
    work = Workload(whisper.config, WAYS["lora"], "fp16", "adamw", 4, num_frames=100, label_tokens=NUM_LABELS)
    once = FlopCount(_whisper("lora", checkpointing=False)).of(1, 100, NUM_LABELS)
    assert clip_flops(work) == once.needed + once.recomputed
    again = FlopCount(whisper).of(1, 100, NUM_LABELS)
    assert clip_flops(work.changed(checkpoint_every_layers=1)) == again.needed + again.recomputed > clip_flops(work)
    on_int8 = work.changed(finetune=dataclasses.replace(WAYS["lora"], base_dtype="int8"))
    assert clip_flops(on_int8) == clip_flops(work)


def test_hours_follow_from_operations_or_from_a_measured_speed():
    work = Workload(tiny_whisper().config, WAYS["full"], "fp16", "adamw", 4, 2, num_frames=100, label_tokens=8)
    pace = estimate_pace(
        work, hours_of_speech=10, epochs=2, clip_s=0.5, flops_per_s=100 * clip_flops(work), audio_s_per_s=None
    )
    assert pace.audio_s_per_s == pytest.approx(50.0)
    assert pace.hours == pytest.approx(20 / 50) and pace.updates == 20 * 3600 / (0.5 * 8)
    measured = estimate_pace(work, hours_of_speech=10, epochs=2, clip_s=0.5, flops_per_s=1.0, audio_s_per_s=25.0)
    assert measured.hours == pytest.approx(20 / 25)
