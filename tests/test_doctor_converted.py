"""The doctor knows what a model was converted to, and sees what its runtime would stumble over."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from rich.console import Console

from infer.doctor.converted import ctranslate2_shapes, examine_converted, recognise
from infer.export.ggml import convert_to_ggml
from infer.export.openai import convert_to_openai
from scripts.doctor import DoctorSettings, consult

QUIET = Console(quiet=True)


@pytest.fixture
def artefact_dir(lay_artefact, tmp_path: Path) -> Path:
    return lay_artefact(tmp_path / "export", (30,))


@pytest.fixture
def ct2(artefact_dir: Path, tmp_path: Path) -> Path:
    pytest.importorskip("ctranslate2", reason="the extra `runtimes` is not installed")
    from infer.export.ctranslate2 import convert_to_ctranslate2

    return convert_to_ctranslate2(artefact_dir, tmp_path / "ct2")


def codes(path: Path) -> list[str]:
    kind = recognise(path)
    assert kind is not None
    return [finding.code for finding in examine_converted(path, kind).findings]


def test_sound_ones_are_known_by_what_they_are(artefact_dir: Path, ct2: Path, tmp_path: Path, lively):
    openai = convert_to_openai(artefact_dir, tmp_path / "any-name.pt")
    ggml = convert_to_ggml(artefact_dir, tmp_path / "any-name.bin")
    found = {kind: recognise(path) for kind, path in (("ctranslate2", ct2), ("openai", openai), ("ggml", ggml))}
    assert found == {kind: kind for kind in found}
    assert recognise(artefact_dir) is recognise(tmp_path / "nothing") is recognise(artefact_dir / "config.json") is None
    for path in (ct2, openai, ggml):
        seen = consult(DoctorSettings(str(path)), console=QUIET)
        assert (seen.findings, seen.is_broken, seen.facts["mel_bins"]) == ((), False, lively.config.num_mel_bins)
        assert [verdict.level for verdict in seen.verdicts] == ["works"]


def test_shapes_are_those_of_the_model(ct2: Path, lively):
    shapes = ctranslate2_shapes(ct2 / "model.bin")
    assert shapes["encoder/conv1/weight"] == tuple(lively.model.encoder.conv1.weight.shape)
    assert shapes["decoder/embeddings/weight"][1] == lively.config.d_model


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("preprocessor_config.json", "preprocessor-missing"),
        ("tokenizer.json", "tokenizer-missing"),
        ("vocabulary.json", "vocabulary"),
    ],
)
def test_each_file_that_faster_whisper_needs_is_missed(ct2: Path, name: str, code: str):
    (ct2 / name).unlink()
    assert codes(ct2) == [code]


def test_other_faults_of_a_folder_are_seen(ct2: Path):
    config = json.loads((ct2 / "config.json").read_text())
    (ct2 / "config.json").write_text(json.dumps({**config, "alignment_heads": []}))
    assert codes(ct2) == ["alignment-heads"]
    whole = (ct2 / "model.bin").read_bytes()
    (ct2 / "model.bin").write_bytes(whole[: len(whole) // 2])
    assert codes(ct2) == ["weights-missing"]


def test_a_missing_preprocessor_is_written_into_a_copy_with_the_bins_of_the_weights(ct2: Path, tmp_path: Path):
    wrong = json.loads((ct2 / "preprocessor_config.json").read_text())
    (ct2 / "preprocessor_config.json").write_text(json.dumps({**wrong, "feature_size": 128}))
    seen = consult(DoctorSettings(str(ct2)), console=QUIET)
    assert seen.is_broken and [finding.code for finding in seen.findings] == ["mel-bins"]
    mended = consult(DoctorSettings(str(ct2), fix=True), console=QUIET)
    assert (mended.path, mended.findings) == (tmp_path / "ct2-repaired", ())
    assert json.loads((mended.path / "preprocessor_config.json").read_text())["feature_size"] == 80
    assert json.loads((ct2 / "preprocessor_config.json").read_text())["feature_size"] == 128  # never written to
    (mended.path / "preprocessor_config.json").unlink()
    again = consult(DoctorSettings(str(mended.path), fix=True, repaired=str(tmp_path / "again")), console=QUIET)
    assert again.findings == () and (again.path / "preprocessor_config.json").is_file()


def test_damaged_files_are_named_and_no_code_of_theirs_is_run(artefact_dir: Path, tmp_path: Path):
    file = convert_to_openai(artefact_dir, tmp_path / "model.pt")
    content = torch.load(file, weights_only=True)
    torch.save({**content, "dims": {**content["dims"], "n_mels": 128}}, file)
    assert codes(file) == ["shapes"]
    content["model_state_dict"]["encoder.ln_post.bias"][0] = float("nan")
    torch.save(content, file)
    assert codes(file) == ["nonfinite"]
    torch.save({"dims": Path("code")}, file)
    assert codes(file) == ["weights-missing"]
    ggml = convert_to_ggml(artefact_dir, tmp_path / "model.bin")
    head = bytearray(ggml.read_bytes())
    head[4 + 4 * 9 : 4 + 4 * 10] = struct.pack("<i", 128)
    ggml.write_bytes(head)
    assert codes(ggml) == ["mel-bins"]
    ggml.write_bytes(head[:20])
    assert codes(ggml) == ["weights-missing"]
