"""The table of runtimes: one artefact through every format and its client, with the same decode settings.

python -m benchmarks.export                          # all sections; writes results/export.json
python -m benchmarks.export --only clients int8 --quick
python -m benchmarks.export --table                  # the README's table, from what was measured

Sections: `clients` and `int8` transcribe the held-out sets of the demo; `sizes` compares files of large-v3's width,
since tables of positions weigh more in a narrow model, and reckons those of its 32 layers;
`geometry` loads and decodes a model of large-v3's sizes, narrow and with random weights, in each client; `large`
exports one of 1.54 billion parameters (`--large-layers` makes it smaller) in a process whose memory is watched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.environment import PROJECT, RESULTS, write_result
from benchmarks.export_shapes import measure_geometry, measure_large, measure_sizes, weights_size
from data.rows import Row
from data.sources import Source
from infer.clients.client import CLIENTS, ClientRequest, run_client_in_process
from infer.decoding import DecodeSettings
from infer.export.formats import FormatOptions, build_format, name_result, size_bytes
from infer.score.evaluation import Prediction, score_predictions
from infer.score.held_out import read_held_out

ARTEFACT = PROJECT / "runs/demo/export"
CORPUS = PROJECT / "data/demo/corpus"
SECTIONS = ("clients", "int8", "sizes", "geometry", "large")
QUICK_CLIPS = 20
INT8 = (
    ("faster_whisper", "ctranslate2", {"quantization": "float16"}),
    ("faster_whisper", "ctranslate2", {"quantization": "int8"}),
    ("onnxruntime", "onnx", {"dtype": "fp32"}),
    ("onnxruntime", "onnx", {"dtype": "fp16"}),
    ("onnxruntime", "onnx", {"int8": True}),
    ("whisper_cpp", "ggml", {"stored": "f16"}),
    ("whisper_cpp", "ggml", {"stored": "q8_0"}),
    ("whisper_cpp", "ggml", {"stored": "q5_0"}),
)
"""Client, format and options; the FP16 row of a format stands before those that are held against it."""


def main() -> None:
    """Measure the sections that were asked for, and keep the others as they stand in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CLIPS} clips of each set; nothing is written")
    parser.add_argument("--clips", type=int, help="of each set, every n-th one; all where it is not given")
    parser.add_argument(
        "--client", choices=CLIENTS, help="in `clients` and `int8` ask this one; the others stay as they are"
    )
    parser.add_argument("--table", action="store_true", help="print the README's table and stop")
    parser.add_argument("--large-layers", type=int, default=32)
    arguments = parser.parse_args()
    file = RESULTS / "export.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if arguments.table:
        print(render_markdown(known["clients"]))
        return
    found: dict[str, Any] = {name: known[name] for name in SECTIONS if name in known}
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        scratch = Path(folder)
        sources = held_out_sets(scratch, QUICK_CLIPS if arguments.quick else arguments.clips)
        for section in arguments.only:
            print(f"-- {section}", flush=True)
            if section == "clients":
                found[section] = measure_clients(sources, scratch, alone=arguments.client, known=known.get(section, ()))
                print(render_markdown(found[section]))
            elif section == "int8":
                found[section] = measure_int8(sources, scratch, alone=arguments.client, known=known.get(section, ()))
            elif section == "sizes":
                found[section] = measure_sizes(scratch, INT8)
            elif section == "geometry":
                found[section] = measure_geometry(scratch)
            else:
                found[section] = measure_large(scratch, layers=arguments.large_layers)
            print(json.dumps(found[section], ensure_ascii=False, indent=1), flush=True)
    if not arguments.quick:
        write_result("export", found)


