"""A picture of a run: loss, learning rate, and the error rate of what would ship, over updates."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infer.score.normalise import headline_metric

INK, ACCENT, SECOND, PALE = "#22303c", "#b5442f", "#2f6f8f", "#9aa5ad"


def draw_curves(metrics: Path, target: Path, *, title: str) -> Path:
    """Draw `metrics.jsonl` as a PNG.

    Args:
        metrics: the file of a run.
        target: the picture.
        title: above it.

    Raises:
        ValueError: if the file holds no training figures.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [(line["step"], line["train/loss"]) for line in lines if line.get("train/loss") is not None]
    if not losses:
        raise ValueError(f"{metrics} holds no train/loss")
    rates = [(line["step"], line["train/lr"]) for line in lines if "train/lr" in line]
    scored = [line for line in lines if "valid/validation/headline" in line]
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*losses, strict=True), color=ACCENT, linewidth=1.4, label="training loss")
    if scored:
        steps = [line["step"] for line in scored]
        left.plot(steps, [line["valid/validation/loss"] for line in scored], "o-", color=SECOND, label="held-out loss")
    left.set(xlabel="update", ylabel="nats a label token", xlim=(0, None), ylim=(0, None), title="Loss")
    left.legend(frameon=False, loc="upper right")
    scale = left.twinx()
    scale.plot(*zip(*rates, strict=True), color=PALE, linewidth=1, linestyle="--")
    scale.set_ylabel("learning rate (dashed)", color=PALE)
    scale.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _draw_rates(right, scored)
    figure.suptitle(title, color=INK)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e9eb")
    scale.spines[["top"]].set_visible(False)
    figure.savefig(target)
    return target


def _draw_rates(axis: Axes, scored: list[dict[str, float]]) -> None:
    axis.set(xlabel="update", ylabel="error rate, %", title="Generated text of the half copy, held out")
    if not scored:
        axis.text(0.5, 0.5, "no validation set", ha="center", transform=axis.transAxes, color=PALE)
        return
    steps = [line["step"] for line in scored]
    axis.plot(steps, [100 * line["valid/validation/headline"] for line in scored], "o-", color=INK, label="mean")
    languages = sorted({key.split("/")[2] for line in scored for key in line if key.count("/") == 3})
    for language in languages:
        metric = headline_metric(language)
        values = [100 * line[f"valid/validation/{language}/{metric}"] for line in scored]
        axis.plot(steps, values, linewidth=1, label=f"{language} ({metric.upper()})")
    axis.set(xlim=(0, None), ylim=(0, None))
    axis.legend(frameon=False, fontsize="small", ncols=2)
