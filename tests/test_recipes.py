"""Every recipe of `conf/experiment` composes, says what it is for, and fits the card that it is named after."""

import re

import pytest

from scripts.plan import plan_settings
from scripts.settings import CONF, compose_config
from scripts.train import build_settings

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
