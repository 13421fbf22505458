"""Look at a corpus before training on it: a verdict, what to mend, and every figure, as a page, JSON and a picture.

python scripts/prepare.py dataset=manifest dataset.train=train.jsonl dataset.test=test.jsonl

Exit code 0 if a training can start, with or without things to look at; 1 if something has to be mended first.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from scripts.settings import SettingsError, build, entry_point, to_plain

if TYPE_CHECKING:
    from data.labels import LabelBuilder
    from data.preflight.columns import Split
    from data.preflight.report import Report
    from data.settings import DatasetSettings
    from train.model import ModelSettings

# What needs PyTorch or transformers is imported where it is used: each process that decodes imports this module, and
# needs neither.

SPLITS = ("train", "validation", "test")
COLOURS = {"ready": "green", "look": "yellow", "not_ready": "red"}
SIGNS = {"error": ("✕", "red"), "warning": ("!", "yellow"), "note": ("·", "cyan")}


@dataclass(frozen=True)
class PreflightSettings:
    """The `prepare` group."""

    title: str | None = None
    speakers_disjoint: bool = False
    num_workers: int | None = None
    cache: str | None = None


@dataclass(frozen=True)
class ReportSettings:
    """The `report` group."""

    dir: str


@dataclass(frozen=True)
class WindowSettings:
    """What the model's `recommended` says of windows."""

    edges_s: tuple[float, ...]
    full_share: float


@dataclass(frozen=True)
class PrepareSettings:
    """One look at a corpus."""

    dataset: DatasetSettings
    model: ModelSettings
    """Only its tokenizer is loaded."""
    window: WindowSettings
    prepare: PreflightSettings
    report: ReportSettings


def build_settings(config: DictConfig) -> PrepareSettings:
    """Check a composed configuration.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value, or if no split is named.
    """
    from data.settings import DatasetSettings
    from train.model import ModelSettings

    plain = to_plain(config)
    window = {name: plain["recommended"][name] for name in ("edges_s", "full_share")}
    settings = PrepareSettings(
        dataset=build(DatasetSettings, plain["dataset"], path="dataset"),
        model=build(ModelSettings, plain["model"], path="model"),
        window=build(WindowSettings, window, path="recommended"),
        prepare=build(PreflightSettings, plain["prepare"], path="prepare"),
        report=build(ReportSettings, plain["report"], path="report"),
    )
    if not any(getattr(settings.dataset, name) for name in SPLITS):
        raise SettingsError("no split is named; type dataset.train=train.jsonl, dataset.test=test.jsonl or both")
    return settings


def prepare_corpus(settings: PrepareSettings, *, console: Console, command: Sequence[str] = ()) -> Report:
    """Scan the splits, judge them, and write the report.

    Args:
        settings: what to look at.
        console: where progress is shown.
        command: the overrides that were given, for the command of the training.

    Raises:
        ValueError: for a source that cannot be read at all.
        FileNotFoundError: if a source does not exist.
    """
    from data.preflight.overview import draw_overview
    from data.preflight.page import Heading, write_page
    from data.preflight.report import ReportOptions, build_report, write_report
    from data.preflight.scan import scan_corpus

    with console.status("reading the sources"):
        splits = [read_split(settings.dataset, name) for name in SPLITS if getattr(settings.dataset, name)]
        label_builder, remark = load_label_builder(settings.model, splits)
    report_dir = Path(settings.report.dir)
    cache = Path(settings.prepare.cache) if settings.prepare.cache else report_dir / "scan.jsonl"
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, completed: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=completed)

        scan = scan_corpus(
            splits,
            cache_path=cache,
            label_builder=label_builder,
            num_workers=settings.prepare.num_workers,
            on_progress=show,
        )
    options = ReportOptions(
        edges_s=settings.window.edges_s,
        full_share=settings.window.full_share,
        speakers_disjoint=settings.prepare.speakers_disjoint,
        on_bad=settings.dataset.on_bad,
        max_bad_share=settings.dataset.max_bad_share,
    )
    report = build_report(scan, options)
    title = settings.prepare.title or find_title(settings.dataset)
    written = f"{datetime.now():%Y-%m-%d}"
    heading = Heading(title, written, training_command(settings, report, command), remark)
    report.record.update(title=title, written=written, remark=remark, command=heading.command)
    write_report(report_dir, report)
    write_page(report_dir, report, heading)
    draw_overview(report.record, report_dir / "overview.png", title=title)
    return report


