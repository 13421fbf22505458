"""What a worker does before its first batch: it looks at what the model can, hears a known clip, and warms up.

Some builds of other runtimes return nothing, in silence, on a driver that is too old: a service that starts and answers
with empty texts is worse than one that does not start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.audio import SAMPLING_RATE, Waveform, load_waveform
from data.features import FRAMES_PER_S, HOP_LENGTH
from data.languages import LANGUAGE_CODES
from infer.decoding import Decoded, DecodeSettings
from infer.score.alignment import count_pair
from infer.score.normalise import normalise
from serve.runtime import Runtime, load_runtime

MAX_DIFFERENCE = 0.2  # of the characters of the known text; arithmetic and runtimes differ in single ones
SELF_TEST_S = 10.0  # of a clip that are listened to


@dataclass(frozen=True)
class Load:
    """What a worker loads, once."""

    path: str
    runtime: str
    compute: str
    num_threads: int
    cache_dir: str
    profiles: dict[str, DecodeSettings]
    max_batch: int
    max_batch_audio_s: float
    self_test: str
    """A clip; empty for a made sound."""
    self_test_text: str
    """What is said in it; empty takes what torch in FP32 hears."""
    tests: bool
    """False for a worker that stands beside, or in place of, one that was tested."""


@dataclass(frozen=True)
class Facts:
    """What a worker says of its model."""

    description: dict[str, Any]
    """What stands beside every text."""
    edges_s: tuple[float, ...]
    """Windows that the model was trained with."""
    languages: tuple[str, ...]
    """ISO codes."""
    profiles: tuple[str, ...]
    """Names of those that the runtime offers."""
    has_timestamps: bool
    has_words: bool
    """Whether the runtime finds times of words."""
    has_prompts: bool
    mixes_lengths: bool
    """Whether windows of several lengths can share a batch."""
    self_test: str
    """What came of it, in one line."""


def prepare(runtime: Runtime, load: Load) -> Facts:
    """Test and warm up a model.

    Raises:
        RuntimeError: if it fails the self-test.
    """
    artefact = runtime.artefact
    vocabulary = artefact.tokenizer.get_vocab()
    record = getattr(artefact, "record", {})
    # A folder of another tool is a published Whisper, which all learnt times.
    is_trained = record.get("decoding", {}).get("timestamps", False) if record else True
    profiles = tuple(name for name, settings in load.profiles.items() if _offers(runtime, settings))
    if not profiles:
        raise RuntimeError(f"runtime={load.runtime} offers none of the profiles {', '.join(load.profiles)}")
    tested = _self_test(runtime, load) if load.tests else "not repeated"
    _warm_up(runtime, load)
    return Facts(
        description={"runtime": load.runtime, **artefact.describe(), "reason": getattr(artefact, "reason", "")},
        edges_s=artefact.windows.edges_s,
        languages=tuple(code for code in LANGUAGE_CODES if f"<|{code}|>" in vocabulary),
        profiles=profiles,
        has_timestamps=is_trained and _offers(runtime, DecodeSettings(timestamps=True)),
        has_words=_offers(runtime, DecodeSettings(word_times=True)),
        has_prompts=load.runtime == "torch",
        mixes_lengths=load.runtime == "torch",
        self_test=tested,
    )


def _decode(runtime: Runtime, waveforms: list[Waveform], num_frames: int, settings: DecodeSettings) -> list[Decoded]:
    return runtime.decoder.decode(runtime.features(waveforms, num_frames), settings)


def _silence(num_frames: int) -> Waveform:
    return np.zeros(num_frames * HOP_LENGTH, dtype=np.float32)


def _offers(runtime: Runtime, settings: DecodeSettings) -> bool:
    num_frames = round(runtime.artefact.windows.edges_s[0] * FRAMES_PER_S)
    try:
        _decode(runtime, [_silence(num_frames)], num_frames, replace(settings, max_new_tokens=2))
    except ValueError:  # how other runtimes refuse settings that would not mean the same search
        return False
    return True


def _warm_up(runtime: Runtime, load: Load) -> None:
    """Decode a few tokens of silence in each window; on a GPU as many together as will be, since that takes memory."""
    settings = DecodeSettings(max_new_tokens=4)
    for edge_s in runtime.artefact.windows.edges_s:
        num_frames = round(edge_s * FRAMES_PER_S)
        is_cpu = runtime.artefact.model.device.type == "cpu"
        num_together = 1 if is_cpu else max(1, min(load.max_batch, int(load.max_batch_audio_s / edge_s)))
        try:
            _decode(runtime, [_silence(num_frames)] * num_together, num_frames, settings)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # batches will be halved


def _self_test(runtime: Runtime, load: Load) -> str:
    """Hear a clip twice, and hold its text against the known one."""
    waveform = _test_clip(load.self_test)
    num_frames = runtime.artefact.windows.num_frames(len(waveform) / SAMPLING_RATE)
    settings = DecodeSettings()
    first, second = (_decode(runtime, [waveform], num_frames, settings)[0] for _ in range(2))
    if first.text != second.text:
        raise RuntimeError(f"self-test failed: the same clip gave {first.text!r} and then {second.text!r}")
    expected, source = load.self_test_text, "the text given"
    if not expected and (load.runtime, str(runtime.artefact.model.dtype)) != ("torch", "torch.float32"):
        reference = load_runtime(Path(load.path), "torch", compute="fp32", cache_dir=Path(load.cache_dir), device="cpu")
        expected, source = _decode(reference, [waveform], num_frames, settings)[0].text, "torch in FP32"
    if not expected:
        if not first.text and load.self_test:
            raise RuntimeError(f"self-test failed: nothing was heard in {load.self_test}")
        return f"repeatable, {len(first.text)} characters"
    reference_text, text = (normalise(value, first.language) for value in (expected, first.text))
    counts = count_pair(reference_text, text)
    edits = counts.substitutions + counts.deletions + counts.insertions
    if edits > MAX_DIFFERENCE * max(1, counts.num_units):
        raise RuntimeError(
            f"self-test failed: heard {first.text!r} where {source} is {expected!r}; another runtime= or precision= "
            "may work on this machine"
        )
    return f"{edits} of {counts.num_units} characters differ from {source}"


def _test_clip(path: str) -> Waveform:
    if path:
        return load_waveform(Path(path), max_duration_s=None)[: round(SELF_TEST_S * SAMPLING_RATE)]
    t = np.arange(2 * SAMPLING_RATE) / SAMPLING_RATE
    rng = np.random.default_rng(0)
    made = 0.3 * np.sin(2 * np.pi * 220 * t * (1 + 0.1 * np.sin(3 * t))) + rng.normal(0, 0.01, len(t))
    return np.asarray(made, dtype=np.float32)
