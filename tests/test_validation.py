"""A validation has one number, lower is better, whatever is scored; rows of another task do not spoil it."""

import dataclasses
import math
from pathlib import Path

import pytest

from data.rows import Row
from infer.score.evaluation import Prediction, score_predictions
from infer.score.held_out import verify_task
from train.validation import Validation


def _validation(**changes):
    row = Prediction("a", "de", "de", "the cat sat on the mat", "the cat sat on the hat", 2.0)
    rows = [dataclasses.replace(row, **changes)]
    return Validation(score_predictions(rows, processing_s=1.0), tuple(rows), 0.5)


def test_the_headline_is_the_mean_rate():
    found = _validation()
    assert found.headline == pytest.approx(1 / 6)
    figures = found.figures("validation")
    assert figures["valid/validation/headline"] == found.headline
    assert figures["valid/validation/de/wer"] == found.headline and figures["valid/validation/loss"] == 0.5


def test_a_better_translation_is_lower():
    worse = _validation(task="translate").headline
    better = _validation(task="translate", hypothesis="the cat sat on the mat").headline
    assert 0 <= better < worse < 1


def test_a_set_of_silence_has_no_rate_and_is_never_the_best():
    found = _validation(reference="", hypothesis="", no_speech=True)
    assert found.headline == math.inf
    assert "valid/validation/headline" not in found.figures("validation")


def test_rows_of_another_task_are_named():
    row = Row("a", Path("a.wav"), "cat", "de", "translate", None, None, (), "", "", Path("m.jsonl"), 7)
    verify_task([row], "translate")
    with pytest.raises(ValueError, match=r"m\.jsonl:7: the task is translate.*type decoding\.task=translate"):
        verify_task([row], "transcribe")
