"""Leaks planted into copies of real corpora: how many the pre-flight finds, and how many it invents on the clean ones.

    python -m benchmarks.leakage FOLDER FOLDER

Each folder holds `train.jsonl` and `test.jsonl`, perhaps `dev.jsonl`. Planted are: clips of the test set in training,
with the same samples under another name, container and text; test clips under a speaker of training; test texts in
training. Everything is planted by a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import soundfile

from benchmarks.environment import write_result
from data.preflight.columns import Split
from data.preflight.report import Report, ReportOptions, build_report
from data.preflight.scan import scan_corpus
from data.rows import JoinedRows
from data.sources import Source, read_source

NUM_PLANTS = 20
FILES = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
CONTAINERS = ("flac", "wav", "aiff", "w64")
Rows = dict[str, list[dict[str, Any]]]


def read_rows(corpus: Path) -> Rows:
    """Return the lines of each split, with absolute paths."""
    found: Rows = {}
    for name, file in FILES.items():
        if (corpus / file).is_file():
            lines = (corpus / file).read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            found[name] = [{**row, "audio": str(corpus / row["audio"])} for row in rows]
    return found


def examine(rows: Rows, folder: Path, *, speakers_disjoint: bool = False) -> Report:
    """Write manifests and look at them."""
    splits = []
    for name, lines in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines), encoding="utf-8")
        splits.append(Split(name, JoinedRows([read_source(Source(str(path)))]), is_windowed=name != "test"))
    scan = scan_corpus(splits, cache_path=folder / "scan.jsonl")
    return build_report(scan, ReportOptions(edges_s=(1, 2, 5, 30), speakers_disjoint=speakers_disjoint))


def flagged(report: Report, name: str) -> set[int]:
    """Return the places in the test set that a finding names."""
    findings = [finding for finding in report.findings if finding.name == name]
    return {int(index) for finding in findings for split, indices in finding.places for index in indices}


def plant_sounds(rows: Rows, folder: Path, rng: random.Random) -> set[int]:
    """Copy test clips into training, the same samples under another name, container and text."""
    chosen = rng.sample(range(len(rows["test"])), NUM_PLANTS)
    for i, place in enumerate(chosen):
        row = rows["test"][place]
        samples, rate = soundfile.read(row["audio"], dtype="float32")
        path = folder / f"plant{i}.{CONTAINERS[i % len(CONTAINERS)]}"
        soundfile.write(path, samples, rate, subtype="PCM_24")
        rows["train"].append(
            {**row, "id": f"plant{i}", "audio": str(path), "text": f"another text {i}", "speaker": None}
        )
    return set(chosen)


def plant_speakers(rows: Rows, rng: random.Random) -> set[int]:
    """Give every clip a speaker of its split, and some test clips one of training."""
    for name, lines in rows.items():
        for i, row in enumerate(lines):
            row["speaker"] = f"{name} {i % 7}"
    chosen = set(rng.sample(range(len(rows["test"])), NUM_PLANTS))
    for place in chosen:
        rows["test"][place]["speaker"] = rng.choice(rows["train"])["speaker"]
    return chosen


def plant_texts(rows: Rows, rng: random.Random) -> set[int]:
    """Give every clip a text of its own, and some test clips one of training in other case and punctuation."""
    for name, lines in rows.items():
        for i, row in enumerate(lines):
            row["text"] = f"{row['text']} {name} {i}"
    chosen = set(rng.sample(range(len(rows["test"])), NUM_PLANTS))
    for place in chosen:
        rows["test"][place]["text"] = rng.choice(rows["train"])["text"].upper().replace(" ", ", ") + "!"
    return chosen


def measure(corpus: Path, folder: Path) -> dict[str, Any]:
    """Look at a corpus as it is, then with each kind of leak planted."""
    clean = examine(read_rows(corpus), folder)
    result: dict[str, Any] = {
        "clips": clean.record["totals"]["accepted"],
        "clean": {
            level: [f.name for f in clean.findings if f.level == level] for level in ("error", "warning", "note")
        },
    }
    kinds = {
        "sound": ("pcm_leakage_train_test", lambda rows, rng: plant_sounds(rows, folder, rng), False),
        "speaker": ("speaker_overlap_train_test", plant_speakers, True),
        "text": ("text_overlap_train_test", plant_texts, False),
    }
    for kind, (name, plant, speakers_disjoint) in kinds.items():
        rows = read_rows(corpus)
        planted = plant(rows, random.Random(0))
        found = flagged(examine(rows, folder, speakers_disjoint=speakers_disjoint), name)
        result[kind] = {
            "planted": len(planted),
            "found": len(planted & found),
            "invented": len(found - planted),
            "recall": len(planted & found) / len(planted),
        }
    return result


def main() -> None:
    """Measure and write `results/leakage.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", type=Path, help="folders with train.jsonl and test.jsonl")
    corpora = {}
    for corpus in parser.parse_args().corpora:
        with tempfile.TemporaryDirectory() as folder:
            corpora[corpus.name] = measure(corpus.resolve(), Path(folder))
        print(corpus.name, corpora[corpus.name])
    write_result("leakage", {"plants_of_each_kind": NUM_PLANTS, "corpora": corpora})


if __name__ == "__main__":
    main()
