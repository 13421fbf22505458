"""Secrets in the environment: after a whole run, and one that fails, none of them is in anything that was written."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import PROJECT
from benchmarks.toy_run import OVERRIDES, write_corpus

NAMES = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_API_KEY",
    "DB_PASSWORD",
)


def canaries() -> dict[str, str]:
    """Return planted values that look like the real ones; W&B wants 40 letters of hex."""
    return {name: f"{i + 1:02x}c0ffee" * 5 for i, name in enumerate(NAMES)}


def plant_secrets(folder: Path) -> dict[str, Any]:
    """Train with W&B offline, fail once with a traceback, and look for the values in all files and all output."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = write_corpus(folder)
    planted = canaries()
    environment = {
        **os.environ,
        **planted,
        "HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "MEZZAVOCE_TRACEBACK": "1",
        "OMP_NUM_THREADS": "1",
    }
    options = [option for option in OVERRIDES if not option.startswith(("tracker=", "precision"))]
    whole = [*options, f"dataset.train={manifest}", "tracker.mode=offline", "trainer.max_steps=4"]
    runs = {
        "whole": [*whole, f"run.dir={folder / 'whole'}"],
        "fails": [*whole, "optimizer.lr=1e30", "optimizer.max_grad_norm=0", f"run.dir={folder / 'fails'}"],
        "finds no data": [*whole, "dataset.train=/nowhere/train.jsonl", f"run.dir={folder / 'third'}"],
    }
    codes = {}
    for name, overrides in runs.items():
        command = [sys.executable, str(PROJECT / "scripts" / "train.py"), *overrides]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=False)
        codes[name] = done.returncode
        (folder / f"{name}.out").write_bytes(done.stdout + done.stderr)
    written = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "variables": len(planted),
        "exit_codes": codes,
        "files": len(written),
        "bytes": sum(path.stat().st_size for path in written),
        "wandb_files": len(list(folder.rglob("*.wandb"))),
        "occurrences": count_occurrences(written, list(planted.values())),
    }


def count_occurrences(files: list[Path], secrets: list[str]) -> int:
    """Count the secrets in files, as they are and in base64."""
    needles = [form for secret in secrets for form in (secret.encode(), base64.b64encode(secret.encode())[:-4])]
    return sum(path.read_bytes().count(needle) for path in files for needle in needles)
