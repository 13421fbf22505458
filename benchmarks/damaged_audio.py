"""Damaged audio: every file is decoded to finite audio or refused with a code; nothing crashes, nothing hangs.

    python -m benchmarks.damaged_audio            10,010 files, twice; about 10 minutes on one core
    python -m benchmarks.damaged_audio --per 5    350 files

14 formats times 5 kinds of damage, all from one seed. A worker process makes each damaged file and reads it, while this
one waits with a watch: a worker that dies is a crash, one that is silent for 10 s a hang. The second run must give the
same code and the same number of samples for every file. Truncations are also given to libsndfile alone (FFmpeg alone
where libsndfile does not know the format).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from benchmarks.damage import DAMAGES, ENCODERS, SEED, damage
from benchmarks.watch import HANG_S, watch
from data.audio import SAMPLING_RATE, AudioError, load_waveform
from data.probe import probe_duration_s

TOLERANCE_S = 0.1  # codecs pad; what a manifest's duration tolerates, too


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged file."""

    code: str
    """Reason code, or "accepted"."""
    num_samples: int = 0
    """At 16 kHz, if accepted."""
    original_s: float = 0.0
    code_with_duration: str = ""
    """The code if the manifest states the original's length, or "accepted"."""
    alone: str = ""
    """For truncations: what libsndfile or FFmpeg alone says, "refused", "whole" or "short"."""


def read_damaged(format: str, kind: str, number: int, folder: Path) -> Outcome:
    """Make a damaged file, read it as training does, and say what came of it; every second one from disk."""
    content, original_s = damage(format, kind, number)
    source: Path | bytes = content
    if number % 2:
        source = folder / f"{os.getpid()}.{format.split(' ')[0]}"
        source.write_bytes(content)
    alone = _read_alone(content, format, original_s) if kind == "truncation" else ""
    with_duration, _ = _code(source, original_s)
    code, num_samples = _code(source, None)
    if code == "accepted":
        assert abs(probe_duration_s(source) - num_samples / SAMPLING_RATE) < 0.11
    return Outcome(code, num_samples, original_s, with_duration, alone)


def _code(source: Path | bytes, duration_s: float | None) -> tuple[str, int]:
    try:
        waveform = load_waveform(source, duration_s=duration_s)
    except AudioError as e:
        return e.reason.code, 0
    assert waveform.ndim == 1 and waveform.dtype == np.float32 and np.isfinite(waveform).all()
    return "accepted", len(waveform)


def _read_alone(content: bytes, format: str, original_s: float) -> str:
    try:
        if format in ("m4a", "webm"):
            with av.open(io.BytesIO(content), metadata_errors="ignore") as container:
                stream = container.streams.audio[0]
                found_s = sum(frame.samples / frame.sample_rate for frame in container.decode(stream))
        else:
            samples, rate = soundfile.read(io.BytesIO(content))
            found_s = len(samples) / rate
    except (soundfile.LibsndfileError, av.FFmpegError, ValueError, IndexError):
        return "refused"
    return "whole" if found_s > original_s - 0.001 else "short"


def read_all(cases: Sequence[tuple[str, str, int]]) -> Iterator[tuple[Outcome, int]]:
    """Read damaged files in a worker process; yield the outcome and the worker's peak memory in KiB for each."""
    return watch(_read_case, cases, first=("wav", "bit flips", 0), failed=Outcome, hang_s=HANG_S)


def _read_case(case: tuple[str, str, int], folder: Path) -> Outcome:
    return read_damaged(*case, folder)


def list_cases(per_kind: int) -> list[tuple[str, str, int]]:
    """Return (format, damage, number) of every file."""
    return [(format, kind, number) for format in ENCODERS for kind in DAMAGES for number in range(per_kind)]


def digest(outcomes: Sequence[Outcome]) -> str:
    """Hash every code and every number of samples, in order."""
    return hashlib.sha256(repr([(o.code, o.code_with_duration, o.num_samples) for o in outcomes]).encode()).hexdigest()


def summarise(cases: Sequence[tuple[str, str, int]], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Count codes, lengths and truncations."""
    pairs = list(zip(cases, outcomes, strict=True))
    accepted = [(case, o) for case, o in pairs if o.code == "accepted"]
    other = [(case, o) for case, o in accepted if _differs_s(o) > TOLERANCE_S]
    refused = sum(len(o.code) == 3 for o in outcomes)
    return {
        "files": len(cases),
        "accepted": len(accepted),
        "refused": refused,
        "crashes": sum(o.code.startswith("crash") for o in outcomes),
        "hangs_over_10_s": sum(o.code == "hang" for o in outcomes),
        "escaped": sorted({o.code for o in outcomes if o.code.startswith("escaped")}),
        "codes": dict(sorted(Counter(o.code for o in outcomes).items())),
        "accepted_of_the_same_length": sum(_differs_s(o) <= TOLERANCE_S for _, o in accepted),
        "accepted_of_another_length": len(other),
        "of_these_where": dict(Counter(f"{format}, {kind}" for (format, kind, _), _ in other)),
        "of_these_accepted_with_the_length_stated": sum(o.code_with_duration == "accepted" for _, o in other),
        "longest_share_of_the_original": round(
            max(o.num_samples / SAMPLING_RATE / o.original_s for _, o in accepted), 2
        ),
        "truncations": {format: _count_truncations(format, pairs) for format in ENCODERS},
    }


def _differs_s(outcome: Outcome) -> float:
    return abs(outcome.num_samples / SAMPLING_RATE - outcome.original_s)


def _count_truncations(format: str, pairs: Sequence[tuple[tuple[str, str, int], Outcome]]) -> dict[str, int]:
    cut = [o for (name, kind, _), o in pairs if name == format and kind == "truncation"]
    return {
        "files": len(cut),
        "refused": sum(o.code != "accepted" for o in cut),
        "accepted_whole": sum(o.code == "accepted" and _differs_s(o) < 0.001 for o in cut),
        "accepted_short": sum(o.code == "accepted" and _differs_s(o) >= 0.001 for o in cut),
        "decoder_alone_refused": sum(o.alone == "refused" for o in cut),
        "decoder_alone_short": sum(o.alone == "short" for o in cut),
    }


def main() -> None:
    """Measure and write `results/damaged_audio.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per", type=int, default=143, help="files of each format and kind of damage")
    arguments = parser.parse_args()
    cases = list_cases(arguments.per)
    digests, peaks, seconds = [], [], []
    for _ in range(2):
        started = time.perf_counter()
        read = list(read_all(cases))
        seconds.append(round(time.perf_counter() - started, 1))
        outcomes = [outcome for outcome, _ in read]
        digests.append(digest(outcomes))
        peaks.append(max(peak_kib for _, peak_kib in read))
        print(digests[-1], f"{seconds[-1]} s", Counter(outcome.code for outcome in outcomes))
    figures = {
        "seed": SEED,
        **summarise(cases, outcomes),
        "same_codes_twice": digests[0] == digests[1],
        "digest": digests[0],
        "worker_peak_gib": round(max(peaks) / 2**20, 3),
        "seconds": seconds,
    }
    from benchmarks.environment import write_result  # here, so that the workers do without torch

    write_result("damaged_audio", figures)


if __name__ == "__main__":
    main()
