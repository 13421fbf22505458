"""Live text: how far behind the speaker it is, and whether its text is the offline one.

    python -m benchmarks.streaming ../shared/speech --train     first a model that hears connected digits, 4 minutes
    python -m benchmarks.streaming ../shared/speech             the figures again, 3 minutes

No pretrained model comes with the project, so the two questions are asked of two models:

Accuracy, of a model that really transcribes. Digits of the Free Spoken Digit Dataset are joined to utterances of 2 to
5, with pauses between them as people make them; a model of 1.6 M parameters learns them from random weights. Offline,
each test utterance is transcribed whole; live, all of them come one after the other as one stream. Both texts are
scored against what was said.

Latency, of a model of Whisper tiny's shape with random weights: it takes what tiny takes, whatever it says. LJ Speech
is fed to the core; every pass really runs features, encoder and search over the window, for as many tokens as the text
of that window has; the text itself is that of the transcript, its words laid over the speech by their letters. So the
delay of each word is right to about a tenth of a second, and nothing is said about accuracy.

Time is simulated: sound comes at the pace of speech, and a pass ends as many seconds later as it was measured to take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.decode_speed import CHARACTERS_PER_TOKEN, build_artefact
from benchmarks.environment import PROJECT, write_result
from data.audio import SAMPLING_RATE, Waveform, load_waveform
from infer.artefact import load_artefact
from infer.backends.ctranslate2 import CTranslate2Decoder, load_ctranslate2
from infer.decoding import DecodeSettings
from infer.export.ctranslate2 import convert_to_ctranslate2
from infer.score.rates import compute_rates
from infer.transcriber import Transcriber
from serve.streaming import Heard, Stream, StreamSettings, Update, Window

FOLDER = PROJECT / "runs" / "streaming"
PIECE = SAMPLING_RATE // 10  # samples that come in at once
UTTERANCE_PAUSE_S = 1.0
STEPS = 500
Hear = Callable[[Window], Heard]


@dataclass(frozen=True)
class Word:
    """A word with the place where it ends."""

    text: str
    end_s: float


def join_digits(manifest: Path, num_utterances: int, *, seed: int) -> list[tuple[Waveform, list[Word]]]:
    """Return utterances of 2 to 5 digits of one speaker each, with pauses of 0.05 to 0.35 s."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_speaker.setdefault(row["speaker"], []).append(row)
    rng = np.random.default_rng(seed)
    speakers = sorted(by_speaker)
    made = []
    for i in range(num_utterances):
        own = by_speaker[speakers[i % len(speakers)]]
        parts, words, position = [], [], 0
        for _ in range(int(rng.integers(2, 6))):
            row = own[int(rng.integers(len(own)))]
            clip = load_waveform(manifest.parent / row["audio"])
            pause = np.zeros(round(float(rng.uniform(0.05, 0.35)) * SAMPLING_RATE), dtype=np.float32)
            words.append(Word(row["text"], (position + len(clip)) / SAMPLING_RATE))
            parts += [clip, pause]
            position += len(clip) + len(pause)
        made.append((np.concatenate(parts[:-1]), words))
    return made


