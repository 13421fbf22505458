"""Many runs of one command: a process and a folder each, and one table of what came of them.

python scripts/train.py -m optimizer.lr=1e-5,3e-5 trainer.seed=0,1 model=small dataset=manifest dataset.train=...

A process each, because Accelerate and torch keep one precision, one set of ranks and one memory for the life of a
process. A run that fails is named in the table, and the rest go on. The same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.redaction import redact
from scripts.settings import PROJECT, SettingsError, compose_config

STOPPED = (124, 130, 138, 143)
"""Exit codes of a run that goes on with the same command."""
JOBS, TABLE = "jobs", "sweep"
MAX_LABEL = 120  # letters of a folder's name


def is_sweep(arguments: Sequence[str]) -> bool:
    """Say whether a command line asks for several runs."""
    return any(argument in ("-m", "--multirun") for argument in arguments)


@contextlib.contextmanager
def sweeping(config_name: str) -> Iterator[None]:
    """Around Hydra: name the folder of a sweep before it, show the table behind it; nothing for a single run.

    Raises:
        SettingsError: if several processes would start the same sweep.
    """
    if not is_sweep(sys.argv[1:]):
        yield
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(
            "a sweep starts its own processes: type python scripts/train.py -m ..., without a launcher; for several "
            "cards a run, a W&B sweep whose command has the launcher in it"
        )
    texts = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(texts)
    single = [o for o in overrides if not o.is_sweep_override()]
    excluded = ",".join(sorted({f"'{o.key_or_group}'" for o in single}))
    sys.argv.append(f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]")
    if not any(o.key_or_group == "hydra.sweep.dir" for o in overrides):
        own = [o.input_line or "" for o in single if not o.key_or_group.startswith(("hydra.", "hydra/"))]
        base = Path(compose_config(config_name, own).run.dir)
        sys.argv.append(f'hydra.sweep.dir="{base}-sweep"')
    given = next(text for text in reversed(sys.argv) if text.startswith("hydra.sweep.dir="))
    folder = Path(given.partition("=")[2].strip("\"'"))
    try:
        yield
    finally:
        if folder.is_dir():
            write_table(folder)


def is_job() -> bool:
    """Say whether this is one run of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(config: DictConfig, train: Any) -> int:
    """Do one run of a sweep, in a process of its own; return its exit code.

    Args:
        config: of the run.
        train: trains in this process; taken where the launcher has made one for the job, as on SLURM.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir)
    label = hydra.job.override_dirname or "all-defaults"
    name = folder_name(label)
    own = [f'run.dir="{folder / name}"', f'run.name="{name}"']
    started = time.monotonic()
    if "BasicLauncher" in hydra.launcher._target_:
        if _Stopped.by is not None:
            code, reason = 128 + _Stopped.by, "not started"
        else:
            print(f"\nsweep: {label}", flush=True)
            code, reason = _run_child([*hydra.overrides.task, *own])
    else:
        with open_dict(config):
            config.run.dir, config.run.name = str(folder / name), name
        code, reason = train(config), ""
    record = {
        "label": label,
        "overrides": list(hydra.overrides.task),
        "run_dir": str(folder / name),
        "exit_code": code,
        "reason": reason,
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / JOBS).mkdir(parents=True, exist_ok=True)
    (folder / JOBS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return code


def folder_name(label: str) -> str:
    """Return a name for the folder of a run that no other run of the sweep has, and that can be typed as it is."""
    clean = re.sub(r"[^\w.-]+", "_", label.replace("=", "-"))
    if re.fullmatch(r"[\w.=,-]+", label) and len(label) <= MAX_LABEL:
        return clean
    return f"{clean[: MAX_LABEL - 9]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


class _Stopped:
    """The signal that ended the sweep."""

    by: int | None = None


def _run_child(overrides: Sequence[str]) -> tuple[int, str]:
    """Train in a new process; return its exit code and the last error that it said."""
    command = [sys.executable, str(PROJECT / "scripts" / "train.py"), *overrides]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        _Stopped.by = number
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    reason = ""
    try:
        assert child.stderr is not None
        for line in child.stderr:
            sys.stderr.write(line)
            if line.startswith("error: "):
                reason = line.removeprefix("error: ").strip()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 128 - code), redact(reason)


def gather(folder: Path) -> list[dict[str, Any]]:
    """Return one row a run of a sweep's folder, the best first, those without a score last."""
    rows = []
    for path in sorted((folder / JOBS).glob("*.json")):
        job = json.loads(path.read_text())
        code = job["exit_code"]
        state = "done" if code == 0 else "stopped" if code in STOPPED else "failed"
        row = {**job, "state": state, "error_rate": None, "step": None, "loss": None}
        record = Path(job["run_dir"]) / "export" / "mezzavoce.json"
        if code == 0 and record.is_file():
            facts = json.loads(record.read_text())
            row["error_rate"], row["step"] = facts["validation"]["headline"], facts["trained_steps"]
        metrics = Path(job["run_dir"]) / "metrics.jsonl"
        if metrics.is_file():
            losses = [json.loads(line).get("train/loss") for line in metrics.read_text().splitlines()]
            row["loss"] = next((loss for loss in reversed(losses) if loss is not None), None)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["error_rate"] is None, row["error_rate"] or 0.0, row["label"]))


def write_table(folder: Path, console: Console | None = None) -> list[dict[str, Any]]:
    """Write `sweep.json` and `sweep.md` into a sweep's folder, and print the table."""
    rows = gather(folder)
    if not rows:
        return rows
    heads = ("run", "state", "error rate, %", "step", "loss", "seconds")
    cells = [
        (
            row["label"],
            row["state"] if row["state"] != "failed" else f"failed ({row['exit_code']}): {row['reason'][:80]}",
            "" if row["error_rate"] is None else f"{100 * row['error_rate']:.2f}",
            "" if row["step"] is None else str(row["step"]),
            "" if row["loss"] is None else f"{row['loss']:.3f}",
            f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    (folder / f"{TABLE}.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
    (folder / f"{TABLE}.md").write_text("\n".join(lines) + "\n")
    table = Table(box=SIMPLE_HEAD, title=f"{folder}: {len(rows)} runs", title_justify="left", pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head in ("run", "state") else "right", overflow="fold")
    for line in cells:
        table.add_row(*map(Text, line))
    console = console or Console()
    console.print(table)
    console.print(f"tables: {folder / TABLE}.json, {folder / TABLE}.md", highlight=False, soft_wrap=True)
    return rows
