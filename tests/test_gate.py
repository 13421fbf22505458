"""Each part of the gate fires on its own plant and is silent on a sound artefact; what misses lands in `rejected/`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from conftest import tone
from safetensors.torch import load_file, save_file

import infer.gate.parity
import infer.gate.runtimes
from data.rows import Row
from data.sources import Source
from data.windows import full_windows
from infer.artefact import amend_record, load_artefact
from infer.decode_settings import DecodeSettings
from infer.gate.clips import join_clips, made_sounds, open_long, write_clips
from infer.gate.forced import HeadroomMeter, compare_forced, measure_headroom
from infer.gate.gate import run_gate
from infer.gate.parity import check_parity, verify_castable
from infer.gate.publish import publish, write_record
from infer.gate.runtimes import Candidate, compare_runtimes, score_plainly
from infer.gate.settings import GateSettings, Tolerance
from infer.gate.tables import remarks, render_parity, render_runtimes, runtimes_markdown
from infer.gate.texts import compare_texts, predictions_of
from infer.gate.timestamps import LongReading, Way, judge_times
from infer.gate.verdict import Miss, reasons_for
from infer.half import FP16_MAX
from infer.plain_search import lacked_lists
from infer.score.held_out import read_held_out, transcribe_rows
from infer.score.utterances import Prediction
from infer.transcriber import Transcriber
from infer.weights import file_sha256

DECODING = DecodeSettings(max_new_tokens=6)
SETTINGS = GateSettings(clips=4, half_clips=1, latency_clips=1, long_s=1.0)


@pytest.fixture
def masters(lively):
    return {name: tensor.detach() for name, tensor in lively.state_dict().items() if name != "proj_out.weight"}


@pytest.fixture
def clips(corpus, tmp_path):
    return write_clips(read_held_out([Source(str(corpus))]), tmp_path / "clips", count=4)


@pytest.fixture
def short_sounds(monkeypatch):
    """Hear a second in place of 30; a CPU is slow at half arithmetic."""
    monkeypatch.setattr("infer.gate.parity.made_sounds", lambda: {"silence": np.zeros(16_000, dtype=np.float32)})
    measure = infer.gate.parity.measure_headroom
    monkeypatch.setattr("infer.gate.parity.measure_headroom", partial(measure, num_frames=100))
    monkeypatch.setattr("infer.gate.parity.FULL_CLIPS", 1)


@pytest.fixture
def no_process(monkeypatch, short_sounds):
    """Transcribe in this process what a fresh one would be asked."""

    def here(request, folder):
        transcriber = Transcriber(load_artefact(request.artefact), DECODING, batch_size=request.batch_size)
        rows = read_held_out([Source(**source) for source in request.sources])
        predictions, processing_s = transcribe_rows(transcriber, rows)
        return {"predictions": [dataclasses.asdict(p) for p in predictions], "processing_s": processing_s}

    monkeypatch.setattr("infer.gate.parity.measure_in_process", here)


def _parity(artefact_dir, clips, tmp_path, **options):
    return check_parity(artefact_dir, clips, DECODING, SETTINGS, scratch=tmp_path / "scratch", **options)


def test_a_sound_artefact_passes_every_part_in_a_fresh_process(artefact_dir, clips, masters, short_sounds, tmp_path):
    found = _parity(artefact_dir, clips, tmp_path, masters=masters)
    assert found.misses == ()
    assert list(found.figures) == ["P1", "P2", "P3", "P4", "P5"]
    assert found.figures["P2"]["num_identical"] == found.figures["P2"]["num_clips"] == 4
    assert found.figures["P3"]["reference"] == "FP32 masters"
    assert set(found.figures["P4"]) == {"clips", "silence"}
    evaluation = found.evaluation
    assert evaluation["artefact_sha256"] == file_sha256(artefact_dir / "model.safetensors")
    assert evaluation["set"] == {"sha256": clips.sha256, "clips": 4}
    assert {"scoring", "decoding", "stored", "compute", "backend", "versions"} <= evaluation.keys()
    references = [p.reference for p in found.predictions]
    assert len(references) == evaluation["overall"]["utterances"]


def test_p1_fires_on_a_weight_that_is_not_its_master(artefact_dir, clips, masters, tmp_path):
    other = {**masters, "model.decoder.layers.0.fc1.weight": masters["model.decoder.layers.0.fc1.weight"] * 1.01}
    found = _parity(artefact_dir, clips, tmp_path, masters=other)
    assert [miss.part for miss in found.misses] == ["P1"]
    assert "cast" in found.misses[0].sentence
    assert found.evaluation == {}  # nothing that was measured on it would be of what was trained
    assert [miss.part for miss in verify_castable({"a": torch.tensor([7e4])})] == ["P1"]
    assert verify_castable({"a": torch.tensor([1.0])}) == []


def test_p2_fires_where_the_folder_says_something_else_than_the_model_in_memory(
    artefact_dir, clips, monkeypatch, no_process, tmp_path
):
    import infer.gate.parity as parity

    measured = parity.measure_in_process

    def changed(request, folder):
        answer = measured(request, folder)
        answer["predictions"][1]["hypothesis"] += " more"
        return answer

    monkeypatch.setattr(parity, "measure_in_process", changed)
    assert [miss.part for miss in _parity(artefact_dir, clips, tmp_path).misses] == ["P2"]
    monkeypatch.setattr(parity, "measure_in_process", lambda *_: {"failed": "the process ended with 1: it fell"})
    (miss,) = _parity(artefact_dir, clips, tmp_path).misses
    assert (miss.part, "it fell" in miss.sentence) == ("P2", True)


def test_p3_fires_on_half_arithmetic_that_expects_something_else(
    artefact_dir, clips, monkeypatch, no_process, tmp_path
):
    import infer.gate.parity as parity

    load = parity.load_artefact

    def noisy(path, *, compute="auto", device="cpu"):
        loaded = load(path, compute=compute, device=device)
        if compute == "fp16":
            with torch.no_grad():
                loaded.model.model.decoder.embed_tokens.weight[:40] *= 1.2
        return loaded

    monkeypatch.setattr(parity, "load_artefact", noisy)
    missed = _parity(artefact_dir, clips, tmp_path).misses
    assert {miss.part for miss in missed} == {"P3"}
    assert any("gate.tolerance.kl" in miss.sentence for miss in missed)


def test_p5_fires_on_figures_of_other_weights_or_other_figures_of_the_same_clips(
    artefact_dir, clips, no_process, tmp_path
):
    found = _parity(artefact_dir, clips, tmp_path)
    amend_record(artefact_dir, evaluation=found.evaluation)
    assert _parity(artefact_dir, clips, tmp_path).misses == ()
    better = {**found.evaluation, "overall": {**found.evaluation["overall"], "wer": 0.001}}
    amend_record(artefact_dir, evaluation=better)
    (miss,) = _parity(artefact_dir, clips, tmp_path).misses
    assert (miss.part, "says wer 0.10 %" in miss.sentence) == ("P5", True)
    amend_record(artefact_dir, evaluation={**found.evaluation, "artefact_sha256": "0" * 64})
    (miss,) = _parity(artefact_dir, clips, tmp_path).misses
    assert (miss.part, "other weights" in miss.sentence) == ("P5", True)


def test_divergence_and_agreement_are_those_of_distributions_made_by_hand(artefact_dir, clips, monkeypatch):
    half, strict = load_artefact(artefact_dir, compute="fp16"), load_artefact(artefact_dir, compute="fp32")
    size = strict.model.config.vocab_size

    def logits(artefact, features, tokens):
        made = torch.full((*tokens.shape, size), -1e9)
        made[..., :2] = torch.tensor([0.75, 0.25]).log() if artefact is strict else torch.tensor([0.5, 0.5]).log()
        return made

    monkeypatch.setattr("infer.gate.forced.forced_logits", logits)
    options = {"windows": half.windows, "batch_size": 3}
    found = compare_forced(half, strict, clips.rows, clips.waveforms(), **options).describe()
    assert found["kl"] == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), abs=1e-6)
    assert found["top1"] == 1.0
    texts = [row.text if row.language in ("zh", "ja") else f" {row.text}" for row in clips.rows]
    num_text = sum(len(strict.tokenizer(text, add_special_tokens=False).input_ids) for text in texts)
    assert found["tokens"] == num_text + 4 * len(texts)  # language, task, no times, end


def test_the_same_arithmetic_agrees_and_real_halves_nearly(artefact_dir, clips):
    half, strict = load_artefact(artefact_dir, compute="fp16"), load_artefact(artefact_dir, compute="fp32")
    waveforms = clips.waveforms()
    same = compare_forced(strict, strict, clips.rows, waveforms, windows=strict.windows, batch_size=2).describe()
    assert (same["top1"], same["kl"]) == (1.0, 0.0)
    near = compare_forced(half, strict, clips.rows, waveforms, windows=strict.windows, batch_size=2).describe()
    assert 0 < near["kl"] < 1e-3


def test_headroom_counts_large_clamped_and_broken_values(artefact_dir):
    half = load_artefact(artefact_dir, compute="fp16")
    row = Row("a", Path("x"), "one", "en", "transcribe", 1.0, None, (), "", "", Path("m"), 1)
    quiet = measure_headroom(half, [tone(1.0)], row, num_frames=100)
    assert 0 < quiet.share < 0.5 and (quiet.num_clamped, quiet.num_nonfinite) == (0, 0)
    layer = half.model.model.encoder.layers[0]
    with torch.no_grad():
        layer.fc2.bias += 60000.0
    large = measure_headroom(half, [tone(1.0)], row, num_frames=100)
    assert large.share > 0.9
    with torch.no_grad():
        layer.fc2.bias += 5400.0
    with HeadroomMeter(half.model) as found:
        hidden = torch.full((1, 4, 16), 2000.0, dtype=torch.float16)
        layer(hidden, None)
    assert found.num_clamped == 4 * 16  # every value of the layer stands at the clamp
    assert found.largest["model.encoder.layers.0"] <= FP16_MAX
    with torch.no_grad():
        layer.fc2.bias[:] = torch.nan
    assert measure_headroom(half, [tone(1.0)], row, num_frames=100).num_nonfinite > 0


def test_made_sounds_are_whole_windows_within_full_scale():
    assert list(made_sounds()) == ["silence", "clipped noise", "music"]
    for waveform in made_sounds().values():
        assert (waveform.dtype, len(waveform)) == (np.float32, 480_000)
        assert np.abs(waveform).max() <= 1.0
    assert np.abs(made_sounds()["clipped noise"]).max() == 1.0
    assert not made_sounds()["silence"].any()


def test_clips_are_the_same_samples_and_their_hash_follows_text_and_sound(corpus, tmp_path):
    rows = read_held_out([Source(str(corpus))])
    first = write_clips(rows, tmp_path / "a", count=4)
    again = write_clips(rows, tmp_path / "b", count=4)
    assert first.sha256 == again.sha256
    durations = [row.duration_s for row in first.rows]
    assert durations == sorted(durations) and len(durations) == 4
    changed = write_clips([replace(row, text=f"{row.text} x") for row in rows], tmp_path / "c", count=4)
    assert changed.sha256 != first.sha256
    assert write_clips(rows, tmp_path / "d", count=5).sha256 != first.sha256
    with pytest.raises(ValueError, match=r"dataset\.test"):
        write_clips([], tmp_path / "e", count=4)


def test_joined_clips_stand_where_it_is_said(clips):
    made = join_clips(clips, long_s=1.0)
    for start_s, clip in zip(made.starts_s, made.clips, strict=True):
        begin = round(start_s * 16_000)
        assert np.array_equal(made.waveform[begin : begin + len(clip)], clip)
    assert made.text and made.language in {row.language for row in clips.rows}


def test_a_given_recording_is_audio_or_one_line(clips, tmp_path):
    audio = clips.manifest.parent / next(clips.manifest.parent.glob("*.wav")).name
    assert (open_long(audio).text, open_long(audio).language) == (None, "auto")
    line = {"audio": str(audio), "text": "what is said", "language": "de"}
    (tmp_path / "long.jsonl").write_text(json.dumps(line))
    assert (open_long(tmp_path / "long.jsonl").text, open_long(tmp_path / "long.jsonl").language) == (
        "what is said",
        "de",
    )
    (tmp_path / "long.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"long\.jsonl:1"):
        open_long(tmp_path / "long.jsonl")
    with pytest.raises(FileNotFoundError, match=r"gate\.long_recording"):
        open_long(tmp_path / "nowhere.wav")


def _prediction(id_, reference, hypothesis, language="en"):
    return Prediction(id_, language, language, reference, hypothesis, 1.0)


def test_differences_of_texts_are_those_of_jiwer_over_languages_of_words():
    references = ["red green blue", "cat dog bird fish", "今天很好"]
    before, after = ["red green blue", "cat dog", "今天很好"], ["red green", "cat dog bird fish", "今天"]
    languages = ["en", "en", "zh"]
    old, new = (
        [
            _prediction(str(i), r, h, code)
            for i, (r, h, code) in enumerate(zip(references, said, languages, strict=True))
        ]
        for said in (before, after)
    )
    found = compare_texts(old, new)
    assert found.wer == pytest.approx(jiwer.wer(references[:2], after[:2]) - jiwer.wer(references[:2], before[:2]))
    assert found.cer == pytest.approx(jiwer.cer(references, after) - jiwer.cer(references, before))
    assert (found.num_clips, found.num_identical, found.num_words, found.new_faults) == (3, 0, 7, ())
    assert not found.loss_of_words(0.2) and found.loss_of_characters(0.0)
    assert not replace(found, wer=1 / 7).loss_of_words(0.0)  # one word on a small set is none
    assert replace(found, wer=2 / 7).loss_of_words(0.0)
    with pytest.raises(ValueError, match="other clips"):
        compare_texts(old, new[:2])


def test_a_text_that_is_empty_or_loops_on_one_side_alone_is_named():
    said = "red green blue cat dog bird"
    old = [_prediction("a", said, said), _prediction("b", said, ""), _prediction("c", said, said)]
    new = [_prediction("a", said, ""), _prediction("b", said, ""), _prediction("c", said, "red red red red red red")]
    assert compare_texts(old, new).new_faults == ("a", "c")


def test_a_client_that_leaves_out_a_clip_is_an_error(clips):
    with pytest.raises(ValueError, match="have no text"):
        predictions_of(clips.rows, {clips.rows[0].id: "x"}, {})


def _reading(errors, *, coverage=1.0, hits=0.9, clips_error=0.1):
    names = ("sequential", "chunked", "chunked", "chunked decoding.piece_s=4")
    ways = tuple(
        Way(
            name=name,
            settings=f"decoding.timestamps={str(timed).lower()} decoding.long_form={name}",
            error=error,
            coverage=coverage if timed else 0.0,
            starts_hit=hits if timed else None,
            num_segments=3,
            has_times=timed,
        )
        for name, timed, error in zip(names, (True, True, False, False), errors, strict=False)
    )
    return LongReading(ways, clips_error)


@pytest.mark.parametrize(
    ("tuned", "base", "expected"),
    [
        (_reading([0.1, 0.1, 0.1]), _reading([0.1, 0.1, 0.1]), ("works", "works", False)),
        (_reading([0.1, 0.1, 0.1]), None, ("works", "works", False)),
        (_reading([0.1, 0.1, 0.1], coverage=0.1), _reading([0.1, 0.1, 0.1]), ("lost", "works", True)),
        (_reading([0.1, 0.1, 0.1], hits=0.1), _reading([0.1, 0.1, 0.1]), ("lost", "works", True)),
        (_reading([0.6, 0.1, 0.1]), _reading([0.1, 0.1, 0.1]), ("lost", "works", True)),
        (_reading([0.9, 0.9, 0.9]), _reading([0.1, 0.1, 0.1]), ("lost", "lost", True)),
        (_reading([0.9, 0.9, 0.9], hits=0.0), _reading([0.9, 0.9, 0.9], hits=0.0), ("absent", "absent", False)),
        (_reading([0.1, 0.1, 0.1], coverage=0.0), None, ("absent", "works", False)),
    ],
)
def test_what_was_lost_is_what_the_base_still_has(tuned, base, expected):
    found = judge_times(tuned, base, tolerance=0.05)
    assert (found["times"], found["long_form"], found["is_lost"]) == expected
    json.dumps(found)


def test_the_sentence_names_what_still_works():
    lost = judge_times(_reading([0.1, 0.1, 0.1], coverage=0.0), _reading([0.1, 0.1, 0.1]), tolerance=0.05)
    assert lost["works"] == ["decoding.timestamps=false decoding.long_form=chunked"]
    assert "lost its timestamps" in lost["sentence"] and lost["works"][0] in lost["sentence"]
    nothing = judge_times(_reading([0.9, 0.9, 0.9], hits=0.0), None, tolerance=0.05)
    assert nothing["works"] == [] and "give it clips" in nothing["sentence"]


def test_a_model_of_short_clips_is_told_to_read_short_pieces():
    found = judge_times(_reading([0.9, 0.9, 0.9, 0.1]), _reading([0.1, 0.1, 0.1, 0.1]), tolerance=0.05)
    assert (found["times"], found["long_form"]) == ("lost", "works")
    assert found["works"] == ["decoding.timestamps=false decoding.long_form=chunked decoding.piece_s=4"]


def _fake_clients(monkeypatch, answers):
    """Let clients answer from a table: client, or (client, windows), to a change of our texts, or a whole answer."""

    def ask(request, scratch):
        rows = read_held_out([Source(**source) for source in request.sources])
        change = answers.get((request.client, request.windows), answers.get(request.client, lambda text: text))
        if isinstance(change, dict):
            return change
        return {
            "texts": {row.id: change(row.text) for row in rows},
            "languages": {row.id: row.language for row in rows},
            **dict.fromkeys(infer.gate.runtimes.FIGURES, 1.0),
            "version": "1",
        }

    monkeypatch.setattr(infer.gate.runtimes, "run_client_in_process", ask)


def _candidates(tmp_path):
    made = []
    for name, format_, stored in (
        ("hf", "hf", "float16"),
        ("ctranslate2", "ctranslate2", "float16"),
        ("ctranslate2-int8", "ctranslate2", "int8"),
        ("ggml", "ggml", "q8_0"),
        ("openai", "openai", "float16"),
    ):
        path = tmp_path / "staging" / name
        path.mkdir(parents=True)
        (path / "mezzavoce.json").write_text("{}")
        made.append(Candidate(name, format_, stored, path))
    return made


def test_each_client_is_judged_by_its_own_tolerance(clips, monkeypatch, tmp_path):
    _fake_clients(
        monkeypatch,
        {
            "faster_whisper": lambda text: f"{text} more",
            "openai_whisper": {"absent": "whisper is not installed; type pip install"},
            "whisper_cpp": {"failed": "the process ended with 1: bad magic"},
            "transformers": lambda text: f"{text}.",  # another text, and the same words
        },
    )
    settings = replace(SETTINGS, tolerance=Tolerance(int8_wer=0.9, runtime_identical=0.9))
    rows, misses, _ = compare_runtimes(
        Path("export"), _candidates(tmp_path), clips, DECODING, settings, scratch=tmp_path / "scratch"
    )
    verdicts = {(row["client"], row["format"]): row["verdict"] for row in rows}
    assert verdicts == {
        ("mezzavoce", "hf"): "reference",
        ("transformers pipeline", "hf"): "missed",
        ("faster-whisper", "ctranslate2"): "missed",
        ("faster-whisper", "ctranslate2-int8"): "passed",
        ("whisper.cpp", "ggml"): "missed",
        ("openai-whisper", "openai"): "not run",
    }
    assert {miss.formats for miss in misses} == {("hf",), ("ctranslate2",), ("ggml",)}
    (of_hf,) = [miss for miss in misses if miss.formats == ("hf",)]
    assert "runtime_identical" in of_hf.sentence  # the normaliser hears no difference, the reader does
    assert any("bad magic" in miss.sentence for miss in misses)


def test_thirty_seconds_have_a_tolerance_of_their_own(clips, monkeypatch, tmp_path):
    _fake_clients(monkeypatch, {("mezzavoce", "full"): lambda text: f"{text} more"})
    for allowed, expected in ((0.9, []), (0.02, ["windows"])):
        settings = replace(SETTINGS, tolerance=Tolerance(full_window_wer=allowed))
        _, misses, cost = compare_runtimes(Path("export"), [], clips, DECODING, settings, scratch=tmp_path / "scratch")
        assert [miss.part for miss in misses] == expected
        assert 0.02 < cost["wer"] < 0.9


def test_plain_scores_are_those_of_words_where_words_are_written():
    predictions = [_prediction("a", "red green", "red blue"), _prediction("b", "你好", "你们", "zh")]
    found = score_plainly([*predictions, replace(predictions[0], id="c", detected_language="de")])
    assert found["wer"] == 0.5
    assert found["language_accuracy"] == pytest.approx(2 / 3)


def _record(tmp_path, misses=()):
    return {
        "verdict": "missed" if misses else "passed",
        "misses": [miss.describe() for miss in misses],
        "parity": {"P1": {"weights": {"num_values": 1}, "findings": [], "masters": True}},
        "runtimes": [{"client": "x", "format": "hf", "windows": "30 s", "verdict": "failed", "reason": "it fell"}],
        "windows": None,
        "long_form": {"sentence": "Timestamps work."},
        "evaluation": {"overall": {"wer": 0.5}},
        "clips": {"sha256": "0", "clips": 4, "audio_s": 5.0},
        "tolerance": {},
        "date": "2026-01-01",
    }


def test_what_missed_is_rejected_with_its_reason_and_the_rest_is_published(tmp_path):
    candidates = _candidates(tmp_path)
    targets = {c.name: tmp_path / "out" / c.name for c in candidates}
    (tmp_path / "out/hf").mkdir(parents=True)
    (tmp_path / "out/hf/old").write_text("old")
    misses = [Miss("runtime", "faster-whisper differs", ("ctranslate2",))]
    done = publish(candidates, targets, _record(tmp_path, misses), artefact=candidates[0].path)
    assert done.exit_code == 1
    assert set(done.rejected) == {"ctranslate2"}
    place = tmp_path / "out/rejected/ctranslate2"
    assert done.rejected["ctranslate2"] == place
    assert json.loads((place / "reason.json").read_text())["reasons"] == ["runtime: faster-whisper differs"]
    assert not (tmp_path / "out/ctranslate2").exists()
    record = json.loads((tmp_path / "out/hf/mezzavoce.json").read_text())
    assert record["evaluation"] == {"overall": {"wer": 0.5}} and record["gate"]["forced"] is False
    assert not (tmp_path / "out/hf/old").exists()
    assert "evaluation" not in json.loads((tmp_path / "out/openai/mezzavoce.json").read_text())
    assert not list((tmp_path / "out").glob(".old-*"))


def test_force_publishes_with_a_mark_and_still_exits_with_one(tmp_path):
    candidates = _candidates(tmp_path)
    targets = {c.name: tmp_path / "out" / c.name for c in candidates}
    done = publish(candidates, targets, _record(tmp_path, [Miss("P3", "too far")]), force=True)
    assert (done.rejected, done.is_forced, done.exit_code) == ({}, True, 1)
    record = json.loads((tmp_path / "out/hf/mezzavoce.json").read_text())
    assert record["gate"]["forced"] is True
    assert record["gate"]["misses"] == [{"part": "P3", "sentence": "too far", "formats": []}]


def test_a_file_is_rejected_with_its_reason_beside_it(tmp_path):
    file = tmp_path / "staging/ggml.bin"
    file.parent.mkdir()
    file.write_bytes(b"ggml")
    record = _record(tmp_path, [Miss("runtime", "whisper.cpp differs", ("ggml",))])
    done = publish([Candidate("ggml", "ggml", "f16", file)], {"ggml": tmp_path / "out/ggml.bin"}, record)
    assert done.rejected["ggml"].read_bytes() == b"ggml"
    assert "whisper.cpp" in (tmp_path / "out/rejected/ggml.bin.reason.json").read_text()


@pytest.mark.parametrize("is_missed", [False, True])
def test_the_ranks_beside_a_file_go_where_the_file_goes(tmp_path, is_missed):
    file = tmp_path / "staging/openai-fp16.pt"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    file.with_suffix(".tiktoken").write_text("ranks")
    misses = [Miss("runtime", "it differs", ("openai",))] if is_missed else []
    targets = {"openai": tmp_path / "out/openai-fp16.pt"}
    publish([Candidate("openai", "openai", "fp16", file)], targets, _record(tmp_path, misses))
    place = tmp_path / "out" / ("rejected" if is_missed else "")
    assert (place / "openai-fp16.tiktoken").read_text() == "ranks"
    assert (place / "openai-fp16.pt").read_bytes() == b"weights"


def test_half_arithmetic_is_given_fewer_clips_on_a_cpu_unless_told():
    assert (GateSettings().half_clips_on("cpu"), GateSettings().half_clips_on("cuda")) == (20, 200)
    assert GateSettings(half_clips=7).half_clips_on("cpu") == GateSettings(half_clips=7).half_clips_on("cuda") == 7
    with pytest.raises(ValueError, match="half_clips=0"):
        GateSettings(half_clips=0)


def test_a_list_that_a_runtime_cannot_be_given_is_named(artefact_dir, tmp_path):
    file = artefact_dir / "generation_config.json"
    assert lacked_lists("whisper_cpp", artefact_dir) == ()
    file.write_text(json.dumps({**json.loads(file.read_text()), "suppress_tokens": [5]}))
    assert lacked_lists("whisper_cpp", artefact_dir) == ("suppress_tokens",)
    assert lacked_lists("openai_whisper", artefact_dir) == lacked_lists("faster_whisper", artefact_dir) == ()
    record = _record(tmp_path)
    record["runtimes"].append({"client": "whisper.cpp", "format": "ggml", "lacks": ["suppress_tokens"]})
    assert remarks(record)[-1] == "whisper.cpp (ggml) cannot be given the artefact's suppress_tokens"


def test_a_miss_of_all_concerns_every_format_and_the_record_is_readable(tmp_path):
    misses = [Miss("P3", "all"), Miss("runtime", "one", ("hf",))]
    assert reasons_for("hf", misses) == ["P3: all", "runtime: one"]
    assert reasons_for("ggml", misses) == ["P3: all"]
    record = _record(tmp_path, misses)
    text = write_record(tmp_path / "out", record).read_text()
    assert "# The gate: missed" in text and "it fell" in text and "- P3: all" in text
    assert runtimes_markdown(record) in text
    assert json.loads((tmp_path / "out/gate.json").read_text()) == record
    assert render_runtimes(record).row_count == 1 and render_parity(record).row_count == 2


def test_the_whole_gate_judges_and_says_what_it_did(artefact_dir, corpus, masters, monkeypatch, no_process, tmp_path):
    _fake_clients(monkeypatch, {})
    steps = []
    record = run_gate(
        artefact_dir,
        [Candidate("hf", "hf", "float16", artefact_dir)],
        read_held_out([Source(str(corpus))]),
        DECODING,
        SETTINGS,
        scratch=tmp_path / "scratch",
        masters=masters,
        on_step=steps.append,
    )
    assert (record["verdict"], record["misses"], len(steps)) == ("passed", [], 4)
    assert "not tried" in record["long_form"]["sentence"]  # four short clips make no long recording
    assert [row["client"] for row in record["runtimes"]] == ["mezzavoce", "mezzavoce", "transformers pipeline"]
    json.dumps(record, allow_nan=False)


def test_a_damaged_artefact_is_not_run_at_all(artefact_dir, corpus, tmp_path):
    weights = load_file(artefact_dir / "model.safetensors")
    weights["model.decoder.layers.0.fc1.weight"][0, 0] = torch.nan
    save_file(weights, str(artefact_dir / "model.safetensors"), metadata={"format": "pt"})
    record = run_gate(
        artefact_dir, [], read_held_out([Source(str(corpus))]), DECODING, SETTINGS, scratch=tmp_path / "scratch"
    )
    assert record["verdict"] == "missed"
    assert {miss["part"] for miss in record["misses"]} == {"P1"}
    assert record["runtimes"] == []


def test_tolerances_are_fractions_and_counts_are_counts():
    with pytest.raises(ValueError, match=r"gate\.tolerance\.kl"):
        Tolerance(kl=2.0)
    with pytest.raises(ValueError, match=r"gate\.clips"):
        GateSettings(clips=0)
    with pytest.raises(ValueError, match=r"gate\.long_s"):
        GateSettings(long_s=0.1)
    assert full_windows().is_stock
