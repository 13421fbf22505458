"""Many sets and artefacts in one command: each figure where it belongs, who is better, what was forgotten, by jiwer."""

from __future__ import annotations

import json
from pathlib import Path

import jiwer
import pytest
import torch
from rich.console import Console

import scripts.evaluate
from data.sources import Source
from data.windows import build_windows
from infer.artefact import write_artefact
from infer.half import cast_to_half
from infer.score.contest import Entry, find_forgetting, hold_duels, losers, render_contest
from infer.score.evaluation import Prediction, score_predictions
from infer.score.sets import name_artefacts, name_sets, read_sets
from infer.transcriber import Transcriber
from infer.weights import file_sha256
from scripts.evaluate import evaluate_all, find_targets, show
from scripts.settings import compose_config
from train.tracked_report import build_tables

QUIET = Console(quiet=True)


@pytest.fixture
def two_artefacts(lively, tokenizer, tmp_path: Path) -> list[Path]:
    """Two artefacts that hear differently."""
    folders = []
    for name in ("first", "second"):
        with torch.no_grad():
            lively.model.decoder.layers[0].fc1.weight.mul_(1.0 if name == "first" else -1.0)
        folders.append(
            write_artefact(
                tmp_path / name / "export",
                cast_to_half(lively.state_dict()),
                config=lively.config,
                generation_config=lively.generation_config,
                tokenizer=tokenizer,
                windows=build_windows([1, 3, 30]),
                record={},
            )
        )
    return folders


