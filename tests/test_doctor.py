"""A planted fault is seen by its own check alone, the verdict names the runtimes it breaks, and a copy is mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from benchmarks.planted import NUM_OF_FIGURE, PLANTS, plant
from infer.artefact import amend_record, load_artefact
from infer.doctor.examination import CHECKS, examine
from infer.doctor.findings import RUNTIMES
from infer.doctor.folder import ModelFolder, Weights
from infer.doctor.repair import repair
from infer.doctor.weights import measure_tensor
from scripts.doctor import DoctorSettings, build_settings, consult
from scripts.settings import compose_config

QUIET = Console(quiet=True)


@pytest.fixture
def masters(lively):
    """FP32 weights as a file has them: the tied output layer once."""
    return {name: tensor.detach() for name, tensor in lively.state_dict().items() if name != "proj_out.weight"}


@pytest.fixture
def clean(lay_artefact, tmp_path: Path) -> Path:
    """A tiny artefact without a fault."""
    folder = lay_artefact(tmp_path / "export", (1, 30))
    amend_record(folder, evaluation={"overall": {"wer": 0.1}})
    return folder


def test_the_clean_artefact_has_no_finding_and_every_check_is_asked(clean, masters):
    found = examine(clean, masters=masters)
    assert (found.codes, found.skipped, found.is_broken) == ((), (), False)
    assert {v.level for v in found.verdicts} == {"works"}
    assert [v.runtime for v in found.verdicts] == list(RUNTIMES)


@pytest.mark.parametrize("fault", PLANTS, ids=[fault.title for fault in PLANTS])
def test_a_planted_fault_is_seen_by_its_own_check_alone(fault, clean, masters, tmp_path):
    case = plant(fault, clean, masters, tmp_path / "case")
    found = examine(case.folder, masters=case.masters)
    assert found.codes == (fault.code,)
    (finding,) = found.findings
    assert finding.breaks or finding.troubles
    assert finding.found and finding.advice
    named = {v.runtime for v in found.verdicts if fault.code in v.codes}
    assert named == {*finding.breaks, *finding.troubles} <= set(RUNTIMES)


def test_every_check_has_a_planted_fault_and_those_of_the_figure_come_first():
    assert {fault.code for fault in PLANTS} == {check.code for check in CHECKS}
    assert [fault.code for fault in PLANTS[:NUM_OF_FIGURE]] == [
        *("fp16-reach", "nonfinite", "fp16-flush", "tie", "tokenizer-missing", "mel-bins", "special-ids", "cast")
    ]


def test_faults_in_a_folder_of_fp32_without_masters_are_seen_too(lively, clean, masters, tmp_path):
    """Nothing but the folder is known: what the cast would do to it is reckoned from its own values."""
    expected = {"fp16-reach": 7e4, "nonfinite": float("nan")}
    for code, value in expected.items():
        folder = tmp_path / code
        shutil.copytree(clean, folder)
        (folder / "mezzavoce.json").unlink()
        state = {name: tensor.clone() for name, tensor in masters.items()}
        state["model.decoder.layers.0.fc1.weight"].view(-1)[3] = value
        save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
        found = examine(folder)
        assert found.codes == (code,)
        assert found.skipped == ("cast",)


def test_counts_of_a_tensor_are_those_of_a_case_made_by_hand():
    master = torch.tensor([1.0, -2.0, 0.0, 1e-9, 1e-5, 7e4, 1.0 + 2**-12, 3e-5])
    stored = master.half()
    stored[0] = 1.0 + 2**-9  # another value
    found = measure_tensor(stored, master)
    assert (found.num_values, found.num_nonzero, found.num_nonfinite) == (8, 7, 0)  # infinity is the master's 7e4
    assert (found.num_flushed, found.num_subnormal, found.num_unlike_master) == (1, 2, 1)
    assert found.max_abs == 7e4
    assert found.max_relative_error == pytest.approx(2**-9)
    alone = measure_tensor(stored)
    assert (alone.num_nonfinite, alone.num_unlike_master, alone.max_relative_error) == (1, None, None)
    half = measure_tensor(master[[0, 1, 6]].half(), master[[0, 1, 6]])
    assert half.max_relative_error == pytest.approx(2**-12, rel=1e-3) and half.max_relative_error <= 2**-11


REPAIRABLE = [
    fault
    for fault in PLANTS
    if fault.code
    in (
        *("tie", "mel-bins", "special-ids", "cast", "generation-ids", "forced-ids", "suppress-lists", "dtype"),
        *("alignment-heads", "generation-missing", "preprocessor-missing", "remote-code"),
    )
]


@pytest.mark.parametrize("fault", REPAIRABLE, ids=[fault.code for fault in REPAIRABLE])
def test_a_repaired_copy_is_sound_and_the_folder_stays_as_it_was(fault, clean, masters, tmp_path):
    case = plant(fault, clean, masters, tmp_path / "case")
    before = {file.name: file.read_bytes() for file in case.folder.iterdir()}
    mended = repair(examine(case.folder, masters=case.masters), tmp_path / "mended", masters=case.masters)
    assert mended == (fault.code,)
    assert {file.name: file.read_bytes() for file in case.folder.iterdir()} == before
    assert examine(tmp_path / "mended", masters=case.masters).codes == ()
    record = json.loads((tmp_path / "mended/mezzavoce.json").read_text())
    assert record["repaired"] == {"from": "case", "codes": [fault.code]}
    assert "evaluation" not in record  # a figure of the original is none of the copy
    artefact = load_artefact(tmp_path / "mended")  # verifies every hash and id
    assert torch.equal(artefact.model.proj_out.weight, artefact.model.model.decoder.embed_tokens.weight)
    assert WhisperForConditionalGeneration.from_pretrained(tmp_path / "mended").config.num_mel_bins == 80
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_lost_or_foreign_tokenizer_comes_from_the_base(clean, masters, tmp_path):
    for code in ("tokenizer-missing", "vocabulary"):
        fault = next(fault for fault in PLANTS if fault.code == code)
        case = plant(fault, clean, masters, tmp_path / code)
        found = examine(case.folder)
        assert repair(found, tmp_path / f"{code}-without") == ()  # nothing to take it from
        assert examine(tmp_path / f"{code}-without").codes == (code,)
        assert repair(found, tmp_path / f"{code}-mended", base=clean) == (code,)
        assert examine(tmp_path / f"{code}-mended").codes == ()


def test_a_merge_in_half_is_mended_to_the_masters_bit_for_bit(clean, masters, tmp_path):
    fault = next(fault for fault in PLANTS if fault.code == "cast")
    case = plant(fault, clean, masters, tmp_path / "case")
    found = examine(case.folder, masters=case.masters)
    assert found.figures.total("num_unlike_master") > 0
    repair(found, tmp_path / "mended", masters=case.masters)
    stored = load_file(tmp_path / "mended/model.safetensors")
    assert all(torch.equal(stored[name], case.masters[name].half()) for name in case.masters)


def test_shards_are_read_as_one(clean, masters, tmp_path):
    folder = tmp_path / "sharded"
    shutil.copytree(clean, folder)
    (folder / "mezzavoce.json").unlink()
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, own in parts.items():
        save_file({name: whole[name] for name in own}, str(folder / file), metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert examine(folder, masters=masters).codes == ()
    assert set(Weights.open(folder)) == set(whole)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"cut")
    assert "weights-missing" in examine(folder).codes


def test_an_older_tokenizer_of_three_files_is_written_as_one(clean, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(clean, folder)
    (folder / "mezzavoce.json").unlink()
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    pairs = whole["model"]["merges"]
    (folder / "merges.txt").write_text("".join(f"{' '.join(p) if isinstance(p, list) else p}\n" for p in pairs))
    (folder / "added_tokens.json").write_text(json.dumps({t["content"]: t["id"] for t in whole["added_tokens"]}))
    ids = ModelFolder(folder).vocabulary
    (folder / "tokenizer.json").unlink()
    found = examine(folder)
    assert found.codes == ("tokenizer-missing",)
    repair(found, tmp_path / "mended")
    assert examine(tmp_path / "mended").codes == ()
    assert ModelFolder(tmp_path / "mended").vocabulary == ids


def test_the_script_says_writes_and_exits_as_it_found(clean, masters, tmp_path):
    fault = next(fault for fault in PLANTS if fault.code == "mel-bins")
    case = plant(fault, clean, masters, tmp_path / "case")
    settings = build_settings(compose_config("doctor", [f"artefact={case.folder}", f"json={tmp_path / 'found.json'}"]))
    console = Console(record=True, width=120)
    assert consult(settings, console=console).is_broken
    assert "128 in config.json" in console.export_text()
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["verdicts"]["faster-whisper"] == {"level": "broken", "codes": ["mel-bins"]}
    mended = DoctorSettings(str(case.folder), fix=True)
    assert mended.target == tmp_path / "case-repaired"
    assert not consult(mended, console=QUIET).is_broken
    with pytest.raises(ValueError, match="is there already"):
        consult(mended, console=QUIET)


def test_what_cannot_be_asked_for_says_what_to_type(clean, tmp_path):
    with pytest.raises(ValueError, match="fix=true"):
        DoctorSettings("x", repaired="y")
    with pytest.raises(FileNotFoundError, match="artefact="):
        examine(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="base="):
        consult(DoctorSettings(str(clean), base=str(tmp_path / "nowhere")), console=QUIET)
    with pytest.raises(ValueError, match="nothing that was found"):
        repair(examine(clean), tmp_path / "copy")
    (clean / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="repaired="):
        repair(examine(clean), clean / "inside")
