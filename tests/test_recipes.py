"""Every recipe of `conf/experiment` composes, says what it is for, and fits the card that it is named after."""

import re
import shlex

import pytest

from scripts.plan import command_of, plan_settings, recipe_rows, recommend
from scripts.settings import CONF, compose_config, verify_overrides
from scripts.train import build_settings
from train.memory.picture import draw_plans

RECIPES = sorted(path.stem for path in CONF.glob("experiment/ada*.yaml"))


def test_the_promised_recipes_are_there():
    wanted = {"ada24_lora", "ada24_full", "ada24_frozen_encoder", "ada16_lora", "ada12_lora_int8_base"}
    wanted |= {f"ada24_{name}_bf16" for name in ("lora", "full", "frozen_encoder")}
    assert wanted <= set(RECIPES)
    assert any("turbo" in name for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_card_with_the_longest_texts(name):
    settings = build_settings(compose_config("train", [f"experiment={name}"]))
    card_gib = {"24": 22.5, "16": 15.6, "12": 11.6}[re.match(r"ada(\d+)_", name)[1]]  # what such cards show
    plan = plan_settings(settings, 448)
    assert plan.fits(card_gib), f"{plan.total_gib:.2f} GiB"
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert f"accelerate launch scripts/train.py experiment={name} " in text
    assert settings.trainer.gradient_checkpointing and settings.run.name == name
    assert name.endswith("_bf16") == (settings.precision.name == "bf16")


def test_the_figures_that_were_asked_for():
    def plan(name, tokens):
        return plan_settings(build_settings(compose_config("train", [f"experiment={name}"])), tokens)

    assert plan("ada24_full", 448).update_gib <= 21.5
    assert plan("ada24_lora", 128).update_gib <= 9.0
    assert plan("ada24_lora", 128).work.micro_batch_size == 16


@pytest.mark.parametrize(
    ("gib", "hours", "expected"),
    [(24.0, None, "ada24_full"), (24.0, 8.0, "ada24_lora"), (19.0, 200.0, "ada24_frozen_encoder"), (5.0, None, None)],
)
def test_the_recommended_command_composes_unchanged(gib, hours, expected):
    best = recommend(recipe_rows("large_v3", 448), gib, hours)
    if expected is None:
        assert best is None
        return
    assert best.name == expected
    words = shlex.split(command_of(best, []))
    assert words[:3] == ["accelerate", "launch", "scripts/train.py"]
    verify_overrides("train", words[3:])
    settings = build_settings(compose_config("train", words[3:]))
    assert settings.run.name == expected
    assert [source.path for source in settings.dataset.sources("train")] == ["train.jsonl"]
    given = command_of(best, ["model=large_v3", "dataset=demo"])
    assert given.endswith(f"experiment={expected} dataset=demo")


def test_a_picture_is_drawn(tmp_path):
    rows = recipe_rows("large_v3_turbo", 448)
    draw_plans([(row.name, row.plan) for row in rows], 24.0, tmp_path / "plan.png", title="turbo")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
