"""A batch that does not fit is done in halves; windows of several lengths say together what each says alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.features import LogMel
from data.windows import build_windows
from infer.artefact import Artefact
from infer.decoding import Decoded, Decoder, DecodeSettings
from serve.batch import Batch, decode_batch, in_halves, is_out_of_memory
from serve.runtime import Runtime
from tests.conftest import tone

SETTINGS = DecodeSettings(max_new_tokens=30)


def _said(text):
    return Decoded(text, "en", "en", 1.0, (), False)


@pytest.mark.parametrize(
    ("error", "room"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 1),
        (MemoryError(), 3),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"), 5),
        (RuntimeError("CUDA failed with error out of memory"), 8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_does_not_fit_is_halved_until_it_does(error, room):
    sizes, halvings = [], []

    def decode(rows):
        sizes.append(len(rows))
        if len(rows) > room:
            raise error
        return [_said(f"row {row}") for row in rows]

    found = in_halves(decode, range(8), on_halving=lambda: halvings.append(1))
    assert [decoded.text for decoded in found] == [f"row {row}" for row in range(8)]
    fitting = [size for size in sizes if size <= room]
    assert sum(fitting) == 8  # nothing is decoded twice
    assert len(halvings) == len(sizes) - len(fitting)


def test_a_window_that_never_fits_costs_its_neighbours_nothing():
    def decode(rows):
        if 5 in rows:
            raise torch.OutOfMemoryError("out of memory")
        return [_said(f"row {row}") for row in rows]

    found = in_halves(decode, range(8), on_halving=lambda: None)
    assert found[5] == "the model has no memory left for this recording"
    assert [decoded.text for i, decoded in enumerate(found) if i != 5] == [f"row {i}" for i in range(8) if i != 5]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape"):
        in_halves(lambda rows: (_ for _ in ()).throw(RuntimeError("shape mismatch")), range(4), on_halving=lambda: None)


@pytest.fixture
def runtime(lively, tokenizer, tmp_path):
    windows = build_windows([0.5, 1, 2, 30])
    artefact = Artefact(tmp_path, lively, tokenizer, windows, "", "float16", "float32", "")
    return Runtime(artefact, Decoder(lively, tokenizer), LogMel(lively.config.num_mel_bins))


def _batch(runtime, durations_s, **changes):
    waveforms = [tone(duration_s, hz=150 + 60 * i, seed=i) for i, duration_s in enumerate(durations_s)]
    frames = [runtime.artefact.windows.num_frames(duration_s) for duration_s in durations_s]
    languages = [("auto", "en", "zh")[i % 3] for i in range(len(waveforms))]
    return replace(Batch(waveforms, frames, SETTINGS, languages, None), **changes)


def _alone(runtime, batch):
    parts = zip(batch.waveforms, batch.num_frames, batch.languages, strict=True)
    return [
        decode_batch(runtime, Batch([waveform], [frames], batch.settings, [language], batch.prompt)).decoded[0]
        for waveform, frames, language in parts
    ]


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        DecodeSettings(),  # the limit of tokens is that of each window
        replace(SETTINGS, num_beams=3),
        replace(SETTINGS, temperature=(0.7,), seed=3),
        replace(SETTINGS, timestamps=True),
        replace(SETTINGS, temperature=(0.0, 0.5), compression_ratio_threshold=0.5),
    ],
    ids=["greedy", "whole", "beams", "drawn", "times", "fallback"],
)
def test_windows_of_several_lengths_say_together_what_each_says_alone(runtime, settings):
    batch = _batch(runtime, [0.4, 1.7, 0.9, 0.3, 2.0, 0.8, 1.1], settings=settings)
    together, alone = decode_batch(runtime, batch).decoded, _alone(runtime, batch)
    assert [(d.text, d.tokens, d.is_cut, d.language) for d in together] == [
        (d.text, d.tokens, d.is_cut, d.language) for d in alone
    ]
    np.testing.assert_allclose([d.avg_logprob for d in together], [d.avg_logprob for d in alone], atol=1e-4)
    assert [d.segments for d in together] == [d.segments for d in alone]
    assert len({d.text for d in together}) > 3  # the model hears differences
    if settings == DecodeSettings():
        assert {len(d.tokens) for d in together if d.is_cut} >= {45, 70}  # 20 and 50 a second, by window


def test_a_prompt_changes_the_text_and_not_by_who_stands_beside(runtime):
    plain = _batch(runtime, [0.4, 0.45, 1.6], languages=["en", "en", "ru"])
    prompted = replace(plain, prompt="one two three")
    texts = [d.text for d in decode_batch(runtime, prompted).decoded]
    assert texts == [d.text for d in _alone(runtime, prompted)]
    assert texts != [d.text for d in decode_batch(runtime, plain).decoded]
