"""Scores have the figures a hand count gives; reports are whole files of strict JSON, tables show them."""

import dataclasses
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import jiwer
import pytest
from rich.console import Console
from rich.table import Table

from infer.score.alignment import align
from infer.score.evaluation import Prediction, Score, score_predictions
from infer.score.normalise import NORMALISER_VERSION, describe_scoring
from infer.score.report import read_predictions, render_before_after, render_table, write_report
from infer.score.utterances import count_utterance

PREDICTIONS = [
    Prediction("a", "en", "en", "The cat sat.", "the cat sad", 2.0),
    Prediction("b", "en", "de", "Yes.", "yes", 1.0),
    Prediction("c", "zh", None, "你好世界", "你号世界", 3.0),
    Prediction("d", "ru", "ru", "ещё мой", "еще мой", 4.0),
]
FIGURES = {"wer", "cer", "wer_ortho", "cer_ortho", "headline", "language_accuracy", "rtfx", "utterances", "audio_s"}
FIGURES |= {"substitutions", "deletions", "insertions", "words", "characters", "speakers", "signs", "intervals"}


def _show(table: Table) -> str:
    """Return the table as plain text, wide enough that nothing is cut."""
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(table)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def _row(text: str, first_cell: str) -> list[str]:
    """Return the cells of the row that begins with `first_cell`."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    (row,) = [cells for cells in rows if cells[0] == first_cell]
    return row


def _ends(score: Score, language: str) -> str:
    low, high = score.languages[language]["intervals"]["headline"]
    return f"{100 * low:.2f} to {100 * high:.2f}"


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_figures_are_those_of_a_count_by_hand() -> None:
    score = score_predictions(PREDICTIONS, processing_s=0.5)
    assert set(score.overall) == FIGURES
    assert list(score.languages) == ["en", "ru", "zh"]
    assert all(set(figures) == FIGURES | {"headline_metric", "error_by"} for figures in score.languages.values())

    assert score.languages["en"]["wer"] == 1 / 4
    assert score.languages["en"]["cer"] == 1 / 14  # "the cat sat" and "yes"
    assert score.languages["en"]["wer_ortho"] == 3 / 4
    assert score.languages["en"]["language_accuracy"] == 0.5
    assert score.languages["zh"]["headline_metric"] == "cer"
    assert score.languages["zh"]["headline"] == score.languages["zh"]["cer"] == 1 / 4
    assert score.languages["zh"]["wer"] == 1.0
    assert score.languages["zh"]["language_accuracy"] is None
    assert score.languages["ru"]["wer"] == 0.0

    overall = score.overall
    assert overall["wer"] == 2 / 7
    assert overall["headline"] == pytest.approx((1 / 4 + 1 / 4 + 0) / 3)
    assert overall["language_accuracy"] == 2 / 3  # the one without a detected language does not count
    assert (overall["utterances"], overall["audio_s"], overall["rtfx"]) == (4, 10.0, 20.0)
    assert (overall["substitutions"], overall["deletions"], overall["insertions"]) == (2, 0, 0)


def test_the_order_of_predictions_has_no_influence() -> None:
    shuffled = PREDICTIONS[:]
    random.Random(0).shuffle(shuffled)
    assert shuffled != PREDICTIONS
    assert score_predictions(shuffled, processing_s=1) == score_predictions(PREDICTIONS, processing_s=1)


def test_what_cannot_be_divided_is_none() -> None:
    score = score_predictions([Prediction("a", "en", None, "", "thank you", 1.0, no_speech=True)], processing_s=0)
    assert [score.overall[key] for key in ("wer", "cer", "headline", "rtfx", "language_accuracy")] == [None] * 5
    assert score.overall["insertions"] == 2


def test_an_empty_hypothesis_costs_every_word_and_is_counted() -> None:
    score = score_predictions([dataclasses.replace(PREDICTIONS[0], hypothesis="")], processing_s=1)
    assert (score.overall["wer"], score.overall["deletions"], score.overall["signs"]["empty"]) == (1.0, 3, 1)


def test_a_language_without_reference_units_does_not_enter_the_headline() -> None:
    rows = [
        Prediction("a", "en", None, "the cat", "the", 1.0),
        Prediction("b", "de", None, "", "", 1.0, no_speech=True),
    ]
    assert score_predictions(rows, processing_s=1).overall["headline"] == 0.5


def test_predictions_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no predictions.*dataset\.test"):
        score_predictions([], processing_s=1)
    with pytest.raises(ValueError, match="the reference of 'a' is empty; write what is said, or no_speech: true"):
        score_predictions([dataclasses.replace(PREDICTIONS[0], reference=" ")], processing_s=1)
    with pytest.raises(ValueError, match=r"'a' has a reference, 'The cat sat\.', and no_speech"):
        score_predictions([dataclasses.replace(PREDICTIONS[0], no_speech=True)], processing_s=1)
    with pytest.raises(ValueError, match=r"no scoring profile for language 'xx'"):
        score_predictions([dataclasses.replace(PREDICTIONS[0], language="xx")], processing_s=1)
    with pytest.raises(ValueError, match="snr_db=inf of 'a'"):
        score_predictions([dataclasses.replace(PREDICTIONS[0], snr_db=math.inf)], processing_s=1)
    with pytest.raises(ValueError, match="'a' comes 2 times"):
        score_predictions([PREDICTIONS[0], PREDICTIONS[1], PREDICTIONS[0]], processing_s=1)
    for processing_s in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="processing_s"):
            score_predictions(PREDICTIONS, processing_s=processing_s)
    with pytest.raises(ValueError, match="duration_s=nan of 'a'"):
        score_predictions([dataclasses.replace(PREDICTIONS[0], duration_s=math.nan)], processing_s=1)


def test_a_report_read_back_is_the_score(tmp_path: Path) -> None:
    score = score_predictions(PREDICTIONS, processing_s=0.5)
    settings = {"infer.compute": "fp16", "manifest": Path("some/where.jsonl")}
    path = write_report(tmp_path / "new" / "report", score, PREDICTIONS, artefact={"sha256": "ab"}, settings=settings)
    assert path == tmp_path / "new" / "report" / "report.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == ["artefact", "overall", "languages", "confusion", "error_by", "worst", "settings"]
    assert content["artefact"] == {"sha256": "ab"}
    assert Score.from_report(content) == score
    assert content["settings"] == {
        "infer.compute": "fp16",
        "manifest": "some/where.jsonl",
        **describe_scoring(["en", "ru", "zh"]),
    }
    assert content["settings"]["normaliser_version"] == NORMALISER_VERSION
    assert "normaliser_version" not in settings
    assert _files(path.parent) == {"report.json", "predictions.jsonl"}


def test_predictions_are_one_object_a_line_raw_and_normalised(tmp_path: Path) -> None:
    score = score_predictions(PREDICTIONS, processing_s=1)
    write_report(tmp_path, score, PREDICTIONS, artefact={}, settings={})
    text = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    assert "你好世界" in text and "\\u" not in text
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[3] == {
        "id": "d",
        "language": "ru",
        "detected_language": "ru",
        "reference": "ещё мой",
        "hypothesis": "еще мой",
        "reference_norm": "еще мой",
        "hypothesis_norm": "еще мой",
        "duration_s": 4.0,
        "task": "transcribe",
        "speaker": None,
        "test_set": None,
        "no_speech": False,
        "loudness_dbfs": None,
        "snr_db": None,
        "is_cut": False,
        "metric": "wer",
        "edits": 0,
        "units": 2,
        "signs": [],
    }
    assert rows[2]["detected_language"] is None


def _random_predictions(num: int) -> list[Prediction]:
    """Sentences with errors of every kind, in languages of every profile."""
    rng = random.Random(0)
    texts = {
        "en": "I won't say that Mr. Smith's colour is twenty-one, uh, grey!",
        "zh": "我們今天，去學校買東西。",
        "ja": "がっこうへ、行きます！ﾊﾟｰﾃｨｰ",
        "ar": "مُحَمَّدٌ إلى أحمد، ٢٠ يوما",
        "ru": "Ещё мой йод — «Война и мир».",
        "de": "Der Hund, (laut) groß!",
        "ko": "안녕하세요! 나는 학교",
    }
    predictions = []
    for i in range(num):
        language = rng.choice(list(texts))
        heard = list(texts[language])
        for _ in range(rng.randint(0, 6)):
            place = rng.randrange(len(heard) + 1)
            heard[place : place + rng.randint(0, 2)] = rng.choices(" abcй们が", k=rng.randint(0, 2))
        predictions.append(Prediction(f"{i:03}", language, None, texts[language], "".join(heard), 1.0))
    return predictions


def test_what_is_dumped_gives_jiwer_the_same_rates(tmp_path: Path) -> None:
    predictions = _random_predictions(300)
    score = score_predictions(predictions, processing_s=1)
    path = write_report(tmp_path, score, predictions, artefact={}, settings={})
    report = json.loads(path.read_text(encoding="utf-8"))
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for language in (None, *report["languages"]):
        figures = report["languages"][language] if language else report["overall"]
        part = [row for row in rows if language in (None, row["language"])]
        references, hypotheses = [r["reference_norm"] for r in part], [r["hypothesis_norm"] for r in part]
        words, characters = (
            jiwer.process_words(references, hypotheses),
            jiwer.process_characters(references, hypotheses),
        )
        assert figures["wer"] == words.wer and figures["cer"] == characters.cer
        for unit, theirs in (("words", words), ("characters", characters)):
            for kind in ("substitutions", "deletions", "insertions"):
                assert figures[unit][kind] == getattr(theirs, kind)
            assert figures[unit]["units"] == theirs.hits + theirs.substitutions + theirs.deletions
        assert figures["wer_ortho"] == jiwer.wer([r["reference"] for r in part], [r["hypothesis"] for r in part])
        assert figures["cer_ortho"] == jiwer.cer([r["reference"] for r in part], [r["hypothesis"] for r in part])
        if language:
            edits, units = sum(row["edits"] for row in part), sum(row["units"] for row in part)
            assert figures["headline"] == edits / units


def test_predictions_read_back_give_the_same_score(tmp_path: Path) -> None:
    predictions = [*_random_predictions(20), dataclasses.replace(PREDICTIONS[0], speaker="s", snr_db=3.5, test_set="t")]
    score = score_predictions(predictions, processing_s=0)
    write_report(tmp_path, score, predictions, artefact={}, settings={})
    read = read_predictions(tmp_path / "predictions.jsonl")
    assert read == predictions
    assert score_predictions(read, processing_s=0) == score
    old = (
        '{"id": "a", "language": "en", "detected_language": null, "reference": "x", "hypothesis": "x", "duration_s": 1}'
    )
    (tmp_path / "old.jsonl").write_text(old + '\n{"id": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"old\.jsonl:2 is no prediction"):
        read_predictions(tmp_path / "old.jsonl")


def test_an_alignment_joins_to_both_texts_and_counts_as_the_score_does() -> None:
    for prediction in _random_predictions(60):
        utterance = count_utterance(prediction)
        spans = align(utterance.reference_norm, utterance.hypothesis_norm, unit=utterance.unit)
        space = " " if utterance.unit == "word" else ""
        assert space.join(u for span in spans for u in span.reference) == utterance.reference_norm
        assert space.join(u for span in spans for u in span.hypothesis) == utterance.hypothesis_norm
        edits = sum(max(len(s.reference), len(s.hypothesis)) for s in spans if s.kind != "equal")
        assert edits == utterance.num_edits


def test_line_breaks_and_broken_characters_stay_within_their_line(tmp_path: Path) -> None:
    odd = [Prediction("x", "de", None, "eins\nzwei", "eins \ud800 zwei", 1.0)]
    write_report(tmp_path, score_predictions(odd, processing_s=1), odd, artefact={}, settings={})
    lines = (tmp_path / "predictions.jsonl").read_bytes().decode("utf-8").split("\n")
    assert len(lines) == 2 and lines[1] == ""
    row = json.loads(lines[0])
    assert (row["reference"], row["hypothesis"]) == ("eins\nzwei", "eins \ud800 zwei")


@pytest.mark.parametrize("bad", [math.nan, math.inf, object()])
def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path: Path, bad: object) -> None:
    score = score_predictions(PREDICTIONS, processing_s=1)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_report(tmp_path / "r", score, PREDICTIONS, artefact={"x": bad}, settings={})
    assert not (tmp_path / "r").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    score = score_predictions(PREDICTIONS, processing_s=1)
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RuntimeError, match=r"file.*report\.dir=PATH"):
            write_report(folder, score, PREDICTIONS, artefact={}, settings={})


def test_a_full_disk_leaves_the_old_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = score_predictions(PREDICTIONS, processing_s=1)
    path = write_report(tmp_path, score, PREDICTIONS, artefact={"run": 1}, settings={})
    before = {name: (tmp_path / name).read_bytes() for name in _files(tmp_path)}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infer.score.report.os.fsync", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        write_report(tmp_path, score, PREDICTIONS[:1], artefact={"run": 2}, settings={})
    assert {name: (tmp_path / name).read_bytes() for name in _files(tmp_path)} == before
    monkeypatch.undo()
    write_report(tmp_path, score, PREDICTIONS[:1], artefact={"run": 2}, settings={})
    assert json.loads(path.read_text())["artefact"] == {"run": 2}


def test_the_table_marks_the_headline_rate_of_each_language() -> None:
    score = score_predictions(PREDICTIONS, processing_s=0.5)
    text = _show(render_table(score, title="[demo] score"))
    assert "[demo] score" in text  # brackets are text, not markup
    assert _row(text, "en") == ["en", "* 25.00", "7.14", _ends(score, "en"), "50.0", "2", "3.0 s"]
    assert _row(text, "zh") == ["zh", "100.00", "* 25.00", "–", "–", "1", "3.0 s"]
    assert _row(text, "all") == ["all", "28.57", "8.00", "", "66.7", "4", "10.0 s"]
    assert "mean over languages 16.67 % (" in text and "RTFx 20.0" in text


def test_a_score_without_rates_still_makes_a_table() -> None:
    text = _show(
        render_table(score_predictions([Prediction("a", "en", None, "", "", 7200.0, no_speech=True)], processing_s=0))
    )
    assert _row(text, "en") == ["en", "* –", "–", "–", "–", "1", "2 h 00 min"]


def test_before_and_after_shows_the_change_in_points(tmp_path: Path) -> None:
    after = score_predictions(
        [dataclasses.replace(PREDICTIONS[0], hypothesis="the cat sat"), *PREDICTIONS[1:3]], processing_s=1
    )
    before = score_predictions(PREDICTIONS, processing_s=1)
    text = _show(render_before_after(before, after, title="Demo"))
    assert _row(text, "en") == ["en", "WER", "25.00", "0.00", "-25.00", "50.0", "50.0"]
    assert _row(text, "zh") == ["zh", "CER", "25.00", "25.00", "+0.00", "–", "–"]
    assert _row(text, "ru") == ["ru", "WER", "0.00", "–", "–", "100.0", "–"]
    assert _row(text, "all")[:5] == ["all", "headline", "16.67", "12.50", "-4.17"]

    path = write_report(tmp_path, before, PREDICTIONS, artefact={}, settings={})
    read_back: dict[str, Any] = json.loads(path.read_text())
    assert _show(render_before_after(read_back, after, title="Demo")) == text
