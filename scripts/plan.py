"""What fits on a card, and the command for it: predicted from shapes, without weights, hub or GPU.

python scripts/plan.py model=large_v3 gpu_gib=24
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.settings import CONF, SettingsError, build, compose_config, entry_point, to_plain
from scripts.train import settings_from_plain
from train.memory.fitting import nearest_fit, statics_of
from train.memory.pace import estimate_pace
from train.memory.picture import draw_plans
from train.memory.plan import Plan, worst_plan
from train.memory.workload import Workload, workloads_of
from train.model import planned_config
from train.settings import TrainSettings

LITTLE_SPEECH_H = 50.0  # below it LoRA is recommended first, see docs/recipes.md
WIDE = 136  # characters, for a column a part
PARTS = ("weights", "gradients", "optimiser", "autocast copies", "activations", "logits", "half copy", "reserve")
COLUMNS = {name: (name,) for name in PARTS}
NARROW_COLUMNS = {"states": PARTS[:3], "forward": PARTS[3:6], "rest": PARTS[6:]}
DATASET = ("dataset=manifest", "dataset.train=train.jsonl", "dataset.validation=dev.jsonl")


@dataclass(frozen=True)
class PlanSettings:
    """The `plan` group."""

    label_tokens: int
    hours_of_speech: float | None
    epochs: float
    clip_s: float
    audio_s_per_s: float | None
    tflops: float
    mfu: float
    picture: str

    def __post_init__(self) -> None:
        for name in ("label_tokens", "epochs", "clip_s", "tflops", "mfu"):
            if getattr(self, name) <= 0:
                raise ValueError(f"plan.{name}={getattr(self, name)} must be above 0")


@dataclass(frozen=True)
class Row:
    """A training with its plan, and how to start it."""

    name: str
    plan: Plan
    overrides: tuple[str, ...]


def plan_settings(settings: TrainSettings, label_tokens: int) -> Plan:
    """Plan a composed training, at the window that needs most."""
    config = planned_config(settings.model)
    precision = "fp16" if settings.precision.name == "auto" else settings.precision.name
    works = workloads_of(settings, config, precision=precision, label_tokens=label_tokens, device="cuda")
    return worst_plan(works, statics_of(config, settings.finetune))


def recipe_rows(model: str, label_tokens: int) -> list[Row]:
    """Plan every recipe of a model."""
    rows = []
    for path in sorted(CONF.glob("experiment/ada*.yaml")):
        overrides = (f"experiment={path.stem}",)
        settings = _settings(compose_config("train", overrides))
        if settings.model.name == model:
            rows.append(Row(path.stem, plan_settings(settings, label_tokens), overrides))
    return rows


def grid_rows(asked: TrainSettings, label_tokens: int) -> list[Row]:
    """Plan what learns x optimiser x recomputing, with the micro-batch that was asked for."""
    rows = []
    for finetune, optimizer in (
        ("full", "adamw"),
        ("full", "adamw_8bit"),
        ("full", "adafactor"),
        ("frozen_encoder", "adamw"),
        ("lora", "adamw"),
    ):
        for recompute in (False, True):
            overrides = [f"model={asked.model.name}", f"finetune={finetune}", f"optimizer={optimizer}"]
            overrides += ["precision=fp16", f"trainer.micro_batch_size={asked.trainer.micro_batch_size}"]
            overrides += [f"trainer.accumulation_steps={asked.trainer.accumulation_steps}", "trainer.eval_batch_size=4"]
            overrides += ["finetune.base_dtype=fp16"] if finetune == "lora" else []
            overrides += ["trainer.gradient_checkpointing=true"] if recompute else []
            settings = _settings(compose_config("train", overrides))
            name = f"{finetune}, {optimizer}{', recompute' if recompute else ''}"
            rows.append(Row(name, plan_settings(settings, label_tokens), tuple(overrides)))
    return rows


def recommend(rows: Sequence[Row], gib: float, hours_of_speech: float | None) -> Row | None:
    """Return the training to begin with: with little speech LoRA, else as much of the model as fits."""
    order = ["full", "frozen_encoder", "lora"]
    if hours_of_speech is not None and hours_of_speech < LITTLE_SPEECH_H:
        order = ["lora", "frozen_encoder", "full"]
    fitting = [row for row in rows if row.plan.fits(gib) and not row.name.endswith("_bf16")]
    # The largest micro-batch that fits, and of equal ones the one that is named after the larger card.
    fitting.sort(
        key=lambda row: (order.index(row.plan.work.finetune.name), -row.plan.work.micro_batch_size, -_card(row))
    )
    return fitting[0] if fitting else None


def _card(row: Row) -> int:
    found = re.match(r"ada(\d+)_", row.name)
    return int(found[1]) if found else 0


def _settings(config: DictConfig) -> TrainSettings:
    plain = to_plain(config)
    for name in ("recommended", "gpu_gib", "plan"):
        plain.pop(name, None)
    return settings_from_plain(plain)


def render_table(rows: Sequence[Row], gib: float, title: str, *, is_wide: bool = True) -> Table:
    """Lay out one row a training, GiB in each column; a narrow terminal gets sums instead of each part."""
    columns = COLUMNS if is_wide else NARROW_COLUMNS
    table = Table(title=Text(title), box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("training", no_wrap=True)
    table.add_column("clips", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", min_width=max(5, len(name)))
    table.add_column("peak", justify="right", style="bold", min_width=5)
    table.add_column("")
    for row in rows:
        work, parts = row.plan.work, row.plan.parts
        verdict = Text("fits", style="green") if row.plan.fits(gib) else Text("no", style="red")
        clips = f"{work.micro_batch_size} x {work.accumulation_steps}"
        figures = (f"{sum(parts[name] for name in names):.1f}" for names in columns.values())
        table.add_row(row.name, clips, *figures, f"{row.plan.total_gib:.1f}", verdict)
    return table


def command_of(row: Row, given: Sequence[str]) -> str:
    """Return the command of a training, with the data set that was named."""
    dataset = [text for text in given if text.startswith("dataset")]
    parts = [
        "accelerate launch scripts/train.py",
        *map(shlex.quote, row.overrides),
        *map(shlex.quote, dataset or DATASET),
    ]
    return " ".join(parts)


def pace_text(work: Workload, plan: PlanSettings) -> str:
    """Say how many updates and hours a corpus takes, and from what that follows."""
    assert plan.hours_of_speech is not None
    usual = work.changed(num_frames=min(work.num_frames, 1000), label_tokens=min(work.label_tokens, 64))
    pace = estimate_pace(
        usual,
        hours_of_speech=plan.hours_of_speech,
        epochs=plan.epochs,
        clip_s=plan.clip_s,
        flops_per_s=plan.tflops * 1e12 * plan.mfu,
        audio_s_per_s=plan.audio_s_per_s,
    )
    source = (
        "as measured"
        if plan.audio_s_per_s
        else f"an estimate: {plan.mfu:.0%} of {plan.tflops:g} TFLOP/s, windows of 10 s; measure 20 updates and give "
        "plan.audio_s_per_s="
    )
    return (
        f"{plan.hours_of_speech:g} h of speech, {plan.epochs:g} epochs: {pace.updates} updates "
        f"(trainer.max_steps={pace.updates}), {pace.hours:.1f} h at {pace.audio_s_per_s:.0f} s of speech a second "
        f"({source})"
    )


@entry_point("plan")
def main(config: DictConfig) -> int:
    """Plan."""
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    plain = to_plain(config)
    gib = float(plain["gpu_gib"])
    if gib <= 0:
        raise SettingsError(f"gpu_gib={gib} must be above 0")
    plan = build(PlanSettings, plain["plan"], path="plan")
    given = [text for text in sys.argv[1:] if not text.startswith(("gpu_gib", "plan.", "-"))]
    asked = _settings(config)
    if asked.trainer.micro_batch_size == "auto":
        raise SettingsError("plan with a number: trainer.micro_batch_size=8")
    own = Row("as asked", plan_settings(asked, plan.label_tokens), tuple(given))
    recipes = recipe_rows(asked.model.name, plan.label_tokens)
    grid = grid_rows(asked, plan.label_tokens)
    length = f"windows of {own.plan.work.num_frames / 100:g} s, {plan.label_tokens} label tokens"
    title = f"{asked.model.name}, {own.plan.num_parameters:,} parameters, {length}, GiB"
    is_wide = console.width >= WIDE
    console.print(render_table([own, *grid], gib, title, is_wide=is_wide))
    if recipes:
        console.print(render_table(recipes, gib, f"Recipes of {asked.model.name}, GiB", is_wide=is_wide))
    picture = Path(plan.picture)
    draw_plans([(row.name, row.plan) for row in [*grid, *recipes]], gib, picture, title=title)
    console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    best = recommend(recipes or grid, gib, plan.hours_of_speech)
    if best is None:
        choice = nearest_fit(own.plan.work, gib)
        if choice is None:
            console.print(
                Text(f"nothing of model={asked.model.name} fits into {gib:g} GiB; take a smaller model=", style="red")
            )
            return 1
        best = Row("nearest", choice.plan, (*(t for t in given if not t.startswith("dataset")), *choice.overrides))
    console.print(Text.assemble("recommended: ", (best.name, "bold"), f", {best.plan.total_gib:.1f} of {gib:g} GiB"))
    console.print(command_of(best, given), highlight=False, soft_wrap=True, markup=False)
    if plan.hours_of_speech is not None:
        console.print(pace_text(best.plan.work, plan), highlight=False, soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    main()
