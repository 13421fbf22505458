"""Where the figures go: `metrics.jsonl` always, Weights & Biases where asked."""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data.redaction import names_a_secret
from infer.score.evaluation import Prediction

logger = logging.getLogger(__name__)

MODES = ("auto", "online", "offline")
NUM_SAMPLES = 32  # rows in the table of predictions


@dataclass(frozen=True)
class TrackerSettings:
    """The `tracker` group."""

    name: str = "wandb"
    """`wandb` or `none`; `metrics.jsonl` is always written."""
    mode: str = "auto"
    """`auto`: online if logged in, else offline, to be sent later with `wandb sync`."""
    project: str = "mezzavoce"
    log_audio: bool = False
    """Put the clips into the table of predictions; they leave this machine when online."""

    def __post_init__(self) -> None:
        if self.name not in ("wandb", "none"):
            raise ValueError(f"tracker={self.name} must be wandb or none")
        if self.mode not in MODES:
            raise ValueError(f"tracker.mode={self.mode} must be one of {', '.join(MODES)}")


class Tracker(Protocol):
    """A place where figures are logged by step."""

    run_id: str | None

    def log(self, figures: Mapping[str, float | None], *, step: int) -> None:
        """Log figures of a step."""

    def log_predictions(self, name: str, predictions: Sequence[Prediction], *, step: int) -> None:
        """Log a sample of predictions."""

    def close(self) -> None:
        """Write what is pending."""


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, `step` first."""

    run_id: str | None = None

    def __init__(self, path: Path, *, last_step: int | None = None) -> None:
        """Open the file; lines after `last_step`, left by a run that stopped between checkpoints, are taken out."""
        self.last_seen = last_logged_step(path)
        """The last step of the file before lines were taken out; -1 without one."""
        if path.exists() and last_step is not None:
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= last_step]
            path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, figures: Mapping[str, float | None], *, step: int) -> None:
        """Append one line; a value that is not finite is written as null, never hidden."""
        line = {"step": step, **{key: _finite(value) for key, value in figures.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def log_predictions(self, name: str, predictions: Sequence[Prediction], *, step: int) -> None:
        """Predictions are not figures; they stand in the report."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def last_logged_step(path: Path) -> int:
    """Return the last step that a metrics file tells of, -1 without one."""
    steps = [_step_of(line) for line in path.read_text().splitlines()] if path.exists() else []
    return int(max((step for step in steps if math.isfinite(step)), default=-1))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # the half line of a run that was killed


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class WandbTracker:
    """A Weights & Biases run that goes on under its own id after a resume."""

    def __init__(
        self,
        settings: TrackerSettings,
        *,
        run_dir: Path,
        name: str,
        config: Mapping[str, Any],
        run_id: str | None,
        audio: Mapping[str, Path],
        last_sent: int = -1,
    ) -> None:
        """Start or continue the run.

        Args:
            settings: project and mode.
            run_dir: its files go below it.
            name: shown name.
            config: of the run, without secrets.
            run_id: of the run to continue.
            audio: file of each prediction id, for the table; empty keeps audio here.
            last_sent: the last step that the run has; what comes again after a resume is not sent twice.
        """
        import wandb

        mode = settings.mode if settings.mode != "auto" else ("online" if is_logged_in() else "offline")
        run = wandb.init(
            project=settings.project,
            name=name,
            id=run_id,
            dir=str(run_dir),
            config=without_secrets(config),
            mode="online" if mode == "online" else "offline",
            resume="allow",
            settings=wandb.Settings(silent=True, disable_git=True, x_disable_meta=True, disable_code=True),
        )
        self._run = run
        self._table = wandb.Table
        self._audio_type = wandb.Audio
        self._audio = audio
        self._last_sent = last_sent
        self.run_id: str | None = run.id
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        logger.info(
            "W&B is %s (%s)", mode, run.url if mode == "online" else f"send it later: wandb sync {Path(run.dir).parent}"
        )

    def log(self, figures: Mapping[str, float | None], *, step: int) -> None:
        """Log figures under their step."""
        if step <= self._last_sent:
            return
        self._run.log({**{key: value for key, value in figures.items() if value is not None}, "step": step})

    def log_predictions(self, name: str, predictions: Sequence[Prediction], *, step: int) -> None:
        """Log a table of the first predictions; always the same clips, so that steps can be compared."""
        if step <= self._last_sent:
            return
        columns = ["id", "language", "detected", "reference", "hypothesis"]
        table = self._table(columns=[*columns, "audio"] if self._audio else columns)
        for prediction in predictions[:NUM_SAMPLES]:
            row: list[Any] = [
                prediction.id,
                prediction.language,
                prediction.detected_language,
                prediction.reference,
                prediction.hypothesis,
            ]
            if self._audio:
                row.append(self._audio_type(str(self._audio[prediction.id])))
            table.add_data(*row)
        self._run.log({f"valid/{name}/predictions": table, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def is_logged_in() -> bool:
    """Return whether W&B has credentials, in the environment or in `~/.netrc`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without any entry whose name speaks of a key, token, secret or password."""
    cleaned: dict[str, Any] = {}
    for name, value in config.items():
        if names_a_secret(name):
            continue
        cleaned[name] = without_secrets(value) if isinstance(value, Mapping) else value
    return cleaned
