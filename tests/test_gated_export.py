"""An export is judged where it was built: it lands in its place with figures and a card, or in `rejected/`."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import infer.gate.parity
import infer.gate.runtimes
from data.settings import DatasetSettings
from data.sources import Source
from infer.artefact import amend_record, load_artefact
from infer.decode_settings import DecodeSettings
from infer.export.hub import HubSettings
from infer.gate.settings import GateSettings
from infer.score.held_out import read_held_out, transcribe_rows
from infer.transcriber import Transcriber
from scripts.export import ExportSettings, FinishedRun, TargetSettings, export_judged
from scripts.gate import GateRequest, MadeFormat
from scripts.gated import find_clips
from scripts.settings import build, compose_config, to_plain

QUIET = Console(quiet=True)
DECODING = DecodeSettings(max_new_tokens=4)
GATE = GateSettings(clips=3, half_clips=1, latency_clips=1)


@pytest.fixture
def settings(lay_artefact, corpus, tmp_path: Path) -> ExportSettings:
    """An export of a tiny artefact in Hugging Face's format."""
    artefact = lay_artefact(tmp_path / "made/export")
    amend_record(artefact, run="tiny")
    return ExportSettings(
        FinishedRun(),
        TargetSettings(str(tmp_path / "exports")),
        artefact=str(artefact),
        gate=GATE,
        dataset=DatasetSettings("manifest", (), test=(str(corpus),)),
        decoding=DECODING,
    )


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Ask in this process what fresh ones are asked, with sounds of a second."""

    def measure(request, folder):
        rows = read_held_out([Source(**source) for source in request.sources])
        predictions, processing_s = transcribe_rows(Transcriber(load_artefact(request.artefact), DECODING), rows)
        return {"predictions": [dataclasses.asdict(p) for p in predictions], "processing_s": processing_s}

    monkeypatch.setattr("infer.gate.parity.measure_in_process", measure)
    monkeypatch.setattr("infer.gate.parity.made_sounds", lambda: {"silence": np.zeros(16_000, dtype=np.float32)})
    monkeypatch.setattr(
        "infer.gate.parity.measure_headroom", partial(infer.gate.parity.measure_headroom, num_frames=100)
    )
    monkeypatch.setattr("infer.gate.parity.FULL_CLIPS", 1)
    hears(monkeypatch, lambda text: text)


def hears(monkeypatch, change):
    """Let the transformers pipeline hear the reference text, changed; ours hears it as it is."""

    def ask(request, scratch):
        rows = read_held_out([Source(**source) for source in request.sources])
        texts = {row.id: change(row.text) if request.client == "transformers" else row.text for row in rows}
        figures = dict.fromkeys(infer.gate.runtimes.FIGURES, 1.0)
        return {"texts": texts, "languages": {row.id: row.language for row in rows}, **figures}

    monkeypatch.setattr(infer.gate.runtimes, "run_client_in_process", ask)


def test_what_passes_stands_in_its_place_with_figures_table_and_card(settings, tmp_path):
    assert export_judged(settings, console=QUIET) == 0
    place = tmp_path / "exports"
    assert load_artefact(place).record["gate"]["verdict"] == "passed"  # and every hash holds
    evaluation = load_artefact(place).record["evaluation"]
    assert evaluation["artefact_sha256"] == load_artefact(place).sha256
    assert json.loads((place / "gate.json").read_text())["evaluation"] == json.loads(json.dumps(evaluation))
    assert "transformers pipeline" in (place / "gate.md").read_text()
    card = (place / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for text in ("# tiny", "| mean |", "FP16 against strict FP32", "transformers pipeline", 'language: ["'):
        assert text in card
    assert str(tmp_path) not in card
    assert not list(tmp_path.glob(".tmp-*"))


def test_what_misses_is_rejected_with_its_reason_or_forced_with_a_mark(settings, monkeypatch, tmp_path):
    hears(monkeypatch, lambda text: f"{text} more words than were said")
    assert export_judged(settings, console=QUIET) == 1
    assert not (tmp_path / "exports/config.json").exists()
    reason = json.loads((tmp_path / "rejected/exports/reason.json").read_text())
    assert any("gate.tolerance.runtime_identical" in sentence for sentence in reason["reasons"])
    forced = dataclasses.replace(settings, force=True)
    assert export_judged(forced, console=QUIET) == 1
    assert load_artefact(tmp_path / "exports").record["gate"]["forced"] is True
    assert "Published by force" in (tmp_path / "exports/README.md").read_text()


def test_without_clips_it_says_that_nothing_was_judged(settings, tmp_path):
    console = Console(record=True, width=100)
    unjudged = dataclasses.replace(settings, dataset=DatasetSettings("manifest", ()))
    assert export_judged(unjudged, console=console) == 0
    assert "NOT JUDGED" in console.export_text()
    assert "gate" not in load_artefact(tmp_path / "exports").record


def test_clips_are_those_given_or_those_of_the_run_beside_the_artefact(tmp_path):
    given = (Source("a.jsonl"),)
    assert find_clips(given, None, tmp_path / "run/export") == given
    assert find_clips((), None, tmp_path / "run/export") == ()
    (tmp_path / "run").mkdir()
    config = {"dataset": {"test": [], "validation": ["v.jsonl"]}}
    (tmp_path / "run/config.yaml").write_text(json.dumps(config))
    assert find_clips((), None, tmp_path / "run/export") == (Source("v.jsonl"),)


def test_keys_of_both_programs_compose_and_mistakes_say_what_to_type():
    overrides = ["artefact=a", "gate.tolerance.wer=0.01", "gate.clips=5", "hub.license=mit", "force=true"]
    made = build(ExportSettings, to_plain(compose_config("export", overrides)), path="export")
    assert (made.gate.tolerance.wer, made.gate.clips, made.hub.license, made.force) == (0.01, 5, "mit", True)
    assert made.is_judged
    in_fp32 = ["artefact=a", "export.dtype=fp32"]
    assert not build(ExportSettings, to_plain(compose_config("export", in_fp32)), path="export").is_judged
    with pytest.raises(ValueError, match=r"formats=\[hf\]"):
        dataclasses.replace(made, formats=("ggml",), hub=HubSettings(push=True, repo="a/b"))
    with pytest.raises(ValueError, match="must be one of"):
        MadeFormat("tensorrt", "x")
    with pytest.raises(ValueError, match="reject=true"):
        GateRequest("a", DatasetSettings("manifest", ()), DECODING, GATE, force=True)
