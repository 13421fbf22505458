"""Export a run, a checkpoint or an artefact for other programs: one format a runtime, whole or not at all.

python scripts/export.py artefact=runs/demo/export formats=[hf,ctranslate2,onnx,openai,ggml]
python scripts/export.py run.dir=runs/demo dataset.test=test.jsonl formats=[hf,ctranslate2]
python scripts/export.py run.dir=runs/demo export.dir=runs/demo/export-fp32 export.dtype=fp32
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from infer.artefact import load_artefact, replace_folder
from infer.export.formats import (
    FORMATS,
    build_format,
    name_result,
    size_bytes,
    verify_installed,
)
from infer.gate.runtimes import Candidate
from scripts.export_settings import ExportSettings, FinishedRun, TargetSettings
from scripts.gated import find_clips, judge_and_publish, open_masters
from scripts.settings import SettingsError, build, entry_point, to_plain
from scripts.train import settings_from_plain
from train.adapter_folder import export_adapter, verify_has_adapters
from train.export import DTYPES, export_run
from train.settings import TrainSettings

__all__ = ["ExportSettings", "FinishedRun", "TargetSettings", "export", "export_judged", "read_run"]


@dataclass(frozen=True)
class Source:
    """What is exported."""

    artefact_dir: Path
    """In FP16; all formats but `hf` and `adapter` of a run are made of it, and judged by it."""
    run: TrainSettings | None = None
    """For formats that are made of the FP32 masters."""


@dataclass(frozen=True)
class Exported:
    """One format, built."""

    name: str
    path: Path
    size_bytes: int
    seconds: float


def build_settings(config: DictConfig) -> ExportSettings:
    """Check a composed configuration.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value.
    """
    return build(ExportSettings, to_plain(config), path="export")


def export(settings: ExportSettings, *, console: Console) -> list[Exported]:
    """Export and return what was written, in the order of `formats`.

    Raises:
        FileNotFoundError: if the run, its checkpoint or the artefact is not there.
        ValueError: if a format cannot be made of it.
        RuntimeError: if a package is missing, or a folder cannot be written.
    """
    verify_installed(settings.formats)
    with staging(settings.folder()) as staged:
        source = open_source(settings, staged)
        built = build_all(settings, source, staged, console=console)
        return publish(settings, built)


def export_judged(settings: ExportSettings, *, console: Console) -> int:
    """Export, judge, move everything to its place or to `rejected/`, and return the exit code.

    Raises:
        FileNotFoundError: if the run, its checkpoint, the artefact or a held-out set is not there.
        ValueError: if a format cannot be made of it.
        RuntimeError: if a package is missing, or a folder cannot be written.
    """
    verify_installed(settings.formats)
    with staging(settings.folder()) as staged:
        source = open_source(settings, staged)
        test = () if settings.dataset is None else settings.dataset.sources("test")
        clips = find_clips(test, source.run, source.artefact_dir)
        built = build_all(settings, source, staged, console=console)
        console.print(render(built))
        if not clips:
            console.print("NOT JUDGED: no held-out clips; type dataset.test=test.jsonl", style="bold yellow")
            _say(publish(settings, built), console)
            return 0
        options = settings.resolved_options()
        is_half = options.hf.dtype == "fp16"
        return judge_and_publish(
            next((item.path for item in built if item.name == "hf" and is_half), source.artefact_dir),
            [Candidate(item.name, item.name, getattr(options, item.name).stored, item.path) for item in built],
            {item.name: settings.target(item.name) for item in built},
            clips,
            settings.decoding,
            settings.gate,
            masters=open_masters(source.run, settings.export.step, settings.masters, staged),
            run=source.run,
            report_dir=settings.folder(),
            force=settings.force,
            hub=settings.hub,
            console=console,
        )


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Make a folder beside the target, on the same disk, and remove it at the end; a reason for a rejection stays."""
    staged = folder.parent / f".tmp-{folder.name}-{uuid.uuid4().hex[:8]}"
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        reason = staged / "rejected" / "reason.json"
        if reason.is_file():
            (folder.parent / "rejected").mkdir(exist_ok=True)
            os.replace(reason, folder.parent / "rejected" / "reason.json")
        shutil.rmtree(staged, ignore_errors=True)


