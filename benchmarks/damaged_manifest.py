"""Damaged manifest lines: each is taken or refused with its code and line; none crashes, hangs, or costs another.

    python -m benchmarks.damaged_manifest             10,080 damaged lines, twice; about a minute on one core
    python -m benchmarks.damaged_manifest --files 2   480 lines

Half of them have a planted fault of known code, in the others bytes were changed, over JSONL, CSV and TSV, all from one
seed. A worker process opens each file as a training does, while this one waits with a watch. Of every file it is
asked that accepted + quarantined + rejected are its lines; that each planted fault is found with
its code, line and byte offset; that every good line is taken. The second run must give the same codes.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.damaged_lines import FORMATS, KINDS, NUM_DAMAGED, SEED, TEXTS, Part, make_manifest
from benchmarks.watch import HANG_S, watch
from data.dataset import Clips, open_clips
from data.labels import LabelBuilder
from data.sources import Source

Case = tuple[str, str, int]


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged manifest."""

    failure: str = ""
    """`hang`, `crash CODE`, or an exception that no user should see."""
    num_lines: int = 0
    num_accepted: int = 0
    num_quarantined: int = 0
    num_rejected: int = 0
    num_planted: int = 0
    num_swallowed: int = 0
    """Damaged lines of a CSV that became part of the row before them: two broken quotes can look like one cell."""
    codes: tuple[tuple[int, str], ...] = ()
    """Line and code of all that was refused."""
    wrong: tuple[str, ...] = field(default=())
    """What is not as it should be."""


def read_damaged(case: Case, folder: Path) -> Outcome:
    """Make a damaged manifest, open it as a training does, and hold the result against what was planted."""
    format, kind, number = case
    content, parts = make_manifest(format, kind, number)
    if not (folder / "clip.wav").exists():
        t = np.arange(16_000) / 16_000
        soundfile.write(folder / "clip.wav", 0.3 * np.sin(2 * np.pi * 300 * t), 16_000)
    path = folder / f"train.{format}"
    path.write_bytes(content)
    clips = open_clips([Source(str(path))], _label_builder(), on_bad="report", max_bad_share=0.0)
    (account,) = clips.ingest
    wrong, num_swallowed = _compare(content, parts, clips, format)
    total = account.num_accepted + account.num_quarantined + account.num_rejected
    if total != account.num_lines:
        wrong.append(f"{total} of {account.num_lines} lines are accounted for")
    return Outcome(
        num_lines=account.num_lines,
        num_accepted=account.num_accepted,
        num_quarantined=account.num_quarantined,
        num_rejected=account.num_rejected,
        num_planted=sum(bool(part.code) for part in parts),
        num_swallowed=num_swallowed,
        codes=tuple((record.line, record.code) for record in account.rejected),
        wrong=tuple(f"{case}: {text}" for text in wrong),
    )


@cache
def _label_builder() -> LabelBuilder:
    from train.vocabulary import learn_tokenizer

    return LabelBuilder(learn_tokenizer(TEXTS, unit="character", vocabulary_size=1000), max_positions=64)


def _compare(content: bytes, parts: Sequence[Part], clips: Clips, format: str) -> tuple[list[str], int]:
    """Return what differs from what was planted, and how many damaged lines became part of others."""
    wrong: list[str] = []
    rows = {row.line: row for row in clips.rows}
    refused = {record.line: record for record in clips.rejected}
    places = _places(content, parts)
    good_lines = {line for part, (line, _) in zip(parts, places, strict=True) if part.fields is not None}
    for part, (line, offset) in zip(parts, places, strict=True):
        if part.fields is not None:
            row = rows.get(line)
            if row is None or (row.id, row.byte_offset) != (part.fields["id"], offset):
                wrong.append(f"the good line {line} is {refused.get(line, row)}")
        elif part.code:
            record = refused.get(line)
            found = (record.code, record.byte_offset) if record else None
            if found != (part.code, offset):
                wrong.append(f"line {line} is {found} instead of {(part.code, offset)}: {part.content[:300]!r}")
    lost = _filled_lines(content, format) - rows.keys() - refused.keys()
    if format != "csv" and lost:
        wrong.append(f"lines {sorted(lost)} are gone")
    if lost & good_lines:
        wrong.append(f"good lines {sorted(lost & good_lines)} are gone")
    if (rows.keys() | refused.keys()) - _filled_lines(content, format):
        wrong.append("there are more lines than lines")
    return wrong, len(lost)


