"""Each fault that is planted is found, where it is, and nothing is found where nothing was planted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import PROJECT, tone

from data.preflight.columns import Split
from data.preflight.report import ReportOptions, build_report
from data.preflight.scan import scan_corpus
from data.rows import JoinedRows
from data.sources import Source, read_source

OPTIONS = ReportOptions(edges_s=(1, 2, 3, 30))


class Corpus:
    """Three clean splits of made clips, into which a test plants its fault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, list[dict[str, object] | str]] = {}
        for place, (name, count) in enumerate({"train": 12, "validation": 4, "test": 4}.items()):
            self.rows[name] = [self.new_row(f"{name}{i}", seed=100 * place + i) for i in range(count)]

    def new_row(self, name: str, *, seed: int, **fields: object) -> dict[str, object]:
        audio = self.write(f"audio/{name}.wav", tone(1.0 + 0.05 * (seed % 10), seed=seed))
        text = f"sentence number {seed} here"
        return {"id": name, "audio": audio, "text": text, "language": "en", "speaker": f"voice {seed // 100}", **fields}

    def write(self, name: str, samples: np.ndarray, sampling_rate: int = 16_000) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, sampling_rate)
        return name

    def report(self, options: ReportOptions = OPTIONS, **scanned: object):
        splits = []
        for name, rows in self.rows.items():
            path = self.folder / f"{name}.jsonl"
            lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            splits.append(Split(name, JoinedRows([read_source(Source(str(path)))]), is_windowed=name != "test"))
        return build_report(scan_corpus(splits, cache_path=self.folder / "scan.jsonl", **scanned), options)