def train(speech: Path, steps: int) -> None:
    """Write joined digits and train on them."""
    folder = FOLDER / "digits"
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 1500), ("validation", 30)):
        # validation comes from the training split, too: the test split is for the figure alone
        lines = []
        for i, (waveform, words) in enumerate(
            join_digits(speech / "fsdd_en" / "train.jsonl", count, seed=0 if split == "train" else 1)
        ):
            name = f"audio/{split}-{i}.flac"
            soundfile.write(folder / name, waveform, SAMPLING_RATE)
            text = " ".join(word.text for word in words)
            lines.append(json.dumps({"audio": name, "text": text, "language": "en"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, str(PROJECT / "scripts/train.py"), "model=scratch", "dataset=manifest"]
    command += [f"dataset.train={folder / 'train.jsonl'}", f"dataset.validation={folder / 'validation.jsonl'}"]
    command += ["tracker=none", f"run.dir={FOLDER / 'run'}", "run.overwrite=true", f"trainer.max_steps={steps}"]
    command += [f"trainer.eval_every_steps={max(1, steps // 2)}", "trainer.micro_batch_size=16"]
    command += [f"schedule.warmup_steps={min(60, steps // 4)}"]
    subprocess.run(command, check=True)


def listen(waveform: Waveform, hear: Hear, settings: StreamSettings) -> tuple[list[tuple[float, Update]], list[float]]:
    """Feed a recording at the pace of speech; return (seconds on the clock, update), and the seconds of each pass."""
    stream = Stream(settings)
    updates: list[tuple[float, Update]] = []
    passes: list[float] = []
    now_s, fed = 0.0, 0
    while True:
        due = min(len(waveform), int(now_s * SAMPLING_RATE) // PIECE * PIECE)
        begin = time.perf_counter()
        if due > fed:
            stream.add(waveform[fed:due])
            fed = due
        is_over = fed == len(waveform)
        window = stream.next_window(is_over=is_over)
        now_s += time.perf_counter() - begin  # the detector of voices counts, too
        if window is None:
            if is_over:
                return updates, passes
            now_s = max(now_s, (fed + PIECE) / SAMPLING_RATE)
            continue
        begin = time.perf_counter()
        heard = hear(window)
        passes.append(time.perf_counter() - begin)
        now_s += passes[-1]
        updates.append((now_s, stream.take(window, heard)))


def find_delays(updates: list[tuple[float, Update]], words: list[Word]) -> list[float]:
    """Return how many seconds behind its end each word became final; words are matched by their order."""
    times = [now_s for now_s, update in updates for _ in update.delta.split()]
    return [now_s - word.end_s for now_s, word in zip(times, words, strict=False)]


def summarise(values: list[float]) -> dict[str, float] | None:
    """Return median, 95th percentile and largest; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "max": round(ordered[-1], 3),
    }


def measure_accuracy(speech: Path, settings: StreamSettings) -> dict[str, Any]:
    """Compare live and offline text of connected digits."""
    transcriber = Transcriber(load_artefact(FOLDER / "run" / "export"), DecodeSettings(language="en"))
    utterances = join_digits(speech / "fsdd_en" / "test.jsonl", 60, seed=2)
    offline = [found.text for found in transcriber.transcribe([waveform for waveform, _ in utterances])]

    def hear(window: Window) -> Heard:
        (found,) = transcriber.transcribe([window.waveform]) if len(window.waveform) else (None,)
        return Heard(found.text, found.language) if found else Heard("", "")

    texts, first_delays, all_delays, passes = [], [], [], []
    silence = np.zeros(round(UTTERANCE_PAUSE_S * SAMPLING_RATE), dtype=np.float32)
    for waveform, words in utterances:
        updates, seconds = listen(np.concatenate((silence, waveform, silence)), hear, settings)
        said = " ".join(update.delta for _, update in updates)
        texts.append(" ".join(said.split()))
        placed = [Word(word.text, word.end_s + UTTERANCE_PAUSE_S) for word in words]
        delays = find_delays(updates, placed)
        passes += seconds
        if texts[-1].split() == [word.text for word in words]:  # only there is the order the right match
            first_delays.append(delays[0])
            all_delays += delays
    references = [" ".join(word.text for word in words) for _, words in utterances]
    rates = {
        name: compute_rates(references, found, ["en"] * len(found)).wer
        for name, found in (("offline", offline), ("live", texts))
    }
    return {
        "utterances": len(utterances),
        "words": sum(len(words) for _, words in utterances),
        "audio_s": round(sum(len(waveform) for waveform, _ in utterances) / SAMPLING_RATE, 1),
        "wer_offline": rates["offline"],
        "wer_live": rates["live"],
        "utterances_with_the_offline_text": sum(a == b for a, b in zip(offline, texts, strict=True)),
        "first_words_behind_s": summarise(first_delays),
        "words_behind_s": summarise(all_delays),
        "pass_s": summarise(passes),
    }


def lay_out_words(waveform: Waveform, text: str) -> list[Word]:
    """Return the words of a sentence with their ends, laid over its speech in proportion to their letters."""
    from serve.voice import VoiceActivity

    voice = VoiceActivity()
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
    return words


def measure_latency(speech: Path, settings: StreamSettings, runtime: str) -> dict[str, Any]:
    """Feed real speech to a model of tiny's size, and return how far behind the words become final."""
    path = build_artefact(FOLDER / "tiny")
    if runtime == "torch":
        artefact: Any = load_artefact(path)
        decoder = None
    else:
        compute_type = runtime.partition(":")[2]
        folder = convert_to_ctranslate2(path, FOLDER / f"tiny-{compute_type}", quantization=compute_type)
        artefact = load_ctranslate2(folder, path, compute_type=compute_type, num_threads=torch.get_num_threads())
        decoder = CTranslate2Decoder(artefact, artefact_dir=path)
    rows = [json.loads(line) for line in (speech / "ljspeech_en" / "test.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["text_verified"] and row["duration_s"] > 3][:20]
    first_delays, all_delays, passes, audio_s = [], [], [], 0.0
    silence = np.zeros(round(UTTERANCE_PAUSE_S * SAMPLING_RATE), dtype=np.float32)
    for row in rows:
        waveform = np.concatenate((silence, load_waveform(speech / "ljspeech_en" / row["audio"]), silence))
        words = lay_out_words(waveform, row["text"])

        def hear(window: Window, words: list[Word] = words) -> Heard:
            first_s, last_s = window.start / SAMPLING_RATE, window.end / SAMPLING_RATE
            text = " ".join(word.text for word in words if first_s < word.end_s <= last_s)
            num_tokens = max(1, round(len(text) / CHARACTERS_PER_TOKEN))
            options = DecodeSettings(language="en", max_new_tokens=num_tokens, detect_language=False)
            transcriber = Transcriber(artefact, options, decoder=decoder)
            if len(window.waveform):
                transcriber.transcribe([window.waveform])
            return Heard(text, "en")

        hear(Window(waveform[:SAMPLING_RATE], 0, is_final=False, is_end=False))  # warm
        updates, seconds = listen(waveform, hear, settings)
        delays = find_delays(updates, words)
        first_delays.append(delays[0])
        all_delays += delays
        passes += seconds
        audio_s += len(waveform) / SAMPLING_RATE
    return {
        "runtime": runtime,
        "clips": len(rows),
        "audio_s": round(audio_s, 1),
        "first_words_behind_s": summarise(first_delays),
        "words_behind_s": summarise(all_delays),
        "pass_s": summarise(passes),
        "busy": round(sum(passes) / audio_s, 3),
    }


def main() -> None:
    """Train, or measure and write `results/streaming.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder of fsdd_en and ljspeech_en")
    parser.add_argument("--train", action="store_true", help="train the model of digits first")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of that training")
    arguments = parser.parse_args()
    speech = arguments.speech
    if arguments.train:
        train(speech, arguments.steps)
    if not (FOLDER / "run" / "export").is_dir():
        parser.error(f"there is no model of digits in {FOLDER / 'run'}; type --train")
    settings = StreamSettings()
    accuracy = measure_accuracy(speech, settings)
    print(json.dumps(accuracy, indent=1))
    latency = [measure_latency(speech, settings, name) for name in ("torch", "ctranslate2:int8")]
    print(json.dumps(latency, indent=1))
    write_result(
        "streaming",
        {
            "clock": "simulated: sound at the pace of speech, each pass as long as it was measured to take",
            "settings": {name: getattr(settings, name) for name in ("step_s", "first_s", "end_silence_s")},
            "connected_digits": accuracy,
            "tiny_with_random_weights_on_ljspeech_en": latency,
        },
    )


if __name__ == "__main__":
    main()
