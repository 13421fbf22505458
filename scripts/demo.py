"""The built-in demo: score the base model, fine-tune it on new words, export FP16, score what ships.

    make demo        or: python scripts/demo.py [overrides of the training]

Six minutes of synthetic clinic speech a language teach five languages words that the base model has never heard;
the old domain is scored, too, since a model that forgets is no better.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

from infer.score.report import render_before_after
from scripts.evaluate import Evaluation, build_settings, evaluate_artefact
from scripts.export import ExportSettings, FinishedRun, TargetSettings, export
from scripts.settings import PROJECT, compose_config, quiet_libraries, run_guarded

CORPUS = PROJECT / "data" / "demo" / "corpus"
BASE = PROJECT / "data" / "demo" / "base"
DOMAINS = {"clinic": "new domain (clinic)", "home": "old domain (home)"}


@dataclass
class Clock:
    """Seconds of each stage."""

    stages: dict[str, float]

    def run(self, name: str, action: Any) -> Any:
        """Run a stage and remember how long it took."""
        start = time.perf_counter()
        result = action()
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - start
        return result


def score(artefact: Path, domain: str, report_dir: Path, console: Console) -> Evaluation:
    """Score the held-out sentences of one domain."""
    config = compose_config(
        "evaluate",
        [
            f"artefact={artefact}",
            f"dataset.test={CORPUS / domain / 'test.jsonl'}",
            f"report.dir={report_dir}",
        ],
    )
    return evaluate_artefact(build_settings(config), console=console)


def fine_tune(run_dir: Path, overrides: list[str]) -> None:
    """Launch the training as a user would.

    Raises:
        RuntimeError: if it fails.
    """
    command = [
        str(Path(sys.executable).with_name("accelerate")),
        "launch",
        "--num_processes=1",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        str(PROJECT / "scripts" / "train.py"),
        f"run.dir={run_dir}",
        "run.overwrite=true",
        *overrides,
    ]
    if subprocess.run(command, check=False).returncode != 0:
        raise RuntimeError("the training of the demo failed; its message stands above")


def identical_share(first: Evaluation, second: Evaluation) -> float:
    """Return the share of utterances with the same text."""
    texts = {prediction.id: prediction.hypothesis for prediction in first.predictions}
    return sum(texts[p.id] == p.hypothesis for p in second.predictions) / len(second.predictions)


def run_demo(overrides: list[str], *, console: Console) -> dict[str, Any]:
    """Run all stages; return the figures, which also stand in `demo.json` of the run."""
    run_dir = Path("runs/demo").absolute()
    clock = Clock({})
    console.rule("1  the base model, before")
    before = {
        d: clock.run("evaluate before", lambda d=d: score(BASE, d, PROJECT / f"runs/demo-before/{d}", console))
        for d in DOMAINS
    }
    console.rule("2  fine-tune")
    clock.run("fine-tune and export", lambda: fine_tune(run_dir, overrides))
    console.rule("3  the FP16 artefact, after")
    after = {
        d: clock.run("evaluate after", lambda d=d: score(run_dir / "export", d, run_dir / "report" / d, console))
        for d in DOMAINS
    }
    console.rule("4  the FP32 masters, to compare with")
    master_dir = run_dir / "export-fp32"
    in_fp32 = ExportSettings(FinishedRun(str(run_dir)), TargetSettings(str(master_dir), "fp32"))
    clock.run("compare with FP32", lambda: export(in_fp32, console=console))
    master = {
        d: clock.run("compare with FP32", lambda d=d: score(master_dir, d, run_dir / "report-fp32" / d, console))
        for d in DOMAINS
    }
    figures = collect(before, after, master, clock.stages)
    (run_dir / "demo.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.rule("result")
    for domain, title in DOMAINS.items():
        console.print(
            render_before_after(before[domain].score, after[domain].score, title=f"{title}, held-out sentences")
        )
    console.print(render_summary(figures, run_dir))
    return figures


def collect(
    before: dict[str, Evaluation],
    after: dict[str, Evaluation],
    master: dict[str, Evaluation],
    stages: dict[str, float],
) -> dict[str, Any]:
    """Gather the figures of a demo."""
    same = [identical_share(master[d], after[d]) for d in DOMAINS]
    counts = [len(after[d].predictions) for d in DOMAINS]
    return {
        "domains": {
            domain: {
                "before": before[domain].score.overall["headline"],
                "after": after[domain].score.overall["headline"],
                "after_fp32": master[domain].score.overall["headline"],
                "language_accuracy": after[domain].score.overall["language_accuracy"],
                "rtfx": after[domain].score.overall["rtfx"],
                "languages": {
                    code: {
                        "metric": rates["headline_metric"],
                        "before": before[domain].score.languages[code][rates["headline_metric"]],
                        "after": rates[rates["headline_metric"]],
                        "after_fp32": master[domain].score.languages[code][rates["headline_metric"]],
                    }
                    for code, rates in after[domain].score.languages.items()
                },
            }
            for domain in DOMAINS
        },
        "identical_text_fp16_fp32": sum(s * n for s, n in zip(same, counts, strict=True)) / sum(counts),
        "seconds": {name: round(seconds, 1) for name, seconds in stages.items()},
        "seconds_total": round(sum(stages.values()), 1),
    }


def render_summary(figures: dict[str, Any], run_dir: Path) -> Table:
    """Draw the last table: FP16 against FP32, times, files."""
    table = Table(title="what ships, and what it cost", show_header=False)
    clinic, home = figures["domains"]["clinic"], figures["domains"]["home"]
    table.add_row("error rate on the new domain, before / after", f"{clinic['before']:.1%} / {clinic['after']:.1%}")
    table.add_row("error rate on the old domain, before / after", f"{home['before']:.1%} / {home['after']:.1%}")
    table.add_row("new domain, FP32 masters / FP16 artefact", f"{clinic['after_fp32']:.2%} / {clinic['after']:.2%}")
    table.add_row("utterances with identical text, FP32 / FP16", f"{figures['identical_text_fp16_fp32']:.1%}")
    table.add_row("language recognised, new domain", f"{clinic['language_accuracy']:.1%}")
    for name, seconds in figures["seconds"].items():
        table.add_row(f"time: {name}", f"{seconds:.0f} s")
    table.add_row("time: all", f"{figures['seconds_total']:.0f} s")
    shown = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir
    table.add_row("the artefact (FP16)", f"{shown}/export")
    table.add_row("training curves", f"{shown}/curves.png")
    table.add_row("every prediction", f"{shown}/report/clinic/predictions.jsonl")
    table.add_row("these figures", f"{shown}/demo.json")
    return table


def main() -> None:
    """Run the demo."""
    quiet_libraries()
    console = Console(width=None if sys.stdout.isatty() else 100)
    sys.exit(run_guarded(lambda: 0 if run_demo(sys.argv[1:], console=console) else 1))


if __name__ == "__main__":
    main()
