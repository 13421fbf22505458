"""What more cards bring: memory, communication and hours for 10 to 100,000 hours of speech, reckoned from shapes.

    python -m benchmarks.scale_curve            figures, table and picture; no GPU, no weights

Nothing here is measured: the formulas stand in docs/scale.md, and every assumption is a field of `Card`.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result
from scripts.settings import compose_config, to_plain
from scripts.train import settings_from_plain
from train.memory.fitting import statics_of
from train.memory.pace import clip_flops
from train.memory.plan import GIB, plan_memory
from train.memory.workload import Workload, workloads_of
from train.model import planned_config

CARDS = (1, 2, 4, 8, 16, 32, 64)
HOURS = (10.0, 1_000.0, 100_000.0)
EPOCHS = {10.0: 10.0, 1_000.0: 3.0, 100_000.0: 1.0}
CLIP_S = 10.0
RECIPES = {
    "LoRA, FP16 base, whole on each card": ("none", ("experiment=ada24_lora",)),
    "full, AdamW, ZeRO-2": ("zero2", ("experiment=ada24_full", "optimizer=adamw")),
    "full, AdamW, ZeRO-3": ("zero3", ("experiment=ada24_full", "optimizer=adamw")),
}
FP32 = 4


@dataclass(frozen=True)
class Card:
    """What is assumed of a card and its wires."""

    name: str = "24 GB card, 80 TFLOP/s in half precision"
    tflops: float = 80.0
    mfu: float = 0.4
    """Share of it that training reaches."""
    link_gb_per_s: float = 20.0
    """Between cards of a machine, one way: PCIe 4.0 x16."""
    network_gb_per_s: float = 12.5
    """Between machines, each: 100 Gbit/s."""
    cards_a_machine: int = 8
    overlap: float = 0.5
    """Share of the communication that hides behind the backward."""


def exchanged_bytes(work: Workload, shard: str, num_cards: int) -> float:
    """Return what each card sends in one update.

    A ring all-reduce of `G` bytes sends `2 G (n-1)/n`; a reduce-scatter or an all-gather half of that. Whole weights:
    one all-reduce of the gradient an update. Shards gather the weights once (ZeRO-2) or twice (ZeRO-3, forward and
    backward) in every forward, and scatter the gradient once in each.
    """
    statics = statics_of(work.config, work.finetune)
    ring = (num_cards - 1) / num_cards
    gradients = FP32 * statics.num_trainable
    if shard == "none":
        return 2 * gradients * ring
    gathers = 2 if shard == "zero3" else 1
    return work.accumulation_steps * (gathers * FP32 * statics.num_parameters + gradients) * ring


def reckon(shard: str, overrides: tuple[str, ...], num_cards: int, card: Card) -> dict[str, Any]:
    """Return memory, communication and speed of a recipe on some cards."""
    plain = to_plain(compose_config("train", [*overrides, "dataset=manifest", "tracker=none"]))
    plain.pop("recommended")
    settings = settings_from_plain(plain)
    config = planned_config(settings.model)
    kind = shard if num_cards > 1 else "none"
    works = workloads_of(
        settings, config, precision="fp16", label_tokens=448, device="cuda", num_processes=num_cards, shard=kind
    )
    largest = max(works, key=lambda work: work.num_frames)
    plan = plan_memory(largest, statics_of(config, settings.finetune))
    usual = largest.changed(num_frames=round(100 * CLIP_S), label_tokens=64)
    clips = usual.micro_batch_size * usual.accumulation_steps
    compute_s = clips * clip_flops(usual) / (card.tflops * 1e12 * card.mfu)
    sent = exchanged_bytes(usual, kind, num_cards) if num_cards > 1 else 0.0
    rate = card.link_gb_per_s
    if num_cards > card.cards_a_machine:  # the ring is as fast as its slowest link
        rate = min(rate, card.network_gb_per_s)
    exchange_s = sent / (rate * 1e9)
    update_s = max(compute_s, exchange_s) + (1 - card.overlap) * min(compute_s, exchange_s)
    speed = num_cards * clips * CLIP_S / update_s
    return {
        "cards": num_cards,
        "peak_gib": plan.total_gib,
        "fits_24_gib": plan.fits(24.0),
        "sent_gib_an_update": sent / GIB,
        "compute_s": compute_s,
        "exchange_s": exchange_s,
        "update_s": update_s,
        "audio_s_per_s": speed,
        "efficiency": compute_s / update_s,
        "hours": {f"{h:g}": 3600 * h * EPOCHS[h] / speed / 3600 for h in HOURS},
        "updates": {f"{h:g}": math.ceil(3600 * h * EPOCHS[h] / (CLIP_S * clips * num_cards)) for h in HOURS},
    }


def markdown(figures: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of the page."""
    lines = [
        "| recipe | cards | peak, GiB | 24 GB | sent an update, GiB | efficiency | "
        "hours: 10 h x 10 | 1,000 h x 3 | 100,000 h x 1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in figures.items():
        for row in rows:
            hours = " | ".join(
                f"{value:,.{2 if value < 1 else 1 if value < 100 else 0}f}" for value in row["hours"].values()
            )
            lines.append(
                f"| {name} | {row['cards']} | {row['peak_gib']:.1f} | {'fits' if row['fits_24_gib'] else 'no'} | "
                f"{row['sent_gib_an_update']:.2f} | {row['efficiency']:.0%} | {hours} |"
            )
    return "\n".join(lines)


def draw(figures: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw memory and hours over the number of cards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name, rows in figures.items():
        cards = [row["cards"] for row in rows]
        left.plot(cards, [row["peak_gib"] for row in rows], marker="o", label=name)
        right.plot(cards, [row["hours"]["1000"] for row in rows], marker="o", label=name)
    left.axhline(24, color="black", linewidth=0.8, linestyle="--")
    left.text(8, 24.5, "a card of 24 GiB", fontsize=8)
    left.set(title="planned peak on each card, GiB", ylim=(0, None))
    right.set(title="hours for 1,000 h of speech, three times", yscale="log")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(CARDS, [str(n) for n in CARDS])
        axis.set_xlabel("cards")
        axis.grid(visible=True, alpha=0.3)
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Reckon, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=Path("docs/scale.png"))
    arguments = parser.parse_args()
    card = Card()
    figures = {name: [reckon(shard, overrides, n, card) for n in CARDS] for name, (shard, overrides) in RECIPES.items()}
    print(markdown(figures))
    draw(figures, arguments.picture)
    write_result("scale_curve", {"card": asdict(card), "clip_s": CLIP_S, "measured": False, "recipes": figures})


if __name__ == "__main__":
    main()
