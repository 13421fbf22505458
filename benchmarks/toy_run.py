"""A whole training run of half a second, in a process that is forked from a warm parent: made to be killed.

Ten made clips, dropout, SpecAugment, accumulation, moving average, real FP16 autocast whose first updates overflow.
Everything goes through `train.run.run_training`; only the drawing of curves is left out, and the share of weights that
may flush to zero in FP16 is raised, of which a model of this size has too few to count.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft  # noqa: F401  # a child would import it anew, for longer than it runs
import soundfile
import torch

import infer.half
import train.run
from scripts.settings import compose_config, to_plain
from scripts.train import settings_from_plain
from train.checkpoint import find_checkpoint, list_checkpoints
from train.loop import Loop
from train.signals import EXIT_PROCESSES, EXIT_STORAGE, PeerError, StorageError

NUM_UPDATES = 14
INTERVAL = 3
OVERRIDES = [
    "model=scratch",
    "model.geometry.d_model=16",
    "model.geometry.encoder_layers=1",
    "model.geometry.decoder_layers=1",
    "model.geometry.attention_heads=2",
    "model.geometry.ffn_dim=32",
    "model.dropout=0.2",
    "dataset=manifest",
    "tracker=none",
    "window.edges_s=[1,3,30]",
    "precision=fp16",
    "precision.init_scale=1048576",
    "precision.growth_interval=4",
    "augment.num_frequency_masks=1",
    "augment.max_frequency_share=0.2",
    "augment.num_time_masks=1",
    "augment.max_time_share=0.2",
    "augment.gain_db=3",
    "trainer.micro_batch_size=2",
    "trainer.accumulation_steps=2",
    "trainer.ema_decay=0.9",
    f"trainer.max_steps={NUM_UPDATES}",
    "trainer.eval_every_steps=0",
    f"trainer.save_every_steps={INTERVAL}",
    "trainer.log_every_steps=1",
    "trainer.num_workers=0",
    "schedule.warmup_steps=3",
    "decoding.max_new_tokens=4",
]
TEXTS = ("one two three", "one two", "three", "two three one", "two")
CLOCKED = ("_per_s", "_s", "_share", "_gib", "rtfx")
"""Ends of the log keys that the clock decides, or the memory of the process."""


@dataclass(frozen=True)
class Ending:
    """How a child ended."""

    code: int
    """As a shell would say it: 128 and the signal for one that was killed."""
    elapsed_s: float


def write_corpus(folder: Path) -> Path:
    """Write ten clips, 0.3 to 2.1 s, and a manifest."""
    lines = []
    for i in range(10):
        duration_s = 0.3 + 0.2 * i
        t = np.arange(round(duration_s * 16_000)) / 16_000
        noise = np.random.default_rng(i).normal(0, 0.01, len(t))
        soundfile.write(folder / f"{i}.wav", 0.3 * np.sin(2 * np.pi * (200 + 40 * i) * t) + noise, 16_000)
        lines.append({"id": f"c{i}", "audio": f"{i}.wav", "text": TEXTS[i % len(TEXTS)], "language": "en"})
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def fork_child(output: Path, act: Callable[[], int]) -> int:
    """Do something in a child that writes into a file and ends with what `act` returns; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with output.open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        # Under pytest these are objects of its own, which would not follow.
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        code = act()
    except SystemExit as e:
        code = int(e.code or 0)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class ToyRuns:
    """Start toy runs in children, and judge what they leave."""

    def __init__(self, folder: Path, *overrides: str, validation: bool = False) -> None:
        """Write the corpus and compose the settings, once.

        Args:
            folder: everything is written below it.
            overrides: beside those of every toy run.
            validation: validate on three of the clips.
        """
        torch.set_num_threads(1)  # a child of a parent with busy threads would wait for them for ever
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        manifest = write_corpus(folder)
        held_out = folder / "validation.jsonl"
        held_out.write_text("".join(manifest.read_text().splitlines(keepends=True)[:3]))
        data = [f"dataset.train={manifest}", *([f"dataset.validation={held_out}"] if validation else [])]
        self._plain = to_plain(compose_config("train", [*OVERRIDES, *data, *overrides]))
        self._plain.pop("recommended", None)

    def settings(self, name: str, **changes: Any) -> Any:
        """Return the settings of a run in the folder of that name, with keys of `trainer` or `run` replaced."""
        plain = json.loads(json.dumps(self._plain))
        plain["run"]["dir"] = str(self.folder / name)
        for key, value in changes.items():
            plain["run" if key in plain["run"] else "trainer"][key] = value
        return settings_from_plain(plain)

    def run(self, name: str, *, prepare: Callable[[], None] | None = None, **trainer: Any) -> int:
        """Run in this process; return the exit code that the script would give."""
        if prepare is not None:
            prepare()
        try:
            return train.run.run_training(self.settings(name, **trainer)).exit_code
        except StorageError as e:
            print(e, file=sys.stderr)
            return EXIT_STORAGE
        except PeerError as e:
            print(e, file=sys.stderr)
            return EXIT_PROCESSES

    def start(
        self,
        name: str,
        *,
        prepare: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
        **trainer: Any,
    ) -> int:
        """Start a run in a child; return its process id."""
        run_dir = self.folder / name
        run_dir.parent.mkdir(parents=True, exist_ok=True)

        def act() -> int:
            os.environ.update(environment or {})
            adapt(run_dir)
            return self.run(name, prepare=prepare, **trainer)

        return fork_child(self.folder / f"{name}.out", act)

    def finish(self, name: str) -> Ending:
        """Run to the end, going on where a run stopped."""
        return wait_for(self.start(name))

    def output(self, name: str) -> str:
        """Return what the children of a run have said."""
        return (self.folder / f"{name}.out").read_text()

    def fingerprint(self, name: str) -> dict[str, Any]:
        """Return all that must be equal between two runs: weights, states, logs, sample ids."""
        run_dir = self.folder / name
        found = find_checkpoint(run_dir / "checkpoints")
        assert found is not None
        path, checkpoint = found
        state = checkpoint.state
        return {
            "weights": {file.name: sha256(file) for file in sorted(path.glob("*.safetensors"))},
            "state": {key: state[key] for key in ("progress", "guard", "quarantine", "scaler", "random", "inexact")},
            "log": log_lines(run_dir),
            "ids": sample_ids(run_dir),
            "export": sha256(run_dir / "export" / "model.safetensors"),
        }

    def differences(self, name: str, whole: dict[str, Any]) -> list[str]:
        """Return the parts of a run's fingerprint that are not those of another."""
        found = self.fingerprint(name)
        return [part for part in whole if found[part] != whole[part]]


