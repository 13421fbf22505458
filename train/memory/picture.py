"""The picture of a plan: one stacked bar a training, against what the card has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from train.memory.plan import PARTS, Plan

COLOURS = {
    "weights": "#2f5d8a",
    "gradients": "#5b8fbe",
    "optimiser": "#9cc3e0",
    "average": "#c9dced",
    "autocast copies": "#e0b04c",
    "activations": "#d9773c",
    "logits": "#b1482f",
    "half copy": "#7a9e6b",
    "reserve": "#c8c8c8",
}


def draw_plans(named: Sequence[tuple[str, Plan]], gib: float, path: Path, *, title: str) -> None:
    """Draw bars from top to bottom, and the card's limit as a line.

    Args:
        named: a name and its plan, each.
        gib: memory of the card.
        path: PNG to write.
        title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.5, 1.5 + 0.42 * len(named)), dpi=130)
    lefts = [0.0] * len(named)
    places = list(range(len(named)))[::-1]
    for part in PARTS:
        widths = [plan.parts[part] for _, plan in named]
        if max(widths) >= 0.01:
            axes.barh(places, widths, left=lefts, color=COLOURS[part], label=part, height=0.68)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for place, (_, plan) in zip(places, named, strict=True):
        fits = plan.fits(gib)
        axes.text(
            plan.total_gib + 0.2,
            place,
            f"{plan.total_gib:.1f}" + ("" if fits else "  does not fit"),
            va="center",
            fontsize=9,
            color="#222222" if fits else "#a02020",
        )
    axes.axvline(gib, color="#a02020", linewidth=1.4)
    axes.text(gib + 0.4, len(named) - 0.42, f"{gib:g} GiB", color="#a02020", fontsize=9, ha="left", va="bottom")
    axes.set_yticks(places, [name for name, _ in named], fontsize=9)
    axes.set_xlim(0, 1.16 * max(gib, *(plan.total_gib for _, plan in named)))
    axes.set_xlabel("GiB at the peak, predicted from shapes")
    axes.set_title(title, fontsize=11, loc="left", pad=16)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.09 if len(named) > 6 else 0.15, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
