"""Run the same clips through one artefact in every arithmetic of this device, each in a process of its own.

python scripts/compare_precision.py artefact=runs/demo/export dataset.test=test.jsonl
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from omegaconf import DictConfig
from rich.console import Console

from data.settings import DatasetSettings
from infer.artefact import load_artefact
from infer.compare.arithmetic import (
    ARITHMETICS,
    REFERENCE,
    Arithmetic,
    DeviceFacts,
    choose_arithmetics,
    describe_arithmetic,
    find_obstacle,
    inspect_device,
)
from infer.compare.measurement import Request, measure_in_process
from infer.compare.picture import draw_comparison
from infer.compare.tables import absences, render_costs, render_languages, to_markdown
from infer.compare.verdict import build_rows, shipped_verdict
from infer.decoding import DecodeSettings
from infer.export.ctranslate2 import convert_to_ctranslate2
from infer.score.held_out import read_held_out
from infer.transcriber import best_device
from scripts.settings import build, entry_point, to_plain

LEGEND = (
    "weights: as they lie in memory while computing; {memory}",
    "p50, p95: one clip at a time, from the file to the text; RTFx: seconds of audio a second in batches, from samples "
    "to text, reading files aside",
    "floor: operations and bytes of the mean clip over the matmul and copy rates measured here; no program on this "
    "device is faster",
    "error: mean over languages of WER, or of CER where words are written without spaces; same text: identical to the "
    "FP32 row, letter by letter",
)
MEMORY = {
    "cpu": "peak: growth of the process since before the model was loaded",
    "cuda": "card: growth of what the whole card has in use, with caches of the allocator",
}


@dataclass(frozen=True)
class ReportFolder:
    """The `report` group."""

    dir: str | None = None


@dataclass(frozen=True)
class CompareSettings:
    """One comparison."""

    artefact: str
    dataset: DatasetSettings
    """Only `test` is looked at."""
    decoding: DecodeSettings
    report: ReportFolder
    rows: tuple[str, ...]
    """Names of arithmetics; FP32 is always among them."""
    masters: str | None = None
    batch_size: int = 16
    latency_clips: int = 20
    repeats: int = 3
    margin: float = 0.005
    device: str = "auto"

    def __post_init__(self) -> None:
        choose_arithmetics(self.rows)
        for name in ("batch_size", "latency_clips", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if not 0 < self.margin < 1:
            raise ValueError(f"margin={self.margin} is a fraction of the rate, such as 0.005 for half a point")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device={self.device} must be auto, cpu or cuda")


def build_settings(config: DictConfig) -> CompareSettings:
    """Check a composed configuration.

    Raises:
        SettingsError: for an unknown key, a wrong type or a bad value.
    """
    return build(CompareSettings, to_plain(config), path="compare_precision")


def compare_precision(settings: CompareSettings, *, console: Console) -> dict[str, Any]:
    """Measure every row and return the record, which also stands in the report's folder.

    Raises:
        ValueError: for a set or an artefact that cannot be used whole.
        RuntimeError: if the reference could not be measured.
    """
    device = best_device() if settings.device == "auto" else torch.device(settings.device)
    facts = inspect_device(device)
    sources = settings.dataset.sources("test")
    read_held_out(sources)  # a bad line is said once, here, and not by six processes
    described = load_artefact(settings.artefact).describe()  # hashes are verified before anything is measured
    arithmetics = choose_arithmetics(settings.rows)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="precision-") as folder:
        converted = _convert(settings, arithmetics, facts, Path(folder))
        for arithmetic in arithmetics:
            obstacle = find_obstacle(arithmetic, facts)
            if obstacle is not None:
                found[arithmetic.name] = {"absent": obstacle}
                continue
            with console.status(f"measuring {arithmetic.title}: {describe_arithmetic(arithmetic, facts)}"):
                request = _request(settings, arithmetic, device, converted)
                found[arithmetic.name] = measure_in_process(request, Path(folder))
            if arithmetic.name == REFERENCE and "failed" in found[REFERENCE]:
                raise RuntimeError(f"FP32, which all others are compared with: {found[REFERENCE]['failed']}")
            _say(console, arithmetic, found[arithmetic.name])
    rows = build_rows(arithmetics, found, margin=settings.margin)
    record = {
        "artefact": {key: described[key] for key in ("path", "sha256", "stored", "windows_s")},
        "device": {**asdict(facts), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "utterances": rows[0]["utterances"],
        "audio_s": rows[0]["audio_s"],
        "verdict": shipped_verdict(rows),
        "rows": [{**row, "what": describe_arithmetic(ARITHMETICS[row["name"]], facts)} for row in rows],
        "legend": [line.format(memory=MEMORY.get(facts.kind, MEMORY["cpu"])) for line in LEGEND],
        "settings": {
            "decoding": asdict(settings.decoding),
            "batch_size": settings.batch_size,
            "latency_clips": settings.latency_clips,
            "repeats": settings.repeats,
            "margin": settings.margin,
            "masters": settings.masters,
            "test": [source.path for source in sources],
        },
    }
    _write(report_dir(settings), record, found)
    return record


def _convert(
    settings: CompareSettings, arithmetics: list[Arithmetic], facts: DeviceFacts, folder: Path
) -> dict[str, str]:
    """Convert for CTranslate2 what its rows need: FP16 weights, and int8 ones, which are quantised once, from them."""
    wanted = {
        "int8" if row.dtype == "int8" else "float16"
        for row in arithmetics
        if row.runtime == "ctranslate2" and find_obstacle(row, facts) is None
    }
    stored = {"float16": "float16", "int8": "int8_float16" if facts.kind == "cuda" else "int8_float32"}
    return {
        name: str(convert_to_ctranslate2(Path(settings.artefact), folder / name, quantization=stored[name]))
        for name in sorted(wanted)
    }


def _request(
    settings: CompareSettings, arithmetic: Arithmetic, device: torch.device, converted: dict[str, str]
) -> Request:
    is_reference = arithmetic.name == "fp32" and settings.masters is not None
    return Request(
        arithmetic=arithmetic.name,
        artefact=str(settings.masters if is_reference else settings.artefact),
        sources=tuple(dataclasses.asdict(source) for source in settings.dataset.sources("test")),
        decoding=asdict(settings.decoding),
        device=device.type,
        batch_size=settings.batch_size,
        latency_clips=settings.latency_clips,
        repeats=settings.repeats,
        num_threads=torch.get_num_threads(),
        converted=converted,
    )


def _say(console: Console, arithmetic: Arithmetic, found: dict[str, Any]) -> None:
    if "failed" in found:
        console.print(f"{arithmetic.title}: {found['failed']}", style="red", highlight=False)
    else:
        rtfx = found["audio_s"] / found["processing_s"]
        console.print(f"{arithmetic.title}: measured, RTFx {rtfx:.1f}", highlight=False)


def _write(folder: Path, record: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / "precision.json").write_text(text + "\n", encoding="utf-8")
    (folder / "precision.md").write_text(to_markdown(record), encoding="utf-8")
    draw_comparison(record, folder / "precision.png")
    with (folder / "precision-texts.jsonl").open("w", encoding="utf-8") as file:
        for line in _texts(found):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _texts(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line a clip: the reference, and what each arithmetic heard."""
    measured = {name: row["predictions"] for name, row in found.items() if "predictions" in row}
    heard = {name: {p["id"]: p["hypothesis"] for p in predictions} for name, predictions in measured.items()}
    return [
        {
            "id": p["id"],
            "language": p["language"],
            "reference": p["reference"],
            **{name: texts[p["id"]] for name, texts in heard.items()},
        }
        for p in measured["fp32"]
    ]


def report_dir(settings: CompareSettings) -> Path:
    """Return where the report goes."""
    if settings.report.dir is not None:
        return Path(settings.report.dir)
    artefact = Path(settings.artefact).absolute()
    if (artefact.parent / "config.yaml").is_file():
        return artefact.parent / "precision"
    return Path("runs") / f"precision-{artefact.name}"


@entry_point("compare_precision")
def main(config: DictConfig) -> int:
    """Compare."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    settings = build_settings(config)
    record = compare_precision(settings, console=console)
    console.print(render_costs(record))
    console.print(render_languages(record))
    for line in (*absences(record), *record["legend"]):
        console.print(f"- {line}", highlight=False)
    console.print(f"report: {report_dir(settings)}/precision.md, .json, .png", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    main()
