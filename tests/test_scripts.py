"""The entry points as a user meets them: a report jiwer agrees with, texts on disk, an export in FP32, clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jiwer
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import scripts.evaluate
import scripts.transcribe
from scripts.evaluate import evaluate_artefact
from scripts.settings import SettingsError, build, compose_config, to_plain
from scripts.transcribe import TranscribeSettings, find_audio, transcribe_files

QUIET = Console(quiet=True)


def evaluate_with(artefact_dir: Path, test: Path, tmp_path: Path, *overrides: str):
    config = compose_config(
        "evaluate",
        [
            f"artefact={artefact_dir}",
            f"dataset.test={test}",
            f"report.dir={tmp_path / 'report'}",
            "decoding.max_new_tokens=12",
            *overrides,
        ],
    )
    return evaluate_artefact(scripts.evaluate.build_settings(config), console=QUIET)


def test_the_report_holds_what_jiwer_finds_in_the_predictions(artefact_dir: Path, corpus: Path, tmp_path: Path):
    evaluate_with(artefact_dir, corpus, tmp_path)
    report = json.loads((tmp_path / "report/report.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "report/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == report["overall"]["utterances"] == 10
    references, hypotheses = [r["reference_norm"] for r in rows], [r["hypothesis_norm"] for r in rows]
    assert report["overall"]["wer"] == pytest.approx(jiwer.wer(references, hypotheses))
    assert report["overall"]["cer"] == pytest.approx(jiwer.cer(references, hypotheses))
    right = sum(row["language"] == row["detected_language"] for row in rows)
    assert report["overall"]["language_accuracy"] == pytest.approx(right / 10)
    assert report["overall"]["rtfx"] > 0
    assert set(report["languages"]) == {"en", "zh", "ja", "ar", "ru"}
    assert report["artefact"]["stored"] == "float16"
    assert report["artefact"]["compute"] == "float32"
    assert report["settings"]["decoding"]["name"] == "greedy"
    weights = artefact_dir / "model.safetensors"
    assert (
        report["artefact"]["sha256"] == json.loads((artefact_dir / "mezzavoce.json").read_text())["files"][weights.name]
    )


def test_figures_are_recorded_in_the_artefact_only_when_asked(artefact_dir: Path, corpus: Path, tmp_path: Path):
    evaluate_with(artefact_dir, corpus, tmp_path)
    assert "evaluation" not in json.loads((artefact_dir / "mezzavoce.json").read_text())
    evaluation = evaluate_with(artefact_dir, corpus, tmp_path, "report.record=true")
    recorded = json.loads((artefact_dir / "mezzavoce.json").read_text())["evaluation"]
    assert recorded["overall"]["wer"] == evaluation.score.overall["wer"]


def test_a_metric_of_our_own_by_folder_agrees(artefact_dir: Path, corpus: Path, tmp_path: Path):
    evaluation = evaluate_with(artefact_dir, corpus, tmp_path, "scoring.metrics=[infer/metrics/cer]")
    ours = {key: value for key, value in evaluation.score.overall.items() if "cer" in key}
    assert ours["cer"] == pytest.approx(evaluation.score.overall["cer"])


def test_loudness_and_noise_are_measured_unless_not_wanted(artefact_dir: Path, corpus: Path, tmp_path: Path):
    found = evaluate_with(artefact_dir, corpus, tmp_path)
    assert all(p.loudness_dbfs is not None and -60 < p.loudness_dbfs < 0 for p in found.predictions)
    assert sum(row["utterances"] for row in found.score.error_by["loudness_dbfs"]) == len(found.predictions)
    plain = evaluate_with(artefact_dir, corpus, tmp_path, "scoring.levels=false")
    assert all(p.loudness_dbfs is None and p.snr_db is None for p in plain.predictions)
    assert plain.score.error_by["loudness_dbfs"] == []


def test_rows_of_another_task_are_refused_before_a_model_is_loaded(corpus: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r":1: the task is transcribe.*type decoding\.task=transcribe"):
        evaluate_with(tmp_path / "no artefact", corpus, tmp_path, "decoding.task=translate")


def test_a_held_out_set_with_a_hole_is_refused(artefact_dir: Path, corpus: Path, tmp_path: Path, write_manifest):
    lines = corpus.read_text(encoding="utf-8").splitlines()
    broken = write_manifest([*lines[:3], lines[3].replace("audio/3.wav", "audio/gone.wav")], "broken.jsonl")
    with pytest.raises(ValueError, match=r"broken\.jsonl:4: \[A01\]"):
        evaluate_with(artefact_dir, broken, tmp_path)


def test_no_test_set_and_no_artefact_say_what_to_type(artefact_dir: Path, corpus: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"dataset\.test=test\.jsonl"):
        evaluate_with(artefact_dir, "[]", tmp_path)
    with pytest.raises(FileNotFoundError, match="export/ folder"):
        evaluate_with(tmp_path / "nowhere", corpus, tmp_path)
    with pytest.raises(SettingsError, match="artefact"):
        scripts.evaluate.build_settings(compose_config("evaluate"))


def transcribe_with(artefact_dir: Path, audio: list[Path], tmp_path: Path, *overrides: str) -> int:
    names = ",".join(str(path) for path in audio)
    options = [f"artefact={artefact_dir}", f"audio=[{names}]", f"output.dir={tmp_path / 'texts'}", *overrides]
    plain = to_plain(compose_config("transcribe", ["decoding.max_new_tokens=12", *options]))
    return transcribe_files(build(TranscribeSettings, plain, path="transcribe"))


def test_every_recording_gets_its_own_files(artefact_dir: Path, write_clip: Callable[..., Path], tmp_path: Path):
    clips = [write_clip("talk.wav", 1.0), write_clip("other/talk.flac", 0.7, hz=300.0), write_clip("x.wav", 0.5)]
    assert transcribe_with(artefact_dir, clips, tmp_path, "formats=[txt,json,srt,vtt]") == 0
    names = {path.name for path in (tmp_path / "texts").iterdir()}
    assert names == {
        f"{stem}.{kind}" for stem in ("talk.wav", "talk.flac", "x") for kind in ("txt", "json", "srt", "vtt")
    }
    assert json.loads((tmp_path / "texts/x.json").read_text())["duration_s"] == pytest.approx(0.5)


def test_a_bad_file_is_named_and_the_others_are_written(
    artefact_dir: Path, write_clip: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio at all")
    assert transcribe_with(artefact_dir, [write_clip("good.wav"), bad], tmp_path) == 1
    assert "bad.wav" in capsys.readouterr().err
    assert (tmp_path / "texts/good.txt").is_file()


def test_audio_is_found_in_folders_and_missing_names_are_said(write_clip: Callable[..., Path], tmp_path: Path):
    clip = write_clip("folder/deep/a.wav")
    (tmp_path / "folder/notes.txt").write_text("no audio")
    assert find_audio((str(tmp_path / "folder"),)) == [clip]
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        find_audio((str(tmp_path / "gone"),))


def test_an_unknown_format_names_the_known_ones(artefact_dir: Path, write_clip: Callable[..., Path], tmp_path: Path):
    with pytest.raises(ValueError, match="txt, json, srt, vtt"):
        transcribe_with(artefact_dir, [write_clip()], tmp_path, "formats=[doc]")


@pytest.mark.usefixtures("fresh_accelerate", "kept_logging")
def test_a_run_exported_again_in_fp32_rounds_to_its_artefact(artefact_dir: Path, corpus: Path, tmp_path: Path):
    from scripts.export import ExportSettings, FinishedRun, TargetSettings, export
    from scripts.train import build_settings
    from train.run import run_training

    overrides = ["model=tiny", f"model.path={artefact_dir}", "dataset=manifest", f"dataset.train={corpus}"]
    small = ["tracker=none", "window.edges_s=[1,3,30]", "trainer.micro_batch_size=4", "trainer.max_steps=2"]
    rest = ["trainer.num_workers=0", "trainer.eval_every_steps=0", "window.full_share=0", f"run.dir={tmp_path / 'run'}"]
    run_training(build_settings(compose_config("train", [*overrides, *small, *rest])))
    settings = ExportSettings(FinishedRun(str(tmp_path / "run")), TargetSettings(str(tmp_path / "fp32"), "fp32"))
    (exported,) = export(settings, console=QUIET)
    target = tmp_path / "fp32"
    assert exported.path == target
    full, half = load_file(target / "model.safetensors"), load_file(tmp_path / "run/export/model.safetensors")
    assert {tensor.dtype for tensor in full.values()} == {torch.float32}
    assert full.keys() == half.keys()
    assert all(torch.equal(full[name].half(), half[name]) for name in half)
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000