@pytest.fixture
def two_sets(corpus: Path) -> list[Path]:
    """The corpus in two sets of five clips."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    paths = []
    for name, part in (("new", lines[:5]), ("old", lines[5:])):
        path = corpus.with_name(f"{name}.jsonl")
        path.write_text("\n".join(part) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def settings_for(artefacts, sets, tmp_path: Path, *overrides: str):
    names, paths = ",".join(map(str, artefacts)), ",".join(map(str, sets))
    fixed = [f"artefact=[{names}]", f"dataset.test=[{paths}]", f"report.dir={tmp_path / 'report'}"]
    config = compose_config("evaluate", [*fixed, "decoding.max_new_tokens=12", *overrides])
    return scripts.evaluate.build_settings(config)


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(folder: Path):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_artefact_and_set_has_its_report_and_all_have_one_comparison(two_artefacts, two_sets, tmp_path: Path):
    settings = settings_for(two_artefacts, two_sets, tmp_path, "retention.targets=[new]")
    findings = evaluate_all(settings, console=QUIET)
    report = tmp_path / "report"
    for name in ("first", "second"):
        whole = rows_of(report / name)
        assert [row["id"] for row in whole] == [f"c{i}" for i in range(10)]
        for part, ids in (("new", range(5)), ("old", range(5, 10))):
            own = rows_of(report / name / "sets" / part)
            assert [row["id"] for row in own] == [f"c{i}" for i in ids]
            expected = jiwer.cer([r["reference_norm"] for r in own], [r["hypothesis_norm"] for r in own])
            assert read(report / name / "sets" / part / "report.json")["overall"]["cer"] == pytest.approx(expected)
    comparison = read(report / "comparison.json")
    duel = comparison["duels"][0]
    assert (duel["before"], duel["after"], set(duel["sets"])) == ("first", "second", {"new", "old"})
    rates = [read(report / name / "report.json")["overall"]["headline"] for name in ("first", "second")]
    assert rates[0] != rates[1]
    assert duel["overall"]["difference"] == pytest.approx(rates[1] - rates[0])
    kept = comparison["retention"][0]["kept"]
    assert set(kept) == {f"old/{code}" for code in ("en", "zh", "ja", "ar", "ru")}
    by_hand = sum(found["after"] - found["before"] for found in kept.values()) / 5
    assert comparison["retention"][0]["figure"] == pytest.approx(by_hand)
    assert (report / "report.html").stat().st_size > 20_000
    assert not list(report.rglob("partial-*"))
    console = Console(record=True, width=140, file=None, quiet=False)
    with console.capture() as captured:
        show(findings, console)
    assert "second" in captured.get() and "p = " in captured.get()


def test_one_artefact_and_one_set_write_what_they_always_wrote(two_artefacts, two_sets, tmp_path: Path):
    config = [f"artefact={two_artefacts[0]}", f"dataset.test={two_sets[0]}", f"report.dir={tmp_path / 'report'}"]
    config += ["report.record=true"]
    settings = scripts.evaluate.build_settings(compose_config("evaluate", [*config, "decoding.max_new_tokens=12"]))
    evaluate_all(settings, console=QUIET)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.json",
        "predictions.jsonl",
        "report.html",
    }
    report = read(tmp_path / "report/report.json")
    assert report.keys() >= {"artefact", "overall", "languages", "settings"}
    assert report["settings"]["test"] == [str(two_sets[0])]
    recorded = read(two_artefacts[0] / "mezzavoce.json")["evaluation"]
    assert recorded["artefact_sha256"] == file_sha256(two_artefacts[0] / "model.safetensors")
    assert recorded["overall"] == report["overall"]


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(two_artefacts, two_sets, tmp_path: Path, monkeypatch):
    whole = evaluate_all(settings_for(two_artefacts[:1], two_sets[:1], tmp_path / "whole"), console=QUIET)
    original = Transcriber.stream
    asked: list[int] = []

    def stream(self, sources, *, languages=None, on_progress=None):
        asked.append(len(sources))
        for count, item in enumerate(original(self, sources, languages=languages, on_progress=on_progress)):
            if len(asked) == 1 and count == 2:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(Transcriber, "stream", stream)
    settings = settings_for(two_artefacts[:1], two_sets[:1], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all(settings, console=QUIET)
    assert len(list((tmp_path / "report").glob("partial-*.jsonl"))) == 1
    again = evaluate_all(settings, console=QUIET)
    assert asked == [5, 3]
    assert [p.hypothesis for p in again.entries[0].predictions] == [p.hypothesis for p in whole.entries[0].predictions]
    assert not list((tmp_path / "report").glob("partial-*.jsonl"))


def test_short_names():
    def names(*paths):
        return name_sets([Source(path) for path in paths])

    assert names("a/clinic/test.jsonl", "a/home/test.jsonl") == ["clinic", "home"]
    assert names("x/new.jsonl", "y/old.jsonl") == ["new", "old"]
    assert names("x/test.jsonl", "x/dev.jsonl", "y/test.jsonl") == ["x-test", "x-dev", "y-test"]
    assert name_artefacts(["runs/a/export", "runs/b/export", "base"]) == ["a", "b", "base"]
    assert name_artefacts(["runs/a/export", "runs/a/export-fp32", "x/a/export"]) == ["a", "a-export-fp32", "a-2"]


def test_an_id_in_two_sets_is_refused(two_sets):
    with pytest.raises(ValueError, match=r"'c0' stands in .*new\.jsonl:1 and in"):
        read_sets([Source(str(two_sets[0])), Source(str(two_sets[0]))])


def test_a_hole_in_any_set_stops_before_anything_is_scored(two_artefacts, two_sets, tmp_path: Path):
    text = two_sets[1].read_text(encoding="utf-8").replace("audio/7.wav", "audio/gone.wav")
    two_sets[1].write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"old\.jsonl:3: \[A01\]"):
        evaluate_all(settings_for(two_artefacts, two_sets, tmp_path), console=QUIET)
    assert not (tmp_path / "report").exists()


def test_a_damaged_artefact_is_named(two_artefacts, two_sets, tmp_path: Path):
    weights = two_artefacts[1] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"second/export/model\.safetensors is not the file"):
        evaluate_all(settings_for(two_artefacts, two_sets[:1], tmp_path), console=QUIET)


def test_what_retention_needs_is_asked_for(two_artefacts, two_sets, tmp_path: Path):
    with pytest.raises(ValueError, match=r"artefact=\[BEFORE,AFTER\]"):
        settings_for(two_artefacts[:1], two_sets, tmp_path, "retention.targets=[new]")
    for targets in ("clinic", "new/xx"):
        settings = settings_for(two_artefacts, two_sets, tmp_path, f"retention.targets=[{targets}]")
        with pytest.raises(ValueError, match=f"retention.targets={targets} is neither.*known are .*new.*old"):
            evaluate_all(settings, console=QUIET)
        assert not (tmp_path / "report").exists()  # said before an hour of decoding, not after
    settings = settings_for(two_artefacts, two_sets[:1], tmp_path, f"retention.sets=[{two_sets[1]}]")
    assert find_targets(settings, ["new", "old"]) == {"new"}
    assert [Path(source.path).stem for source in settings.sources()] == ["new", "old"]


def entry(name: str, wrong: dict[str, int]) -> Entry:
    """An artefact that hears the first words of each group wrong: 40 clips of three words in each."""
    sets = {}
    predictions = []
    for group in ("new/de", "new/fr", "old/de", "old/fr"):
        test_set, language = group.split("/")
        found = [
            Prediction(
                id=f"{group}/{i}",
                language=language,
                detected_language=language,
                reference="rot grün blau",
                hypothesis="rot grün grau" if i < wrong[group] else "rot grün blau",
                duration_s=2.0,
                test_set=test_set,
            )
            for i in range(40)
        ]
        sets.setdefault(test_set, []).extend(found)
        predictions += found
    return Entry(
        name,
        {"path": name, "sha256": name},
        score_predictions(predictions, processing_s=1.0),
        {key: score_predictions(part, processing_s=1.0) for key, part in sets.items()},
        tuple(predictions),
    )


BEFORE = entry("base", {"new/de": 30, "new/fr": 30, "old/de": 2, "old/fr": 2})
AFTER = entry("tuned", {"new/de": 3, "new/fr": 3, "old/de": 2, "old/fr": 20})


def test_who_is_better_and_for_whom_it_is_worse():
    (duel,) = hold_duels([BEFORE, AFTER])
    assert duel.sentence.startswith("tuned is better than base: 13.33 to 5.83 %, -7.50 points")
    assert [name.split(" ")[0] for name in losers(duel)] == ["old/fr"]
    assert duel.sets["new"].overall is not None and duel.sets["new"].overall.verdict == "better"
    table = render_contest([BEFORE, AFTER], [duel])
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table)
    assert "-22.50" in captured.get() and "+7.50" in captured.get()


def test_forgetting_is_the_mean_of_what_was_not_targeted_and_warns_above_the_threshold():
    (lost,) = find_forgetting([BEFORE, AFTER], targets={"new"}, max_forgetting=0.005)
    assert lost.figure == pytest.approx((0 + 18 / 120) / 2)
    assert lost.is_too_much and lost.retention.lost == ("old/fr",)
    assert "forgot" in lost.sentence and "+7.50 points" in lost.sentence
    (same,) = find_forgetting([BEFORE, BEFORE], targets={"new"}, max_forgetting=0.005)
    assert not same.is_too_much and same.figure == 0
    (everything,) = find_forgetting([BEFORE, AFTER], targets={"new", "old"}, max_forgetting=0.005)
    assert everything.figure is None and not everything.is_too_much


def test_a_rise_above_the_threshold_warns_even_where_no_single_language_is_sure():
    slightly = entry("tuned", {"new/de": 30, "new/fr": 30, "old/de": 4, "old/fr": 4})
    (lost,) = find_forgetting([BEFORE, slightly], targets={"new"}, max_forgetting=0.005)
    assert not lost.retention.lost and lost.is_too_much
    assert "+1.67 points" in lost.sentence
    (borne,) = find_forgetting([BEFORE, slightly], targets={"new"}, max_forgetting=0.02)
    assert not borne.is_too_much


def test_the_tables_of_the_tracker_hold_the_same_figures():
    duels = hold_duels([BEFORE, AFTER])
    tables = build_tables([BEFORE, AFTER], duels, find_forgetting([BEFORE, AFTER], targets={"new"}, max_forgetting=0.1))
    head, rows = tables["languages"]
    (row,) = [dict(zip(head, r, strict=True)) for r in rows if r[:3] == ["tuned", "old", "fr"]]
    assert row["wer"] == pytest.approx(20 / 120) and row["low"] < row["wer"] < row["high"]
    assert all(len(r) == len(head) for head, rows in tables.values() for r in rows)
    assert dict(zip(tables["retention"][0], tables["retention"][1][1], strict=True))["lost"] is True