def _places(content: bytes, parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Return the line and the byte offset at which each part begins."""
    places = []
    offset = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    end = 2 if content[offset + len(parts[0].content) :].startswith(b"\r") else 1
    for part in parts:
        # The mark belongs to the first line; an offset of it points before the mark.
        places.append((content.count(b"\n", 0, offset) + 1, 0 if part is parts[0] else offset))
        offset += len(part.content) + end
    return places


def _filled_lines(content: bytes, format: str) -> set[int]:
    """Return the lines in which there is anything, but for the header."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if format == "jsonl":
        return {number for number, line in enumerate(lines, start=1) if line.strip()}
    sign = b"," if format == "csv" else b"\t"
    return {number for number, line in enumerate(lines, start=1) if number > 1 and line.rstrip(b"\r").strip(sign)}


def read_all(cases: Sequence[Case]) -> Iterator[tuple[Outcome, int]]:
    """Open damaged manifests in a worker; yield each outcome and the worker's peak memory in KiB."""
    return watch(read_damaged, cases, first=("jsonl", "planted", 0), failed=Outcome, hang_s=HANG_S)


def list_cases(files: int) -> list[Case]:
    """Return (format, kind, number) of every file."""
    return [(format, kind, number) for format in FORMATS for kind in KINDS for number in range(files)]


def digest(outcomes: Sequence[Outcome]) -> str:
    """Hash every code with its line, in order."""
    return hashlib.sha256(repr([(o.failure, o.num_accepted, o.codes) for o in outcomes]).encode()).hexdigest()


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Count lines, codes, and what went wrong."""
    wrong = [text for outcome in outcomes for text in outcome.wrong]
    return {
        "files": len(outcomes),
        "damaged_lines": NUM_DAMAGED * len(outcomes),
        "lines": sum(o.num_lines for o in outcomes),
        "accepted": sum(o.num_accepted for o in outcomes),
        "quarantined": sum(o.num_quarantined for o in outcomes),
        "rejected": sum(o.num_rejected for o in outcomes),
        "crashes": sum(o.failure.startswith("crash") for o in outcomes),
        "hangs_over_10_s": sum(o.failure == "hang" for o in outcomes),
        "escaped": sorted({o.failure for o in outcomes if o.failure.startswith("escaped")}),
        "codes": dict(sorted(Counter(code for o in outcomes for _, code in o.codes).items())),
        "planted_faults": sum(o.num_planted for o in outcomes),
        "damaged_csv_lines_within_the_row_before": sum(o.num_swallowed for o in outcomes),
        "not_as_planted": len(wrong),
        "of_these": wrong[:20],
    }


def main() -> None:
    """Measure and write `results/damaged_manifest.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=42, help="of each format and kind of damage")
    cases = list_cases(parser.parse_args().files)
    digests, peaks, seconds = [], [], []
    for _ in range(2):
        started = time.perf_counter()
        read = list(read_all(cases))
        seconds.append(round(time.perf_counter() - started, 1))
        outcomes = [outcome for outcome, _ in read]
        digests.append(digest(outcomes))
        peaks.append(max(peak_kib for _, peak_kib in read))
        print(digests[-1], f"{seconds[-1]} s", *summarise(outcomes)["of_these"], sep="\n")
    figures = {
        "seed": SEED,
        **summarise(outcomes),
        "same_codes_twice": digests[0] == digests[1],
        "digest": digests[0],
        "worker_peak_gib": round(max(peaks) / 2**20, 3),
        "seconds": seconds,
    }
    from benchmarks.environment import write_result

    write_result("damaged_manifest", figures)


if __name__ == "__main__":
    main()