def adapt(run_dir: Path) -> None:
    """Prepare a child: no curves, and the clips of every update written down."""
    infer.half.MAX_FLUSHED_SHARE = 1e-2
    train.run.draw_curves = lambda *_args, **_options: None  # type: ignore[assignment]
    real = Loop._update

    def update(loop: Loop, updates: Iterator[Any]) -> Any:
        result, batches = real(loop, updates)
        clips = [list(batch.clips) for batch in batches.micro_batches]
        if loop.parts.accelerator.is_main_process:
            with (run_dir / "ids.jsonl").open("a") as file:
                file.write(json.dumps([loop.progress.attempted, clips]) + "\n")
        return result, batches

    Loop._update = update  # type: ignore[method-assign]


def wait_for(pid: int, *, started: float | None = None, timeout_s: float = 120.0) -> Ending:
    """Wait for a child; one that does not end is killed and counts as 137."""
    begun = time.monotonic() if started is None else started
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return Ending(code if code >= 0 else 128 - code, time.monotonic() - begun)
        if time.monotonic() - begun > timeout_s:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def log_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Return the log without what the clock measures."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(CLOCKED)} for line in lines]


def sample_ids(run_dir: Path) -> dict[int, Any]:
    """Return the clips of each update; one that was done twice must have had the same ones.

    Raises:
        ValueError: if an update had other clips when it came again.
    """
    found: dict[int, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (run_dir / "ids.jsonl").read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the half line of a run that was killed
                step, clips = json.loads(line)
                if found.setdefault(step, clips) != clips:
                    raise ValueError(f"update {step} had other clips when it came again")
    return found


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    paths = list_checkpoints(run_dir / "checkpoints")
    return int(paths[-1].name.removeprefix("step-")) if paths else 0


def spread(cases: Sequence[Any], judge: Callable[[Any], dict[str, Any]], *, workers: int, folder: Path) -> list[Any]:
    """Judge cases in several forked processes; return the results in the order of the cases."""
    pids = []
    for worker in range(workers):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                random.seed(worker)
                mine = {i: judge(case) for i, case in enumerate(cases) if i % workers == worker}
                (folder / f"part-{worker}.json").write_text(json.dumps(mine))
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    for pid in pids:
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
            raise RuntimeError("a worker failed; its traceback stands above")
    merged: dict[int, Any] = {}
    for worker in range(workers):
        part = folder / f"part-{worker}.json"
        merged.update({int(key): value for key, value in json.loads(part.read_text()).items()})
        part.unlink()
    return [merged[i] for i in range(len(cases))]
