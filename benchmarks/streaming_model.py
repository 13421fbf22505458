"""The model that `benchmarks.streaming` measures accuracy with, and what it learns from.

No pretrained model comes with the project, so one of 1.6 M parameters learns from random weights what it will be asked:
it memorises the 34 clips of LJ Speech. What matters here is that it has heard cut windows, as Whisper has in plenty:
most clips begin or end somewhere in the middle, and their text holds only the words that are wholly in them. A model
that was trained on whole sentences alone completes them from its imagination.

Where the words of LJ Speech end is not known: they are laid over its speech in proportion to their letters, which is
right to about a word between two pauses.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.environment import PROJECT
from data.audio import SAMPLING_RATE, Waveform, load_waveform
from serve.voice import VoiceActivity, load_detector

FOLDER = PROJECT / "runs" / "streaming"
WINDOWS = Path(tempfile.gettempdir()) / "mezzavoce-streaming-windows"
MARGIN_S = 0.05  # that a word must end before a cut to be in the text
CUTS_OF_A_CLIP = 40


@dataclass(frozen=True)
class Word:
    """A word with the place where it ends, in seconds of its recording."""

    text: str
    end_s: float


@dataclass(frozen=True)
class Spoken:
    """A recording, and what is said in it."""

    waveform: Waveform
    words: list[Word]
    pauses_s: list[float]
    """Middles of its pauses, in seconds."""

    @property
    def text(self) -> str:
        """All of its words."""
        return " ".join(word.text for word in self.words)


def load_sentences(folder: Path) -> list[Spoken]:
    """Return the clips of LJ Speech with their words laid over them."""
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    return [lay_out_words(load_waveform(folder / row["audio"]), row["text"]) for row in rows]


def lay_out_words(waveform: Waveform, text: str) -> Spoken:
    """Lay the words of a sentence over its speech, in proportion to their letters."""
    voice = VoiceActivity(load_detector())
    voice.add(waveform)
    spans = [(span.start / SAMPLING_RATE, span.end / SAMPLING_RATE) for span in voice.spans]
    total_s = sum(end - start for start, end in spans)
    letters = [len(word) + 1 for word in text.split()]
    words, so_far = [], 0
    for word, size in zip(text.split(), letters, strict=True):
        so_far += size
        left = total_s * so_far / sum(letters)
        for start, end in spans:
            if left <= end - start + 1e-6:
                words.append(Word(word, start + left))
                break
            left -= end - start
        else:
            words.append(Word(word, spans[-1][1]))
    pauses = [(before[1] + behind[0]) / 2 for before, behind in pairwise(spans)]
    return Spoken(waveform, words, pauses)


def cut_windows(spoken: Spoken, count: int, rng: np.random.Generator) -> Iterator[tuple[Waveform, str]]:
    """Yield the whole recording, then pieces as live windows are, each with the words that are wholly in it.

    Args:
        spoken: the recording.
        count: of pieces; three in four begin with the recording, the others in one of its pauses.
        rng: draws them, and the silence before them.
    """
    yield spoken.waveform, spoken.text
    duration_s = len(spoken.waveform) / SAMPLING_RATE
    for _ in range(count):
        first_s = 0.0
        if spoken.pauses_s and rng.random() < 0.25:
            first_s = spoken.pauses_s[int(rng.integers(len(spoken.pauses_s)))]
        # a fifth ends with the recording, and some silence behind it
        last_s = duration_s + 0.3 if rng.random() < 0.2 else float(rng.uniform(first_s + 0.3, duration_s + 0.3))
        text = " ".join(word.text for word in spoken.words if first_s + 0.1 < word.end_s <= last_s - MARGIN_S)
        if text:
            padded = np.pad(spoken.waveform, (0, round(0.3 * SAMPLING_RATE)))
            piece = padded[round(first_s * SAMPLING_RATE) : round(last_s * SAMPLING_RATE)]
            yield np.pad(piece, (round(float(rng.uniform(0.0, 0.4)) * SAMPLING_RATE), 0)), text


def write_windows(speech: Path) -> Path:
    """Write what the model learns from, once; return the folder of its manifests."""
    if (WINDOWS / "validation.jsonl").is_file():
        return WINDOWS
    (WINDOWS / "audio").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sentences = load_sentences(speech / "ljspeech_en")
    pieces = [piece for spoken in sentences for piece in cut_windows(spoken, CUTS_OF_A_CLIP, rng)]
    # the validation only shows how far the memory is; the figures come from elsewhere
    whole = [(spoken.waveform, spoken.text) for spoken in sentences[:12]]
    for split, parts in (("train", pieces), ("validation", whole)):
        lines = []
        for i, (waveform, text) in enumerate(parts):
            name = f"audio/{split}-{i}.flac"
            soundfile.write(WINDOWS / name, waveform, SAMPLING_RATE)
            lines.append(json.dumps({"audio": name, "text": text, "language": "en"}))
        (WINDOWS / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return WINDOWS


def train(speech: Path, steps: int) -> None:
    """Train, from where a training stopped that was cut off.

    Raises:
        SystemExit: if the training fails; with its code.
    """
    folder = write_windows(speech)
    command = [sys.executable, str(PROJECT / "scripts/train.py"), "model=scratch", "dataset=manifest"]
    command += [f"dataset.train={folder / 'train.jsonl'}", f"dataset.validation={folder / 'validation.jsonl'}"]
    # Mostly whole words as tokens: spelt letter by letter, a sentence takes far more updates to learn.
    command += ["model.tokenizer_unit=bpe", "model.vocabulary_size=500", "model.dropout=0.0", "tracker=none"]
    command += [f"run.dir={FOLDER / 'run'}", f"trainer.max_steps={steps}", "trainer.eval_every_steps=300"]
    command += ["trainer.micro_batch_size=16", "schedule.warmup_steps=100", "trainer.keep_checkpoints=1"]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise SystemExit(code)
    shutil.rmtree(folder)  # speech of others stays where it is
