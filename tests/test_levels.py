"""Loudness is that of the speech, and the ratio to the background that which was mixed in."""

import numpy as np
import pytest
import soundfile

from data.rows import Row
from infer.score.evaluation import Prediction
from infer.score.levels import MAX_SNR_DB, measure_level, with_levels

RATE = 16_000


def _speech(*, seconds=6.0, level_db=-20.0):
    """Noise in bursts of 0.5 s with pauses of 0.3 s, at a level while it sounds."""
    rng = np.random.default_rng(0)
    samples = np.arange(int(seconds * RATE))
    sounds = (samples % int(0.8 * RATE)) < int(0.5 * RATE)
    return (rng.standard_normal(len(samples)) * sounds * 10 ** (level_db / 20)).astype(np.float32)


@pytest.mark.parametrize("level_db", [-10.0, -35.0])
def test_loudness_is_the_level_of_the_speech_and_not_of_the_pauses(level_db):
    assert measure_level(_speech(level_db=level_db)).loudness_dbfs == pytest.approx(level_db, abs=2.0)
    padded = np.concatenate([_speech(level_db=level_db), np.zeros(10 * RATE, np.float32)])
    assert measure_level(padded).loudness_dbfs == pytest.approx(level_db, abs=2.0)


@pytest.mark.parametrize("snr_db", [0.0, 5.0, 15.0, 30.0])
def test_the_ratio_is_that_which_was_mixed(snr_db):
    noise = np.random.default_rng(1).standard_normal(6 * RATE) * 10 ** ((-20.0 - snr_db) / 20)
    assert measure_level((_speech() + noise).astype(np.float32)).snr_db == pytest.approx(snr_db, abs=2.5)


def test_digital_silence_has_no_level_and_a_digital_pause_no_end():
    assert (measure_level(np.zeros(RATE, np.float32)).loudness_dbfs, measure_level(np.zeros(0, np.float32)).snr_db) == (
        None,
        None,
    )
    assert measure_level(_speech()).snr_db == MAX_SNR_DB
    assert measure_level(_speech(seconds=0.4)).snr_db is None


def test_predictions_get_the_levels_of_their_clips(tmp_path):
    rows, predictions = [], []
    for i, level_db in enumerate((-15.0, -30.0)):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, _speech(level_db=level_db), RATE, subtype="FLOAT")
        rows.append(Row(str(i), path, "x", "en", "transcribe", None, None, (), "", "", path, i))
        predictions.append(Prediction(str(i), "en", None, "x", "x", 6.0))
    rows[1] = Row("1", rows[1].audio, "x", "en", "transcribe", 2.0, 1.0, (), "", "", rows[1].audio, 1)
    found = with_levels(predictions, rows)
    assert [p.loudness_dbfs for p in found] == [pytest.approx(-15.0, abs=2.0), pytest.approx(-30.0, abs=2.0)]
    assert [p.id for p in found] == ["0", "1"] and found[0].hypothesis == "x"
