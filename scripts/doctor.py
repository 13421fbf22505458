"""Say what is wrong with a Whisper folder, ours or not, and in which runtimes; repair a copy of it.

python scripts/doctor.py artefact=runs/demo/export
python scripts/doctor.py artefact=downloads/whisper-de base=downloads/whisper-small fix=true
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig
from rich.console import Console

from infer.doctor.converted import KINDS, ConvertedModel, examine_converted, recognise, repair_converted
from infer.doctor.examination import CHECKS, Examination, examine
from infer.doctor.folder import Weights
from infer.doctor.repair import repair
from infer.doctor.tables import render_findings, render_verdicts
from scripts.settings import build, entry_point, to_plain

BROKEN = 1
"""Exit code where some runtime cannot use the folder."""


@dataclass(frozen=True)
class DoctorSettings:
    """One examination."""

    artefact: str
    masters: str | None = None
    base: str | None = None
    fix: bool = False
    repaired: str | None = None
    json: str | None = None

    def __post_init__(self) -> None:
        if self.repaired is not None and not self.fix:
            raise ValueError(f"repaired={self.repaired} is where a copy goes; type fix=true as well")

    @property
    def target(self) -> Path:
        """Where a repaired copy goes."""
        folder = Path(self.artefact).expanduser().absolute()
        return Path(self.repaired) if self.repaired is not None else folder.with_name(f"{folder.name}-repaired")


def build_settings(config: DictConfig) -> DoctorSettings:
    """Check a composed configuration.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value.
    """
    return build(DoctorSettings, to_plain(config), path="doctor")


def consult(settings: DoctorSettings, *, console: Console) -> Examination | ConvertedModel:
    """Examine a model, say what was found, repair a copy where asked, and return the last examination.

    Raises:
        FileNotFoundError: if a folder is not there.
        ValueError: if a folder cannot be used as masters, or nothing can be mended.
    """
    masters = None if settings.masters is None else Weights.open(Path(settings.masters))
    base = None if settings.base is None else Path(settings.base).expanduser()
    if base is not None and not base.is_dir():
        raise FileNotFoundError(f"base={base} is no folder; it is the model that was fine-tuned")
    path = Path(settings.artefact).expanduser()
    kind = recognise(path)
    if kind is not None:
        return _consult_converted(settings, path, kind, console)
    found = examine(path, masters=masters)
    _say(found, console)
    if settings.fix and found.findings:
        mended = repair(found, settings.target, base=base, masters=masters)
        console.print(f"repaired copy: {settings.target} ({', '.join(mended) or 'nothing'} mended)", soft_wrap=True)
        found = examine(settings.target, masters=masters)
        _say(found, console)
    _write_json(settings, found)
    return found


def _consult_converted(settings: DoctorSettings, path: Path, kind: str, console: Console) -> ConvertedModel:
    """Examine a model that was converted for one runtime, and repair a copy where asked."""
    found = examine_converted(path, kind)
    _say_converted(found, console)
    if settings.fix and found.findings:
        mended = repair_converted(found, settings.target)
        console.print(f"repaired copy: {settings.target} ({', '.join(mended)} mended)", soft_wrap=True)
        found = examine_converted(settings.target, kind)
        _say_converted(found, console)
    _write_json(settings, found)
    return found


def _say_converted(found: ConvertedModel, console: Console) -> None:
    facts = "".join(f", {value:,} {name.replace('_', ' ')}" for name, value in found.facts.items())
    console.print(f"{found.path} is a model for {KINDS[found.kind]} ({found.kind}){facts}", soft_wrap=True)
    if found.findings:
        console.print(render_findings(found))
    console.print(render_verdicts(found))


def _write_json(settings: DoctorSettings, found: Examination | ConvertedModel) -> None:
    if settings.json is not None:
        text = json.dumps(found.describe(), ensure_ascii=False, indent=2, allow_nan=False)
        Path(settings.json).write_text(text + "\n", encoding="utf-8")


def _say(found: Examination, console: Console) -> None:
    if found.findings:
        console.print(render_findings(found))
    console.print(render_verdicts(found))
    num_asked = len(CHECKS) - len(found.skipped)
    rest = f"; not asked: {', '.join(found.skipped)}" if found.skipped else ""
    console.print(f"{num_asked} of {len(CHECKS)} checks asked{rest}", highlight=False, soft_wrap=True)
    if not found.has_masters:
        console.print("a cast or a merge in FP16 shows only beside the FP32 weights: masters=FOLDER", highlight=False)


@entry_point("doctor")
def main(config: DictConfig) -> int:
    """Examine."""
    found = consult(build_settings(config), console=Console(width=None if sys.stdout.isatty() else 120))
    return BROKEN if found.is_broken else 0


if __name__ == "__main__":
    main()
