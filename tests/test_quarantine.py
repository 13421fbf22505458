"""Clips found bad on the way count by number and by seconds, together with what was left out before."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.batches import BadRow
from data.reasons import Reason, Rejected, reject
from train.quarantine import Quarantine


def _bad(line: int, duration_s: float | None) -> Rejected:
    return reject(Reason.AUDIO_CORRUPT, manifest="m.jsonl", line=line, duration_s=duration_s)


def _quarantine(tmp_path: Path, *refused: Rejected, on_bad: str = "quarantine") -> Quarantine:
    return Quarantine(tmp_path / "quarantine.jsonl", on_bad=on_bad, max_bad_share=0.1, refused=refused)


def test_one_long_clip_is_too_much_where_a_short_one_is_not(tmp_path: Path) -> None:
    _quarantine(tmp_path).add([BadRow(1, _bad(1, 9.0))], num_rows=20, audio_s=100.0)
    with pytest.raises(ValueError, match="1 of 20 clips, 11 of 100 s, cannot be used"):
        _quarantine(tmp_path).add([BadRow(1, _bad(1, 11.0))], num_rows=20, audio_s=100.0)
    _quarantine(tmp_path, on_bad="report").add([BadRow(1, _bad(1, 11.0))], num_rows=20, audio_s=100.0)


def test_what_was_left_out_before_counts_on_both_sides(tmp_path: Path) -> None:
    refused = (_bad(1, 5.0), _bad(2, None))
    _quarantine(tmp_path, *refused).add([BadRow(3, _bad(3, 5.0))], num_rows=50, audio_s=95.0)
    with pytest.raises(ValueError, match="3 of 52 clips, 11 of 100 s"):
        _quarantine(tmp_path, *refused).add([BadRow(3, _bad(3, 6.0))], num_rows=50, audio_s=95.0)


def test_a_clip_counts_once_and_its_seconds_are_kept_over_a_restart(tmp_path: Path) -> None:
    first = _quarantine(tmp_path)
    first.add([BadRow(1, _bad(1, 6.0))], num_rows=50, audio_s=100.0)
    first.add([BadRow(1, _bad(1, 6.0))], num_rows=50, audio_s=100.0)
    second = _quarantine(tmp_path)
    second.load_state(first.state())
    with pytest.raises(ValueError, match="2 of 50 clips, 12 of 100 s"):
        second.add([BadRow(2, _bad(2, 6.0))], num_rows=50, audio_s=100.0)