def read_split(dataset: DatasetSettings, name: str) -> Split:
    """Read the sources of a split; what a training replays belongs to `train`, and one named twice is read once."""
    from data.preflight.columns import Split
    from data.rows import JoinedRows
    from data.sources import read_source

    sources = dataset.sources(name) + (dataset.sources("replay") if name == "train" else ())
    tables = [read_source(source) for place, source in enumerate(sources) if source not in sources[:place]]
    return Split(name, JoinedRows(tables), is_windowed=name != "test")


def load_label_builder(model: ModelSettings, splits: Sequence[Split]) -> tuple[LabelBuilder | None, str]:
    """Load the tokenizer of a model without its weights; where there is none to be had, return why."""
    from data.labels import LabelBuilder
    from infer.artefact import load_tokenizer
    from train.vocabulary import learn_tokenizer

    try:
        if model.path is None:
            texts = [text for split in splits for table in split.rows.tables for text in table.column("text")]
            tokenizer = learn_tokenizer(texts, unit=model.tokenizer_unit, vocabulary_size=model.vocabulary_size)
            return LabelBuilder(tokenizer, max_positions=tokenizer.model_max_length), ""
        folder = _find_tokenizer(model.path, model.revision)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return LabelBuilder(load_tokenizer(folder), max_positions=int(config["max_target_positions"])), ""
    except (OSError, ValueError, KeyError) as e:
        return None, (
            "Label tokens were not counted, and texts that are too long for the model were not looked for: the "
            f"tokenizer of model={model.name} ({model.path}) cannot be loaded. {str(e).splitlines()[0]:.160} "
            "Give a folder that holds it, model.path=FOLDER."
        )


def _find_tokenizer(path: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    return Path(snapshot_download(path, revision=revision, allow_patterns=["*.json", "merges.txt"]))


def training_command(settings: PrepareSettings, report: Report, overrides: Sequence[str]) -> str:
    """Return the command that trains on this corpus, or nothing where there is nothing to train on."""
    windows = report.record["windows"]
    if windows is None:
        return ""
    groups = ("dataset", "model", "recommended")
    kept = [text for text in overrides if text.lstrip("+").split("=")[0].split(".")[0] in groups]
    if windows["suggested_edges_s"]:
        kept.append(f"window.edges_s=[{','.join(f'{edge:g}' for edge in windows['suggested_edges_s'])}]")
    return " \\\n  ".join(["accelerate launch scripts/train.py", *map(shlex.quote, kept)])


def find_title(dataset: DatasetSettings) -> str:
    """Return what to call a corpus: its data set, or the folder of its first source."""
    if dataset.name != "manifest":
        return dataset.name
    sources = next(sources for name in SPLITS if (sources := dataset.sources(name)))
    path = Path(sources[0].path).expanduser().absolute()
    return path.name if path.is_dir() else path.parent.name


def render_table(report: Report) -> Table:
    """Lay out one row a split."""
    from data.preflight.page import format_hours

    table = Table(title=Text(report.record["title"]), box=SIMPLE_HEAD)
    table.add_column("split")
    for heading in ("lines", "usable", "quarantined", "rejected", "speech", "speakers"):
        table.add_column(heading, justify="right")
    for name, split in report.record["splits"].items():
        bad = [Text(f"{split[key]:,}", style="red" if split[key] else "") for key in ("quarantined", "rejected")]
        table.add_row(
            name,
            f"{split['lines']:,}",
            f"{split['accepted']:,}",
            *bad,
            format_hours(split["hours"]),
            f"{split['speakers']:,}",
        )
    return table


def show_report(report: Report, report_dir: Path, console: Console) -> None:
    """Print the table, the findings and the verdict."""
    console.print(render_table(report))
    if report.record["remark"]:
        console.print(Text(report.record["remark"], style="dim"))
    for finding in report.findings:
        sign, colour = SIGNS[finding.level]
        console.print(Text.assemble((f"{sign} ", colour), finding.title), soft_wrap=True)
        if finding.level != "note":
            console.print(Text(f"  → {finding.fix}", style="dim"), soft_wrap=True)
    windows = report.record["windows"]
    if windows:
        line = f"window=bucketed feeds the encoder {windows['factor']:.1f} times less than 30 s for every clip"
        console.print(Text(line))
    verdict = report.record["verdict"]
    console.print(Text(verdict["headline"], style=f"bold {COLOURS[verdict['level']]}"))
    console.print(f"report: {report_dir / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


@entry_point("prepare")
def main(config: DictConfig) -> int:
    """Prepare."""
    console = Console()
    settings = build_settings(config)
    try:
        report = prepare_corpus(settings, console=console, command=sys.argv[1:])
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from there")
        raise
    show_report(report, Path(settings.report.dir), console)
    return 0 if report.is_ready else 1


if __name__ == "__main__":
    main()
