"""Fakes and small real things that several tests share: made audio, manifests, a tiny Whisper with its tokenizer."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

PROJECT = Path(__file__).resolve().parents[1]
SHARED_SPEECH = PROJECT.parent / "shared" / "speech"

TEXTS = {"en": "one two three", "zh": "你好世界", "ja": "こんにちは", "ar": "مرحبا بالعالم", "ru": "привет мир"}


@pytest.fixture
def speech() -> Path:
    """Real human speech beside the checkout; the test is skipped where there is none."""
    if not SHARED_SPEECH.is_dir():
        pytest.skip("real speech is not beside this checkout")
    return SHARED_SPEECH


def tone(duration_s: float, *, sampling_rate: int = 16_000, hz: float = 440.0, seed: int = 0) -> np.ndarray:
    """Return a wavering tone with a little noise, (num_samples,) float32."""
    t = np.arange(round(duration_s * sampling_rate)) / sampling_rate
    noise = np.random.default_rng(seed).normal(0, 0.01, len(t))
    return (0.3 * np.sin(2 * np.pi * hz * t * (1 + 0.1 * np.sin(3 * t))) + noise).astype(np.float32)


@pytest.fixture
def write_clip(tmp_path: Path) -> Callable[..., Path]:
    """Write a made clip and return its path."""

    def write(name: str = "clip.wav", duration_s: float = 1.0, sampling_rate: int = 16_000, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(duration_s, sampling_rate=sampling_rate, **options), sampling_rate)
        return path

    return write


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (dicts, or raw text lines) as a manifest and return its path."""

    def write(rows: list[Any], name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def corpus(write_clip: Callable[..., Path], write_manifest: Callable[..., Path]) -> Path:
    """A manifest of ten made clips, 0.3 to 2.1 s, two in each of five languages."""
    rows = []
    for i in range(10):
        language = list(TEXTS)[i % 5]
        duration_s = round(0.3 + 0.2 * i, 2)
        write_clip(f"audio/{i}.wav", duration_s, hz=200.0 + 40 * i, seed=i)
        rows.append(
            {"id": f"c{i}", "audio": f"audio/{i}.wav", "text": TEXTS[language] * (1 + i // 5), "language": language}
        )
    return write_manifest(rows)


@pytest.fixture(scope="session")
def tokenizer():
    """A character tokenizer with all of Whisper's special tokens."""
    from train.vocabulary import learn_tokenizer

    return learn_tokenizer(TEXTS.values(), unit="character", vocabulary_size=1000)


_TINY: list[Any] = []


def tiny_whisper():
    """Return a fresh copy of the model of the fixture `whisper`, for use outside a fixture."""
    if not _TINY:
        from train.model import Geometry, ModelSettings, load_model

        torch.manual_seed(0)
        geometry = Geometry(d_model=16, encoder_layers=2, decoder_layers=1, attention_heads=2, ffn_dim=32)
        _TINY.append(load_model(ModelSettings("scratch", geometry=geometry), texts=TEXTS.values()).whisper)
    return copy.deepcopy(_TINY[0])


@pytest.fixture
def whisper():
    """A Whisper of two and one layers, width 16, 80 bins, random weights, in FP32; the same one every time."""
    made = tiny_whisper()
    torch.manual_seed(0)
    return made


def fake_batch(num_clips: int, *, num_frames: int = 100, seed: int = 0, first_clip: int = 0):
    """Return a micro-batch of made features and labels of unlike length: 3, 5, 7, ... tokens, again from 3 after 15."""
    from data.batches import collate
    from data.labels import IGNORE_INDEX, Labels

    features, labels = [], []
    for i in range(num_clips):
        rng = np.random.default_rng([seed, first_clip + i])
        features.append(torch.from_numpy(rng.normal(0, 1, (80, num_frames)).astype(np.float32)))
        ids = [int(x) for x in rng.integers(0, 300, 4 + 2 * ((first_clip + i) % 7))]
        labels.append(Labels(tuple(ids[:-1]), (IGNORE_INDEX, *ids[2:])))
    clips = range(first_clip, first_clip + num_clips)
    return collate(features, labels, clips=clips, audio_s=num_clips * num_frames / 100, pad_id=256)


def _reset_accelerate() -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def fresh_accelerate():
    """Accelerate's state belongs to the process: begin and end without it; call the value to drop it in between."""
    _reset_accelerate()
    yield _reset_accelerate
    _reset_accelerate()


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """Toy runs of two processes that share the work; one without a fault is there once for all tests."""
    from benchmarks.toy_run import ToyRuns

    before = torch.get_num_threads()
    made = ToyRuns(tmp_path_factory.mktemp("two"), "trainer.max_steps=10", validation=True)
    torch.set_num_threads(before)
    return made


@pytest.fixture
def one_thread():
    """A child that is forked while threads of torch are busy would wait for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kept_logging():
    """Put the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def enliven(whisper, tokenizer):
    """Give a model weights so large that what it says depends on what it hears, and return it in evaluation mode.

    Control tokens get smaller ones, so that there is text between them.
    """
    end_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in whisper.named_parameters():
            if "encoder.embed_positions" not in name and parameter.ndim > 1:
                parameter.normal_(0, 0.35)
        whisper.model.decoder.embed_tokens.weight[end_id:] *= 0.3
    return whisper.eval()


@pytest.fixture
def lively(whisper, tokenizer):
    """The tiny Whisper, so that what it says depends on what it hears; the same one every time."""
    return enliven(whisper, tokenizer)


@pytest.fixture(scope="session")
def lay_artefact(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Lay the fixture `lively` at a path, as an FP16 artefact that a test may change.

    Writing one costs 0.1 s and copying it 5 ms, so it is written once for each rule of windows.
    """
    from data.windows import build_windows
    from infer.artefact import write_artefact
    from infer.half import cast_to_half

    written: dict[tuple[float, ...], Path] = {}

    def lay(target: Path, edges_s: tuple[float, ...] = (1, 3, 30)) -> Path:
        if edges_s not in written:
            model = enliven(tiny_whisper(), tokenizer)
            written[edges_s] = write_artefact(
                tmp_path_factory.mktemp("written") / "export",
                cast_to_half(model.state_dict()),
                config=model.config,
                generation_config=model.generation_config,
                tokenizer=tokenizer,
                windows=build_windows(edges_s),
                record={"trained_steps": 3},
            )
        return Path(shutil.copytree(written[edges_s], target))

    return lay


@pytest.fixture
def artefact_dir(lay_artefact: Callable[..., Path], tmp_path: Path) -> Path:
    """The fixture `lively` as an FP16 artefact at `export/`, with windows of 1, 3 and 30 s."""
    return lay_artefact(tmp_path / "export")
