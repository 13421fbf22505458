"""Whatever is done to a file, it is decoded to finite audio or refused with a code: no crash, no hang, no other error.

A sample of `benchmarks/damaged_audio.py`: 140 files, in a worker process under a watch.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import damaged_audio
from benchmarks.damage import DAMAGES, ENCODERS, damage, originals
from benchmarks.damaged_audio import list_cases, read_all, summarise
from data.audio import load_waveform
from data.reasons import Reason


def test_damaged_files_are_read_or_refused_with_a_code() -> None:
    cases = list_cases(2)
    assert len(cases) == 2 * len(ENCODERS) * len(DAMAGES) == 140
    outcomes = [outcome for outcome, _ in read_all(cases)]
    assert {outcome.code for outcome in outcomes} <= {"accepted", *(reason.code for reason in Reason)}
    figures = summarise(cases, outcomes)
    assert figures["accepted"] + figures["refused"] == figures["files"] == 140
    assert figures["accepted"] > 20  # a flipped bit of PCM cannot be seen, and is no reason to refuse a clip
    assert figures["of_these_accepted_with_the_length_stated"] == 0
    assert all(entry["refused"] == entry["files"] == 2 for entry in figures["truncations"].values())
    assert sum(entry["decoder_alone_short"] for entry in figures["truncations"].values()) > 10


def test_the_same_seed_damages_in_the_same_way() -> None:
    for kind in DAMAGES:
        assert damage("wav", kind, 7) == damage("wav", kind, 7)
        assert damage("wav", kind, 7)[0] != damage("wav", kind, 8)[0]
        assert damage("wav", kind, 7)[0] not in [content for content, _ in originals("wav")]


def test_undamaged_files_are_accepted() -> None:
    for format in ENCODERS:
        for content, duration_s in originals(format):
            waveform = load_waveform(content, duration_s=duration_s)
            assert len(waveform) > 0.3 * 16_000 and np.abs(waveform).max() > 0.1


def test_the_watch_sees_a_crash_and_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on with a new worker."""
    monkeypatch.setattr(damaged_audio, "HANG_S", 1.0)
    formats = ["wav", _Hostile("import os; os.abort()"), _Hostile("import time; time.sleep(60)"), "wav"]
    codes = [outcome.code for outcome, _ in read_all([(format, "truncation", 0) for format in formats])]
    assert codes == ["A03", "crash -6", "hang", "A03"]


class _Hostile(str):
    """A format whose name runs code when the worker unpacks it, as a decoder would that crashes or never returns."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, (str(self),))
