"""Whatever is done to a line of a manifest, it is taken or refused with its code and line, and costs no other line.

A sample of `benchmarks/damaged_manifest.py`: 480 damaged lines, in a worker process under a watch.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.damaged_lines import FORMATS, KINDS, NUM_DAMAGED, NUM_GOOD, Part, make_manifest
from benchmarks.damaged_manifest import _compare, _label_builder, digest, list_cases, read_all, read_damaged, summarise
from data.dataset import open_clips
from data.reasons import Reason
from data.sources import Source


def test_damaged_lines_are_taken_or_refused_with_their_code_and_line(tmp_path: Path) -> None:
    cases = list_cases(2)
    assert len(cases) == 2 * len(FORMATS) * len(KINDS)
    outcomes = [outcome for outcome, _ in read_all(cases)]
    figures = summarise(outcomes)
    assert (figures["crashes"], figures["hangs_over_10_s"], figures["escaped"]) == (0, 0, [])
    assert figures["of_these"] == []
    assert figures["accepted"] + figures["quarantined"] + figures["rejected"] == figures["lines"]
    assert figures["planted_faults"] == NUM_DAMAGED * len(cases) // 2
    assert figures["accepted"] >= NUM_GOOD * len(cases)
    assert figures["codes"].keys() <= {reason.code for reason in Reason}
    assert digest(outcomes) == digest([read_damaged(case, tmp_path) for case in cases])


def test_the_comparison_sees_a_wrong_code_a_lost_line_and_a_refused_good_one(tmp_path: Path) -> None:
    content, parts = make_manifest("jsonl", "planted", 0)
    read_damaged(("jsonl", "planted", 0), tmp_path)  # writes the clip
    path = tmp_path / "train.jsonl"
    clips = open_clips([Source(str(path))], _label_builder(), on_bad="report", max_bad_share=0.0)
    assert _compare(content, parts, clips, "jsonl") == ([], 0)
    place = next(i for i, part in enumerate(parts) if part.code)
    planted = [*parts[:place], Part(parts[place].content, "A99"), *parts[place + 1 :]]
    assert "instead of ('A99'" in _compare(content, planted, clips, "jsonl")[0][0]
    good = next(i for i, part in enumerate(parts) if part.fields)
    assert parts[good].fields is not None
    other = [*parts[:good], Part(parts[good].content, fields={"id": "other"}), *parts[good + 1 :]]
    assert "the good line" in _compare(content, other, clips, "jsonl")[0][0]
    assert "are gone" in _compare(content + b"\n{}", parts, clips, "jsonl")[0][0]