@pytest.fixture
def made(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def found(report, name):
    finding = next((finding for finding in report.findings if finding.name == name), None)
    assert finding is not None, [finding.name for finding in report.findings]
    return finding


def lines_of(finding):
    return [(split, int(index) + 1) for split, indices in finding.places for index in indices]


def test_nothing_is_found_in_a_clean_corpus(made):
    report = made.report()
    assert report.findings == ()
    assert report.is_ready
    assert report.record["verdict"]["headline"] == "Ready to train"


def test_the_shipped_corpus_is_clean_but_for_its_voices(tmp_path):
    folder = PROJECT / "data/demo/corpus/clinic"
    splits = [
        Split(name, JoinedRows([read_source(Source(str(folder / f"{name}.jsonl")))]), is_windowed=name != "test")
        for name in ("train", "validation", "test")
    ]
    report = build_report(scan_corpus(splits, cache_path=tmp_path / "scan.jsonl", num_workers=0), OPTIONS)
    assert {finding.name.rpartition("overlap")[0] for finding in report.findings} == {"speaker_"}
    assert {finding.level for finding in report.findings} == {"note"}
    assert report.record["totals"]["accepted"] == report.record["totals"]["lines"] > 500
    assert set(report.record["languages"]) == {"ar", "en", "ja", "ru", "zh"}


@pytest.mark.parametrize(("kept", "held_out"), [("train", "test"), ("train", "validation"), ("validation", "test")])
def test_the_same_sound_in_two_splits_is_an_error(made, kept, held_out):
    samples, rate = soundfile.read(made.folder / made.rows[held_out][2]["audio"], dtype="int16")
    made.rows[kept].append({**made.rows[kept][0], "id": "x", "audio": made.write("other/name.flac", samples, rate)})
    report = made.report()
    finding = found(report, f"pcm_leakage_{kept}_{held_out}")
    assert (finding.level, finding.count, lines_of(finding)) == ("error", 1, [(held_out, 3)])
    assert f"{kept}.jsonl:{len(made.rows[kept])}" in finding.examples[0].detail
    assert [f.name for f in report.findings if f.level == "error"] == [finding.name]
    pair = next(p for p in report.record["overlap"] if (p["kept"], p["held_out"]) == (kept, held_out))
    assert pair["pcm_leakage"] == 1


def test_speakers_in_two_splits_are_a_note_or_by_claim_an_error(made):
    made.rows["test"][1]["speaker"] = "voice 0"
    finding = found(made.report(), "speaker_overlap_train_test")
    assert (finding.level, lines_of(finding)) == ("note", [("test", 2)])
    strict = made.report(ReportOptions(edges_s=(1, 2, 3, 30), speakers_disjoint=True))
    assert found(strict, "speaker_overlap_train_test").level == "error"
    assert not strict.is_ready


def test_speakers_that_nobody_named_are_not_the_same_speaker(made):
    for rows in made.rows.values():
        for row in rows:
            row["speaker"] = None
    report = made.report()
    assert [finding.name for finding in report.findings] == ["no_speaker"]
    assert found(report, "no_speaker").count == 20


@pytest.mark.parametrize(("text", "level"), [("SENTENCE, number 5 here!", "warning"), ("seven", "note")])
def test_long_texts_in_two_splits_are_a_warning_and_short_ones_a_note(made, text, level):
    made.rows["test"][0]["text"] = text
    made.rows["train"][4]["text"] = "Seven."
    finding = found(made.report(), "text_overlap_train_test")
    assert (finding.level, lines_of(finding), finding.total) == (level, [("test", 1)], 4)


def test_stretches_of_one_recording_may_touch_but_not_overlap(made):
    made.write("talk.wav", tone(20.0, seed=9))
    base = {"audio": "talk.wav", "language": "en", "duration_s": 2.0, "speaker": "voice 9"}
    made.rows["train"] += [{**base, "id": "a", "text": "first part", "offset_s": 0.0}]
    made.rows["test"] += [
        {**base, "id": "b", "text": "the part behind", "offset_s": 2.0},
        {**base, "id": "c", "text": "half of the first", "offset_s": 1.0},
    ]
    report = made.report()
    stretch = found(report, "stretch_leakage_train_test")
    assert (stretch.level, lines_of(stretch)) == ("error", [("test", 6)])
    same = found(report, "recording_overlap_train_test")
    assert (same.level, lines_of(same)) == ("note", [("test", 5)])


def test_copies_and_copies_with_another_text_are_told_apart(made):
    train = made.rows["train"]
    train += [{**train[1], "id": "again"}, {**train[2], "id": "conflict", "text": "something else altogether"}]
    report = made.report()
    assert lines_of(found(report, "copies_train")) == [("train", 13)]
    conflict = found(report, "conflicting_copies_train")
    assert lines_of(conflict) == [("train", 14)]
    assert "train.jsonl:3" in conflict.examples[0].detail


def test_silence_is_no_leak_and_no_copy(made):
    for name in ("train", "test"):
        for i in range(2):
            made.rows[name][i]["audio"] = made.write(f"{name}{i}-silent.wav", np.zeros(16_000, np.float32))
    report = made.report()
    assert {finding.name for finding in report.findings} == {"silent"}
    assert lines_of(found(report, "silent")) == [("train", 1), ("train", 2), ("test", 1), ("test", 2)]


PLANTS = {
    "wrong_script": {"text": "привет, как у тебя дела"},
    "mojibake": {"text": "cafÃ© au lait dans un cafÃ©"},
    "mixed_word": {"language": "en", "text": "а sentencе of mixed letters"},
    "speech_rate": {"text": "far more text than anybody could ever say in the time of one short clip like this"},
    "invisible": {"text": "zero\u200bwidth in the middle"},
}


@pytest.mark.parametrize("name", PLANTS)
def test_odd_texts_are_found(made, name):
    made.rows["train"][4].update(PLANTS[name])
    report = made.report()
    assert [finding.name for finding in report.findings] == [name]
    assert lines_of(found(report, name)) == [("train", 5)]
    assert report.is_ready


def test_odd_sounds_are_found(made):
    voice = tone(1.5, seed=4)
    quiet = np.concatenate([tone(0.5, seed=5), np.zeros(64_000, np.float32)])
    planted = {
        "clipped": (np.clip(10 * voice, -1, 1), 16_000),
        "anti_phase": (np.stack([voice, -voice], axis=1), 16_000),
        "offset": (voice + 0.1, 16_000),
        "narrow_band": (tone(1.5, sampling_rate=8_000, seed=6), 8_000),
        "pauses": (quiet, 16_000),
    }
    for i, (name, (samples, rate)) in enumerate(planted.items()):
        made.rows["train"][i]["audio"] = made.write(f"{name}.wav", samples, rate)
    report = made.report()
    assert {f.name: lines_of(f) for f in report.findings} == {n: [("train", i + 1)] for i, n in enumerate(planted)}


def test_a_language_that_is_only_held_out_is_said(made):
    made.rows["test"][0].update(language="fr", text="c'est une phrase tout à fait nouvelle")
    assert lines_of(found(made.report(), "unheard_language")) == [("test", 1)]


def test_clips_outside_the_manifest_folder_are_said(made, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.wav"
    shutil.copy(made.folder / made.rows["train"][0]["audio"], elsewhere)
    made.rows["train"][0]["audio"] = str(elsewhere)
    assert lines_of(found(made.report(), "not_portable")) == [("train", 1)]


def test_a_held_out_set_with_one_bad_line_is_refused(made):
    made.rows["test"][1]["audio"] = "wavs/test1.wav"
    report = made.report()
    refused = found(report, "refused_test")
    assert (refused.level, refused.count, refused.total) == ("error", 1, 4)
    assert refused.examples[0].where.endswith("test.jsonl:2")
    assert refused.examples[0].text == made.rows["test"][1]["text"]
    missing = found(report, "unusable_A01")
    assert str(made.folder / "audio/test1.wav") in missing.fix


def test_a_training_set_is_refused_as_a_training_would(made):
    made.rows["train"][3]["text"] = ""
    finding = found(made.report(), "refused_train")
    assert "8.3 % of the lines" in finding.why
    assert "dataset.max_bad_share=0.084" in finding.fix
    for options in ({"max_bad_share": 0.084}, {"on_bad": "report"}):
        report = made.report(ReportOptions(edges_s=(1, 2, 3, 30), **options))
        assert report.is_ready
        assert found(report, "unusable_T03").level == "warning"
    strict = made.report(ReportOptions(edges_s=(1, 2, 3, 30), on_bad="strict", max_bad_share=0.5))
    assert "on_bad=strict" in found(strict, "refused_train").why


def test_noise_without_transcripts_is_called_that(made):
    made.rows = {"train": [{**row, "text": "", "language": ""} for row in made.rows["train"]]}
    report = made.report()
    assert "no transcripts" in found(report, "empty_train").title
    assert not report.is_ready
    assert report.record["windows"] is None


def test_clips_marked_as_without_speech_are_no_fault(made):
    made.rows["train"].append(
        {
            **made.rows["train"][0],
            "id": "n",
            "text": "",
            "no_speech": True,
            "audio": made.write("n.wav", tone(2, seed=99)),
        }
    )
    made.rows["test"].append(
        {
            **made.rows["test"][0],
            "id": "m",
            "text": "",
            "no_speech": True,
            "audio": made.write("m.wav", tone(2, seed=98)),
        }
    )
    assert made.report().findings == ()


def test_accepted_quarantined_and_rejected_are_all_lines(made):
    train = made.rows["train"]
    train[0]["audio"] = "gone.wav"
    train[1]["language"] = "klingon"
    train[2]["text"] = "\x01"
    (made.folder / "bad.wav").write_bytes(b"RIFF....")
    train[3]["audio"] = "bad.wav"
    train[4]["duration_s"] = 9.0
    train += ['{"audio": oops', {**train[5], "id": "train6"}]
    report = made.report()
    split = report.record["splits"]["train"]
    assert split["codes"] == {"A01": 1, "A03": 1, "A04": 1, "M01": 1, "M02": 1, "T02": 1, "T08": 1}
    assert (split["accepted"], split["quarantined"], split["rejected"], split["lines"]) == (7, 3, 4, 14)
    listed = [fault.line for fault in report.scan["train"].faults()]
    assert sorted(listed) == [1, 2, 3, 4, 5, 13, 14]
