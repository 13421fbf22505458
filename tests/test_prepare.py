"""`scripts/prepare.py` as a user meets it: files, exit codes, what is said where something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import PROJECT
from rich.console import Console

import scripts.prepare
from scripts.prepare import build_settings, load_label_builder, prepare_corpus, read_split, show_report
from scripts.settings import SettingsError, compose_config

QUIET = Console(quiet=True)


def prepare(tmp_path, *overrides):
    given = ["dataset=manifest", *overrides]
    settings = build_settings(compose_config("prepare", [*given, f"report.dir={tmp_path / 'report'}"]))
    return prepare_corpus(settings, console=QUIET, command=given)


def run(tmp_path, *overrides):
    command = [sys.executable, str(PROJECT / "scripts/prepare.py"), *overrides, f"report.dir={tmp_path / 'report'}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False, timeout=120
    )


def test_a_clean_corpus_gets_its_files_and_a_command(corpus, tmp_path):
    report = prepare(tmp_path, f"dataset.train={corpus}")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        "report.html",
        "report.json",
        "overview.png",
        "findings.jsonl",
        "quarantine.jsonl",
        "scan.jsonl",
    }
    record = json.loads((tmp_path / "report/report.json").read_text())
    assert record["totals"]["accepted"] == 10
    assert sum(record["quantities"]["label_tokens"]["counts"]["train"]) == 10
    assert f"scripts/train.py \\\n  dataset=manifest \\\n  dataset.train={corpus}" in record["command"]
    assert report.is_ready


def test_the_suggested_edges_are_ones_that_training_takes(corpus, tmp_path):
    report = prepare(tmp_path, "model=large_v3", f"model.path={PROJECT / 'data/demo/base'}", f"dataset.train={corpus}")
    overrides = [line.strip(" \\'") for line in report.record["command"].splitlines()[1:]]
    assert any(text.startswith("window.edges_s=[") for text in overrides)
    from scripts.train import build_settings as build_train_settings

    settings = build_train_settings(compose_config("train", overrides))
    assert list(settings.window.edges_s) == report.record["windows"]["suggested_edges_s"]


def test_exit_codes_are_0_when_ready_1_when_not_and_2_for_a_mistake(corpus, write_clip, write_manifest, tmp_path):
    write_clip("audio/other.wav", 1.0, seed=50)
    other = {"audio": "audio/other.wav", "text": "four five", "language": "en"}
    good = write_manifest([other], "good.jsonl")
    leaking = write_manifest([other, {"audio": "audio/0.wav", "text": "six", "language": "en"}], "leaking.jsonl")
    ready = run(tmp_path, "dataset=manifest", f"dataset.train={corpus}", f"dataset.test={good}")
    assert ready.returncode == 0, ready.stderr
    assert "Ready to train" in ready.stdout
    not_ready = run(tmp_path, "dataset=manifest", f"dataset.train={corpus}", f"dataset.test={leaking}")
    assert not_ready.returncode == 1, not_ready.stderr
    assert "Not ready: 1 thing to mend first" in not_ready.stdout
    mistake = run(tmp_path, "dataset=manifest", "dataset.train=nowhere.jsonl")
    assert mistake.returncode == 2
    assert "nowhere.jsonl" in mistake.stderr and "Traceback" not in mistake.stderr


def test_a_model_out_of_reach_costs_only_its_token_counts(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    report = prepare(tmp_path, "model=large_v3", "model.path=nobody/nothing", f"dataset.train={corpus}")
    assert report.is_ready
    assert report.record["quantities"]["label_tokens"] is None
    assert "nobody/nothing" in report.record["remark"] and "model.path=FOLDER" in report.record["remark"]
    assert "nobody/nothing" in (tmp_path / "report/report.html").read_text(encoding="utf-8")


def test_the_weights_of_the_model_are_never_opened(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (PROJECT / "data/demo/base").iterdir():
        if path.suffix == ".json" or path.name == "merges.txt":
            (folder / path.name).write_bytes(path.read_bytes())
    assert not list(folder.glob("*.safetensors"))
    report = prepare(tmp_path, f"model.path={folder}", f"dataset.train={corpus}")
    assert report.record["quantities"]["label_tokens"] is not None


def test_a_tokenizer_that_is_learnt_counts_as_well(corpus, tmp_path):
    settings = build_settings(
        compose_config("prepare", ["model=scratch", "dataset=manifest", f"dataset.train={corpus}"])
    )
    builder, remark = load_label_builder(settings.model, [read_split(settings.dataset, "train")])
    assert builder is not None and remark == ""


def test_sources_that_are_replayed_belong_to_train_and_one_named_twice_is_read_once(corpus, write_manifest, write_clip):
    write_clip("audio/old.wav", 1.0, seed=51)
    old = write_manifest([{"audio": "audio/old.wav", "text": "old", "language": "en"}], "old.jsonl")
    overrides = ["dataset=manifest", f"dataset.train=[{corpus},{corpus}]", f"dataset.replay=[{old}]"]
    settings = build_settings(compose_config("prepare", [*overrides, "dataset.replay_share=0.1"]))
    assert len(read_split(settings.dataset, "train").rows) == 11


def test_speakers_are_an_error_only_where_the_corpus_claims_otherwise(write_clip, write_manifest, tmp_path):
    for i in range(4):
        write_clip(f"{i}.wav", 1.0, seed=i, hz=200.0 + 50 * i)
    rows = [{"audio": f"{i}.wav", "text": f"text {i}", "language": "en", "speaker": "anna"} for i in range(4)]
    train, test = write_manifest(rows[:3], "train.jsonl"), write_manifest(rows[3:], "test.jsonl")
    splits = [f"dataset.train={train}", f"dataset.test={test}"]
    assert prepare(tmp_path, *splits).is_ready
    assert not prepare(tmp_path, *splits, "prepare.speakers_disjoint=true").is_ready


def test_the_terminal_shows_texts_without_taking_them_for_markup(write_clip, write_manifest, tmp_path, capsys):
    write_clip()
    bad = write_manifest([{"audio": "[red]gone[/red].wav", "text": "[bold]x", "language": "en"}], "x.jsonl")
    report = prepare(tmp_path, f"dataset.train={bad}")
    show_report(report, tmp_path / "[i]", Console(width=200))
    assert "[i]" in capsys.readouterr().out


def test_no_split_and_unknown_keys_say_what_to_type():
    with pytest.raises(SettingsError, match=r"dataset\.train=train\.jsonl"):
        build_settings(compose_config("prepare", ["dataset=manifest"]))
    with pytest.raises(SettingsError, match=r"prepare\.speakers_disjoint=3"):
        build_settings(compose_config("prepare", ["prepare.speakers_disjoint=3"]))


def test_a_stopped_scan_says_that_it_goes_on(corpus, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.preflight.scan.measure_clips", stop)
    overrides = ["dataset=manifest", f"dataset.train={corpus}", f"report.dir={tmp_path / 'report'}"]
    with pytest.raises(KeyboardInterrupt):
        scripts.prepare.main.__wrapped__(compose_config("prepare", overrides))
    assert "goes on from there" in capsys.readouterr().out


def test_real_speech_is_ready_and_no_leak_is_invented(speech, tmp_path):
    folder = speech / "ljspeech_en"
    report = prepare(tmp_path, f"dataset.test=[{folder / 'test.jsonl'},{folder / 'longform.jsonl'}]")
    assert report.findings == ()
    assert report.record["verdict"]["headline"] == "Ready to score"
    assert report.record["totals"]["accepted"] == 36


def test_noise_is_no_data_set(speech, tmp_path):
    report = prepare(tmp_path, f"dataset.train={speech / 'noise_and_rirs/manifest.jsonl'}")
    assert "no transcripts" in report.findings[0].title
    assert not report.is_ready
