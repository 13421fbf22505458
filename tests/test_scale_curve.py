"""The reckoned curve: its formulas against sums by hand, and the page against the program."""

import pytest

from benchmarks.environment import PROJECT
from benchmarks.scale_curve import CARDS, RECIPES, Card, exchanged_bytes, markdown, reckon
from scripts.settings import compose_config
from scripts.train import build_settings
from train.adapters import FinetuneSettings
from train.memory.fitting import statics_of
from train.memory.plan import plan_memory
from train.memory.workload import Workload
from train.model import planned_config

LARGE_PARAMETERS, LARGE_LEARNING = 1_543_490_560, 1_541_570_560


@pytest.fixture(scope="module")
def work():
    config = planned_config(build_settings(compose_config("train", ["model=large_v3"])).model)
    return Workload(config, FinetuneSettings(), "fp16", "adamw", micro_batch_size=8, accumulation_steps=4)


def test_what_a_card_sends(work):
    assert exchanged_bytes(work, "none", 2) == 2 * 4 * LARGE_LEARNING / 2
    assert exchanged_bytes(work, "zero2", 4) == 4 * 4 * (LARGE_PARAMETERS + LARGE_LEARNING) * 3 / 4
    assert exchanged_bytes(work, "zero3", 4) == 4 * 4 * (2 * LARGE_PARAMETERS + LARGE_LEARNING) * 3 / 4


def test_states_are_cut_and_what_is_gathered_is_counted(work):
    statics = statics_of(work.config, work.finetune)
    one = plan_memory(work.changed(num_processes=8), statics)
    cut = plan_memory(work.changed(num_processes=8, shard="zero3"), statics)
    kept = plan_memory(work.changed(num_processes=8, shard="zero2"), statics)
    assert cut.update["optimiser"] == pytest.approx(one.update["optimiser"] / 8, rel=1e-6)
    assert cut.update["activations"] == one.update["activations"]
    layer = max(work.config.d_model**2 * 16, 0) * 4 / 2**30  # a decoder layer: 8 attention and 8 feed-forward matrices
    gathered = cut.update["weights"] - one.update["weights"] / 8
    root = 2 * 4 * work.config.vocab_size * work.config.d_model / 2**30
    assert gathered == pytest.approx(root + 3 * layer, rel=0.15)
    assert one.total_gib > kept.total_gib > cut.total_gib


def test_a_plan_for_one_process_has_no_shards(work):
    statics = statics_of(work.config, work.finetune)
    assert plan_memory(work.changed(shard="zero3"), statics).update == plan_memory(work, statics).update


def test_the_page_has_the_table_of_the_program():
    page = (PROJECT / "docs" / "scale.md").read_text()
    assert sum(line.startswith(tuple(f"| {name} |" for name in RECIPES)) for line in page.splitlines()) == 21
    name, (shard, overrides) = list(RECIPES.items())[-1]
    rows = [reckon(shard, overrides, n, Card()) for n in (CARDS[0], CARDS[-1])]
    for line in markdown({name: rows}).splitlines():
        assert line in page
