"""A set scored by several processes, or in several starts, gives the predictions of one; damage is not believed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, tone

from data.rows import Row
from data.sources import Source
from infer.artefact import Artefact, load_artefact
from infer.decoding import DecodeSettings
from infer.score.held_out import read_held_out, transcribe_rows
from infer.score.partial import PartialPredictions, held_out_sha256
from infer.score.sharing import Share
from infer.transcriber import Transcriber

SETTINGS = DecodeSettings(max_new_tokens=12)


@pytest.fixture
def artefact(lay_artefact: Any, tmp_path: Path) -> Artefact:
    return load_artefact(lay_artefact(tmp_path / "export", (1, 2, 30)))


@pytest.fixture
def rows(corpus: Path) -> tuple[Row, ...]:
    return read_held_out([Source(str(corpus))])


def _transcriber(artefact: Artefact, **options: Any) -> Transcriber:
    return Transcriber(artefact, dataclasses.replace(SETTINGS, **options), batch_size=2)


def test_the_clock_counts_features_search_and_text(artefact: Artefact, rows: tuple[Row, ...]) -> None:
    transcriber = _transcriber(artefact)
    predictions, processing_s = transcribe_rows(transcriber, rows, test_set="made")
    assert [p.id for p in predictions] == [row.id for row in rows]
    assert [p.reference for p in predictions] == [row.text for row in rows]
    assert {p.test_set for p in predictions} == {"made"}
    assert len({p.hypothesis for p in predictions}) > 3
    assert processing_s == pytest.approx(transcriber.processing_s)
    again, more_s = transcribe_rows(transcriber, rows, test_set="made")
    assert again == predictions
    assert transcriber.processing_s == pytest.approx(processing_s + more_s)
    transcriber.warm_up()
    assert transcriber.processing_s == pytest.approx(processing_s + more_s)


def test_a_language_that_was_only_given_was_not_detected(artefact: Artefact, rows: tuple[Row, ...]) -> None:
    given, _ = transcribe_rows(_transcriber(artefact, language="en", detect_language=False), rows)
    both, _ = transcribe_rows(_transcriber(artefact, language="en"), rows)
    assert {p.detected_language for p in given} == {None}
    assert None not in {p.detected_language for p in both}
    assert [p.hypothesis for p in given] == [p.hypothesis for p in both]


def test_parts_are_about_as_long_and_together_the_whole() -> None:
    sizes = [3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 0.5]
    parts = [Share(rank, 3).part(sizes) for rank in range(3)]
    assert sorted(i for part in parts for i in part) == list(range(7))
    seconds = [sum(sizes[i] for i in part) for part in parts]
    assert max(seconds) - min(seconds) < 1
    whole = Share(1, 3, gather=lambda _: [{i: f"{i}" for i in part} for part in parts]).whole({}, 7)
    assert whole == [str(i) for i in range(7)]
    with pytest.raises(RuntimeError, match="6 of 7 items came together, the first missing is \\[4\\]"):
        Share(0, 2, gather=lambda _: [{0: 0, 1: 1, 2: 2}, {3: 3, 5: 5, 6: 6}]).whole({}, 7)
    with pytest.raises(RuntimeError, match="item 2 was done by two processes"):
        Share(0, 2, gather=lambda _: [{0: 0, 1: 1, 2: 2}, {2: 2, 3: 3}]).whole({}, 4)
    with pytest.raises(ValueError, match="rank=2 must lie in 0 to 1"):
        Share(2, 2)


PROGRAM = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
from data.sources import Source
from infer.artefact import load_artefact
from infer.decoding import DecodeSettings
from infer.score.held_out import read_held_out, transcribe_rows
from infer.score.sharing import torch_share
from infer.transcriber import Transcriber
rows = read_held_out([Source(sys.argv[4])])
transcriber = Transcriber(load_artefact(sys.argv[3]), DecodeSettings(max_new_tokens=12), batch_size=2)
heard = []
predictions, seconds = transcribe_rows(
    transcriber, rows, share=torch_share(), partial_dir=Path(sys.argv[5]), on_progress=heard.append
)
print(json.dumps([[p.id, p.hypothesis, p.detected_language] for p in predictions] + [sum(heard), seconds]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_give_the_report_of_one(artefact: Artefact, rows: tuple[Row, ...], tmp_path: Path) -> None:
    """Real ones, over gloo; what a start before them has left is done once."""
    expected, _ = transcribe_rows(_transcriber(artefact), rows)
    partial_dir = tmp_path / "report"
    left = PartialPredictions(partial_dir, rows, artefact=_key(artefact), settings=_settings())
    left.append([expected[3]], processing_s=2.0)
    arguments = [str(tmp_path / "meeting"), str(artefact.path), str(rows[0].manifest), str(partial_dir)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), *arguments],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in running]
    (*first, first_heard, first_s), (*second, second_heard, second_s) = found
    assert first == second == [[p.id, p.hypothesis, p.detected_language] for p in expected]
    assert (first_heard, second_heard) == (6, 4)  # nine clips were left, and one was found
    assert first_s == second_s > 2.0
    assert list(partial_dir.glob("partial-*")) == []


def _key(artefact: Artefact) -> dict[str, Any]:
    return {key: artefact.describe()[key] for key in ("sha256", "compute", "device", "windows_s")}


def _settings() -> dict[str, Any]:
    return {**dataclasses.asdict(SETTINGS), "test_set": None}


@pytest.fixture
def stopped(artefact: Artefact, rows: tuple[Row, ...], tmp_path: Path) -> Path:
    """The folder of an evaluation that was stopped after six clips."""
    count = 0

    def stop(num_done: int) -> None:
        nonlocal count
        count += num_done
        if count > 6:
            raise KeyboardInterrupt

    folder = tmp_path / "report"
    with pytest.raises(KeyboardInterrupt):
        transcribe_rows(_transcriber(artefact), rows, partial_dir=folder, on_progress=stop)
    (file,) = folder.glob("partial-*.jsonl")
    assert len(file.read_text().splitlines()) == 6
    return folder


def test_a_stopped_evaluation_goes_on(artefact: Artefact, rows: tuple[Row, ...], stopped: Path) -> None:
    expected, _ = transcribe_rows(_transcriber(artefact), rows)
    steps: list[int] = []
    transcriber = _transcriber(artefact)
    found, processing_s = transcribe_rows(transcriber, rows, partial_dir=stopped, on_progress=steps.append)
    assert found == expected
    assert (steps[0], sum(steps)) == (6, 10)
    assert processing_s > transcriber.processing_s  # the time of the first start is in it
    assert list(stopped.iterdir()) == []


@pytest.mark.parametrize("change", ["settings", "artefact", "set", "text"])
def test_another_evaluation_begins_anew(
    artefact: Artefact, rows: tuple[Row, ...], stopped: Path, change: str, write_clip: Callable[..., Path]
) -> None:
    steps: list[int] = []
    used, options, scored = artefact, {}, list(rows)
    if change == "settings":
        options = {"max_new_tokens": 11}
    elif change == "artefact":
        used = dataclasses.replace(artefact, sha256="0" * 64)
    elif change == "set":
        scored = scored[:-1]
    else:
        scored[0] = dataclasses.replace(scored[0], text="something else")
    transcribe_rows(_transcriber(used, **options), scored, partial_dir=stopped, on_progress=steps.append)
    assert max(steps) <= 2
    assert len(list(stopped.glob("partial-*"))) == 1  # that of the one that was stopped


def test_half_a_line_is_dropped_and_written_again(artefact: Artefact, rows: tuple[Row, ...], stopped: Path) -> None:
    (file,) = stopped.glob("partial-*.jsonl")
    content = file.read_bytes()
    file.write_bytes(content[:-40])
    partial = PartialPredictions(stopped, rows, artefact=_key(artefact), settings=_settings())
    known = partial.read()
    assert len(known.predictions) == 5
    partial.append(list(known.predictions.values())[:1], processing_s=0.0)
    assert len(partial.read().predictions) == 5
    found, _ = transcribe_rows(_transcriber(artefact), rows, partial_dir=stopped)
    assert found == transcribe_rows(_transcriber(artefact), rows)[0]


@pytest.mark.parametrize("damage", ["bit", "text", "stranger"])
def test_a_damaged_line_stops_with_its_place(
    artefact: Artefact, rows: tuple[Row, ...], stopped: Path, damage: str
) -> None:
    (file,) = stopped.glob("partial-*.jsonl")
    lines = file.read_text().splitlines()
    if damage == "bit":
        lines[1] = lines[1].replace('hypothesis\\": \\"', 'hypothesis\\": \\"x', 1)
    else:
        partial = PartialPredictions(stopped, rows, artefact=_key(artefact), settings=_settings(), rank=1)
        prediction = next(iter(partial.read().predictions.values()))
        changes = {"reference": "better"} if damage == "text" else {"id": "unknown"}
        partial.append([dataclasses.replace(prediction, **changes)], processing_s=0.0)
        (other,) = set(stopped.glob("partial-*.jsonl")) - {file}
        lines[1] = other.read_text().rstrip()
        other.unlink()
    file.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(RuntimeError, match=rf"{file.name}:2 is damaged .*; delete the file to start anew"):
        transcribe_rows(_transcriber(artefact), rows, partial_dir=stopped)


def test_without_a_hash_nothing_is_kept(artefact: Artefact, rows: tuple[Row, ...], tmp_path: Path) -> None:
    nameless = dataclasses.replace(artefact, sha256="")
    with pytest.raises(ValueError, match="an artefact with a hash"):
        transcribe_rows(_transcriber(nameless), rows, partial_dir=tmp_path)


def test_the_hash_of_a_set_sees_what_is_scored(rows: tuple[Row, ...]) -> None:
    known = held_out_sha256(rows)
    assert held_out_sha256(rows) == known
    for changes in ({"text": "x"}, {"language": "fr"}, {"id": "x"}, {"offset_s": 0.1}, {"task": "translate"}):
        assert held_out_sha256([dataclasses.replace(rows[0], **changes), *rows[1:]]) != known
    assert held_out_sha256(rows[::-1]) != known
    moved = [dataclasses.replace(row, audio=Path("/elsewhere") / Path(row.audio).name) for row in rows]
    assert held_out_sha256(moved) == known


def test_a_budget_of_seconds_makes_short_windows_share_larger_batches(artefact: Artefact) -> None:
    sizes: list[int] = []
    transcriber = Transcriber(artefact, SETTINGS, batch_size=6, batch_audio_s=8.0)
    sources = [tone(0.5, seed=i) for i in range(8)] + [tone(1.5, seed=i) for i in range(5)] + [tone(3.0)] * 2
    transcriber.transcribe(sources, on_progress=sizes.append)
    assert sizes == [
        1,
        1,
        4,
        1,
        6,
        2,
    ]  # 30 s are above the budget alone, four times 2 s fill it, six clips are the most
    with pytest.raises(ValueError, match="batch_audio_s=0"):
        Transcriber(artefact, SETTINGS, batch_audio_s=0)


def test_a_set_is_scored_whole_or_not_at_all(tmp_path: Path) -> None:
    for cap in ({"max_clips": 2}, {"max_hours": 0.1}):
        with pytest.raises(ValueError, match="scored whole"):
            read_held_out([Source(str(tmp_path / "test.jsonl"), **cap)])
