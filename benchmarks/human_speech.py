"""Real human speech from random weights: spoken digits, trained and scored by the README's own commands.

    python -m benchmarks.human_speech fsdd_en        the headline: the recipe of model=scratch
    python -m benchmarks.human_speech fsdd_en --precisions fp32 bf16 fp16 --seeds 0 1 2 --overrides trainer.max_steps=400

The folder holds `train.jsonl` and `test.jsonl` of the Free Spoken Digit Dataset. The second form compares precisions:
the same updates, the same seeds, each run in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import PROJECT, write_result


def train_and_score(corpus: Path, run_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """Train one model and score its artefact on the test split; return rates, seconds and speed."""
    train = [
        sys.executable,
        str(PROJECT / "scripts/train.py"),
        "model=scratch",
        "dataset=manifest",
        f"dataset.train={corpus / 'train.jsonl'}",
        "tracker=none",
        f"run.dir={run_dir}",
        "run.overwrite=true",
        *overrides,
    ]
    start = time.perf_counter()
    subprocess.run(train, check=True)
    seconds = time.perf_counter() - start
    report_dir = run_dir / "report"
    evaluate = [
        sys.executable,
        str(PROJECT / "scripts/evaluate.py"),
        f"artefact={run_dir / 'export'}",
        "dataset=manifest",
        f"dataset.test={corpus / 'test.jsonl'}",
        f"report.dir={report_dir}",
    ]
    subprocess.run(evaluate, check=True)
    report = json.loads((report_dir / "report.json").read_text())
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(metrics) if "train/loss" in line)
    return {
        "wer": report["overall"]["wer"],
        "utterances": report["overall"]["utterances"],
        "updates": last["step"],
        "final_loss": last["train/loss"],
        "skipped_updates": last["train/skipped_steps"],
        "seconds_with_start": round(seconds, 1),
        "stored": report["artefact"]["stored"],
        "compute": report["artefact"]["compute"],
    }


def main() -> None:
    """Measure and write `results/human_speech.json` or `results/precision.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--precisions", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--overrides", nargs="+", default=[], help="of the training, such as trainer.max_steps=300")
    arguments = parser.parse_args()
    runs = PROJECT / "runs" / "human_speech"
    if not arguments.precisions:
        figures = train_and_score(arguments.corpus, runs / "headline", arguments.overrides)
        print(figures)
        write_result("human_speech", {"overrides": arguments.overrides, **figures})
        return
    table: dict[str, Any] = {}
    for precision in arguments.precisions:
        results = [
            train_and_score(
                arguments.corpus,
                runs / f"{precision}-{seed}",
                [f"precision={precision}", f"trainer.seed={seed}", *arguments.overrides],
            )
            for seed in arguments.seeds
        ]
        rates = [result["wer"] for result in results]
        table[precision] = {"mean_wer": statistics.mean(rates), "wer": rates, "runs": results}
        print(precision, table[precision]["mean_wer"], rates)
        write_result("precision", {"seeds": arguments.seeds, "overrides": arguments.overrides, "precisions": table})


if __name__ == "__main__":
    main()