def open_source(settings: ExportSettings, staged: Path) -> Source:
    """Find the artefact, or make it of the checkpoint that was asked for.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a file of it is damaged, or the run has no adapters to export.
    """
    if settings.artefact is not None:
        artefact_dir = Path(settings.artefact).expanduser()
        load_artefact(artefact_dir)  # hashes and ids are verified before anything is built
        return Source(artefact_dir)
    run = read_run(Path(str(settings.run.dir)))
    if "adapter" in settings.formats:
        verify_has_adapters(run)
    shipped = Path(str(settings.run.dir)) / "export"
    if settings.export.step is None or set(settings.formats) <= {"hf", "adapter"}:
        return Source(shipped, run)
    return Source(export_run(run, staged / "artefact", dtype=DTYPES["fp16"], step=settings.export.step), run)


def build_all(settings: ExportSettings, source: Source, staged: Path, *, console: Console) -> list[Exported]:
    """Build every format in the staging folder, with a bar."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    built: list[Exported] = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(settings.formats))
        for name in settings.formats:
            progress.update(task, description=f"{name}, for {FORMATS[name].title}")
            start = time.perf_counter()
            path = build_one(name, settings, source, staged / name_result(name, settings.resolved_options()))
            built.append(Exported(name, path, size_bytes(path), time.perf_counter() - start))
            progress.advance(task)
    return built


def build_one(name: str, settings: ExportSettings, source: Source, target: Path) -> Path:
    """Build one format: of the FP32 masters where they are better than the artefact, else of the artefact."""
    options, step = settings.resolved_options(), settings.export.step
    if name == "adapter":
        assert source.run is not None
        return export_adapter(source.run, target, step=step, merged=options.adapter.merged)
    if name == "hf" and source.run is not None:
        dtype = DTYPES[options.hf.dtype]
        return export_run(source.run, target, dtype=dtype, step=step, max_shard_gib=options.hf.max_shard_gib)
    return build_format(name, source.artefact_dir, target, options)


def publish(settings: ExportSettings, built: list[Exported]) -> list[Exported]:
    """Move what was built into place, each result at once.

    Raises:
        RuntimeError: if it cannot be moved.
    """
    published = []
    for item in built:
        target = settings.target(item.name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if item.path.is_dir():
                replace_folder(item.path, target)
            else:
                for beside in item.path.parent.glob(f"{item.path.stem}.*"):  # openai's ranks of a learnt vocabulary
                    os.replace(beside, target.with_suffix(beside.suffix))
        except OSError as e:
            raise RuntimeError(f"cannot write {target}: {e.strerror or e}") from e
        published.append(dataclasses.replace(item, path=target))
    return published


def read_run(run_dir: Path) -> TrainSettings:
    """Return the settings of a run, with its folder where it is now.

    Raises:
        FileNotFoundError: if the folder is no run.
        SettingsError: if its configuration cannot be read.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{run_dir} is no run: it has no config.yaml")
    plain = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    if not isinstance(plain, dict):
        raise SettingsError(f"{file} is not the configuration of a run")
    plain["run"] = {**plain["run"], "dir": str(run_dir)}
    return settings_from_plain({str(k): v for k, v in plain.items()})


def render(exported: list[Exported]) -> Table:
    """Return the table of what was written."""
    table = Table(box=None, pad_edge=False)
    for header in ("format", "for", "MB", "s"):
        table.add_column(header, justify="right" if header in ("MB", "s") else "left")
    for item in exported:
        table.add_row(item.name, FORMATS[item.name].title, f"{item.size_bytes / 1e6:.1f}", f"{item.seconds:.1f}")
    return table


@entry_point("export")
def main(config: DictConfig) -> int:
    """Export."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    settings = build_settings(config)
    if settings.is_judged:
        return export_judged(settings, console=console)
    exported = export(settings, console=console)
    console.print(render(exported))
    _say(exported, console)
    return 0


def _say(exported: list[Exported], console: Console) -> None:
    for item in exported:
        label = "artefact" if item.name == "hf" else item.name
        console.print(f"{label}: {item.path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