def held_out_sets(scratch: Path, num_clips: int | None) -> list[Source]:
    """Return both test sets of the demo, or every n-th clip of each."""
    sources = []
    for domain in ("clinic", "home"):
        manifest = CORPUS / domain / "test.jsonl"
        if num_clips is not None:
            lines = manifest.read_text(encoding="utf-8").splitlines()
            chosen = [json.loads(line) for line in lines[:: max(1, len(lines) // num_clips)][:num_clips]]
            manifest = scratch / f"{domain}.jsonl"
            rows = [{**row, "audio": str(CORPUS / domain / row["audio"])} for row in chosen]
            manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        sources.append(Source(str(manifest)))
    return sources


def measure_clients(
    sources: Sequence[Source], scratch: Path, *, alone: str | None = None, known: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Ask ours at 30 s, ours in the windows of the training, and every other client in its first format.

    Args:
        sources: the held-out sets.
        scratch: for formats and answers.
        alone: a client that is asked alone, beside ours; the other rows are those that are known.
        known: rows of an earlier run, on the same clips.
    """
    options = FormatOptions()
    rows = read_held_out(sources)
    asked = [("mezzavoce", "full", ARTEFACT), ("mezzavoce", "trained", ARTEFACT)]
    results: list[dict[str, Any]] = []
    reference: dict[str, str] = {}
    for client in [name for name in CLIENTS if name != "mezzavoce" and alone in (None, name)]:
        asked.append((client, "full", scratch / name_result(CLIENTS[client].format, options)))
    for client, windows, path in asked:
        if client != "mezzavoce" and not path.exists():
            build_format(CLIENTS[client].format, ARTEFACT, path, options)
        found = ask(client, path, sources, scratch, windows=windows)
        figures = judge(found, rows, reference or found.get("texts", {}))
        if not reference:
            reference = found["texts"]
        head = {"client": client, "title": CLIENTS[client].title, "windows": windows, "file": path.name}
        results.append({**head, "size_bytes": size_bytes(path), **figures})
        print(results[-1], flush=True)
    if alone is not None:
        new = {(row["client"], row["windows"]): row for row in results}
        results = [new.get((row["client"], row["windows"]), row) for row in known]
    for row in results:
        if "headline" in row:
            row["points_from_ours"] = 100 * (row["headline"] - results[0]["headline"])
    return results


def measure_int8(
    sources: Sequence[Source], scratch: Path, *, alone: str | None = None, known: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Hold every 8-bit and 5-bit file against FP16 in the same program.

    Args:
        sources: the held-out sets.
        scratch: for formats and answers.
        alone: a client that is asked alone; the other rows are those that are known.
        known: rows of an earlier run, on the same clips.
    """
    rows = read_held_out(sources)
    results: list[dict[str, Any]] = []
    halves: dict[str, dict[str, Any]] = {}
    for client, name, changes in [entry for entry in INT8 if alone in (None, entry[0])]:
        options = FormatOptions(**{name: type(getattr(FormatOptions(), name))(**changes)})
        path = scratch / "int8" / name_result(name, options)
        build_format(name, ARTEFACT, path, options)
        found = ask(client, path, sources, scratch, windows="full")
        row = {"client": client, "file": path.name, "size_bytes": size_bytes(path), **judge(found, rows, {})}
        if getattr(options, name).stored in ("float16", "fp16", "f16"):
            halves[name] = row
        elif name in halves and "headline" in row and "headline" in halves[name]:
            half = halves[name]
            row["points_from_fp16"] = 100 * (row["headline"] - half["headline"])
            row["size_of_fp16"] = weights_size(path) / half["weights_file_bytes"]
            row["speed_of_fp16"] = row["rtfx"] / half["rtfx"]
        row["weights_file_bytes"] = weights_size(path)
        results.append(row)
        print(row, flush=True)
    new = {row["file"]: row for row in results}
    return [new.get(row["file"], row) for row in known] if alone is not None else results


def ask(client: str, path: Path, sources: Sequence[Source], scratch: Path, *, windows: str) -> dict[str, Any]:
    """Return what `run_client_in_process` does, greedy, the language detected."""
    request = ClientRequest(
        client=client,
        folder=str(path),
        sources=tuple(asdict(source) for source in sources),
        decoding=asdict(DecodeSettings()),
        windows=windows,
    )
    return run_client_in_process(request, scratch / "asked")


def judge(found: Mapping[str, Any], rows: Sequence[Row], reference: Mapping[str, str]) -> dict[str, Any]:
    """Return error rates, and the share of texts that are the reference's letter by letter."""
    if "texts" not in found:
        return dict(found)
    predictions = [
        Prediction(
            id=row.id,
            language=row.language,
            detected_language=found["languages"][row.id],
            reference=row.text,
            hypothesis=found["texts"][row.id],
            duration_s=found["audio_s"] / len(rows),
        )
        for row in rows
    ]
    score = score_predictions(predictions, processing_s=0.0).overall
    same = [reference[row.id] == found["texts"][row.id] for row in rows] if reference else []
    speed = ("latency_p50_s", "latency_p95_s", "rtfx", "peak_bytes", "weights_bytes", "version")
    return {
        **{key: score[key] for key in ("headline", "wer", "cer", "language_accuracy")},
        "identical_share": sum(same) / len(same) if same else None,
        "utterances": len(rows),
        **{key: found[key] for key in speed},
    }


def render_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of runtimes as it stands in the README."""
    lines = [
        "| runtime | windows | file, MB | error, % | to ours, points | same text, % | language, % "
        "| p50, ms | RTFx | memory, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "headline" not in row:
            lines.append(f"| {row['title']} | {row.get('absent') or row.get('failed')} | | | | | | | | |")
            continue
        windows = "30 s" if row["windows"] == "full" else "as trained"
        cells = [
            row["title"], windows, f"{row['size_bytes'] / 1e6:.1f}", f"{100 * row['headline']:.2f}",
            f"{row['points_from_ours']:+.2f}" if "points_from_ours" in row else "",
            f"{100 * row['identical_share']:.1f}", f"{100 * row['language_accuracy']:.1f}",
            f"{1000 * row['latency_p50_s']:.0f}", f"{row['rtfx']:.1f}", f"{row['peak_bytes'] / 1e6:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
