"""Live text: how far behind the speaker it is, and whether its text is the offline one.

    python -m benchmarks.streaming ../shared/speech --train     first a model, up to half an hour on two cores
    python -m benchmarks.streaming ../shared/speech             the figures, or --only latency, --only accuracy
    python -m benchmarks.streaming --table                      the last ones as tables

No pretrained model comes with the project, so the two questions are asked of two models:

Accuracy, of a model that really transcribes (`benchmarks/streaming_model.py`): it has memorised the clips of LJ Speech
that it is scored on, and heard cut windows of them. What counts is the distance between live and offline text of one
model on one recording. That says what the way of streaming costs; it says nothing about how well a model hears new
speech. LJ Speech is asked once more with white noise at 40 dB, which the model has never heard: there it errs, and its
errors change while the window grows. A pass is taken to last 0.2 s, so that the figures are the same on every machine;
the settings are compared on the same passes.

Latency, of a model of Whisper tiny's shape with random weights: it takes what tiny takes, whatever it says. LJ Speech
is fed to the core; every pass really runs features, encoder and search over the window, for as many tokens as the text
of that window has; the text itself is that of the transcript, its words laid over the speech by their letters. So the
delay of each word is right to about a tenth of a second, and nothing is said about accuracy.

Time is simulated: sound comes at the pace of speech, and a pass ends as many seconds later as it was measured to take.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.decode_speed import CHARACTERS_PER_TOKEN, build_artefact
from benchmarks.environment import RESULTS, write_result
from benchmarks.streaming_clock import UTTERANCE_PAUSE_S, find_delays, listen, summarise, with_silence
from benchmarks.streaming_model import FOLDER, Spoken, Word, lay_out_words, load_sentences, train
from data.audio import SAMPLING_RATE, load_waveform
from infer.artefact import load_artefact
from infer.backends.ctranslate2 import CTranslate2Decoder, load_ctranslate2
from infer.decoding import DecodeSettings
from infer.export.ctranslate2 import convert_to_ctranslate2
from infer.score.rates import compute_rates
from infer.transcriber import Transcriber
from serve.stream_settings import StreamSettings
from serve.streaming import Heard, Window

STEPS = 2400
PASS_S = 0.2  # that a pass lasts where accuracy is asked
NOISE_DB = 40.0
RUNTIMES = ("torch", "ctranslate2:float32", "ctranslate2:int8")
WAYS = {
    "first agreement": StreamSettings(agreement=1),
    "as it is": StreamSettings(),
    "held_words=2": StreamSettings(held_words=2),
    "agreement=3": StreamSettings(agreement=3),
    "agreement=3 held_words=2": StreamSettings(agreement=3, held_words=2),
}


def with_noise(spoken: Spoken, rng: np.random.Generator) -> Spoken:
    """Return it with white noise."""
    level = float(np.sqrt(np.mean(spoken.waveform**2))) * 10 ** (-NOISE_DB / 20)
    noise = rng.normal(0, level, len(spoken.waveform)).astype(np.float32)
    return replace(spoken, waveform=spoken.waveform + noise)


def measure_accuracy(transcriber: Transcriber, recordings: list[Spoken]) -> dict[str, Any]:
    """Compare the live text of each way with the offline text."""
    offline = [found.text for found in transcriber.transcribe([spoken.waveform for spoken in recordings])]
    references = [spoken.text for spoken in recordings]
    known: dict[tuple[int, int, int], Heard] = {}

    def hear(i: int, window: Window) -> Heard:
        place = (i, window.start, window.end)
        if place not in known:
            (found,) = transcriber.transcribe([window.waveform]) if len(window.waveform) else (None,)
            known[place] = Heard(found.text, found.language) if found else Heard("", "")
        return known[place]

    def rate(texts: list[str]) -> float:
        return compute_rates(references, texts, ["en"] * len(texts)).wer

    ways = {}
    for name, settings in WAYS.items():
        texts, first_delays, all_delays = [], [], []
        for i, spoken in enumerate(recordings):
            updates, _ = listen(with_silence(spoken.waveform), lambda w, i=i: hear(i, w), settings, pass_s=PASS_S)
            texts.append(" ".join(u.text for _, u in updates if u.is_end))
            if texts[-1].split() == spoken.text.split():  # only there is the order the right match
                delays = find_delays(updates, [Word(w.text, w.end_s + UTTERANCE_PAUSE_S) for w in spoken.words])
                first_delays.append(delays[0])
                all_delays += delays
        ways[name] = {
            "wer_live": rate(texts),
            "texts_as_offline": sum(a == b for a, b in zip(offline, texts, strict=True)),
            "first_words_behind_s": summarise(first_delays),
            "words_behind_s": summarise(all_delays),
        }
    return {
        "recordings": len(recordings),
        "words": sum(len(spoken.words) for spoken in recordings),
        "audio_s": round(sum(len(spoken.waveform) for spoken in recordings) / SAMPLING_RATE, 1),
        "wer_offline": rate(offline),
        "live": ways,
    }


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
    for row in rows:
        waveform = with_silence(load_waveform(speech / "ljspeech_en" / row["audio"]))
        words = lay_out_words(waveform, row["text"]).words

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


def print_table() -> None:
    """Print what was measured last, for a page."""
    path = RESULTS / "streaming.json"
    if path.is_file():
        print("| tiny's size, 2 cores | first words behind, median / p95 | all words | a pass |\n|---|---|---|---|")
        for row in json.loads(path.read_text(encoding="utf-8"))["latency"]:
            first, every, one = row["first_words_behind_s"], row["words_behind_s"], row["pass_s"]
            print(
                f"| {row['runtime']} | {first['median']:.2f} / {first['p95']:.2f} s | {every['median']:.2f} / "
                f"{every['p95']:.2f} s | {one['median']:.2f} s |"
            )
    path = RESULTS / "streaming_accuracy.json"
    if path.is_file():
        print("\n| recordings | way | offline WER | live WER | first words behind, median |\n|---|---|---|---|---|")
        for name, figures in json.loads(path.read_text(encoding="utf-8"))["accuracy"].items():
            for way, live in figures["live"].items():
                first = live["first_words_behind_s"]
                print(
                    f"| {name} | {way} | {100 * figures['wer_offline']:.1f} % | {100 * live['wer_live']:.1f} % | "
                    f"{'' if first is None else format(first['median'], '.2f') + ' s'} |"
                )


def write_latency(speech: Path) -> None:
    """Measure delays, and write `results/streaming.json`."""
    settings = StreamSettings()
    latency = []
    for runtime in RUNTIMES:
        latency.append(measure_latency(speech, settings, runtime))
        print(json.dumps(latency[-1]), flush=True)
    write_result(
        "streaming",
        {
            "latency_of": "Whisper tiny's shape with random weights on ljspeech_en",
            "clock": "simulated: sound at the pace of speech, each pass as long as it was measured to take",
            "settings": asdict(settings),
            "latency": latency,
        },
    )


def write_accuracy(speech: Path) -> None:
    """Compare live and offline text, and write `results/streaming_accuracy.json`."""
    export = FOLDER / "run" / "export"
    transcriber = Transcriber(load_artefact(export), DecodeSettings(language="en"))
    sentences, rng = load_sentences(speech / "ljspeech_en"), np.random.default_rng(2)
    accuracy = {}
    for name, recordings in {
        "ljspeech_en, memorised": sentences,
        "ljspeech_en, memorised, with noise never heard": [with_noise(spoken, rng) for spoken in sentences],
    }.items():
        accuracy[name] = measure_accuracy(transcriber, recordings)
        print(name, json.dumps(accuracy[name]), flush=True)
    write_result(
        "streaming_accuracy",
        {
            "accuracy_of": "live and offline text of one model that memorised the clips of LJ Speech it is scored on",
            "clock": f"simulated: sound at the pace of speech, each pass taken to last {PASS_S} s",
            "settings": {name: asdict(settings) for name, settings in WAYS.items()},
            "accuracy": accuracy,
        },
    )


def main() -> None:
    """Train, or measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, nargs="?", help="folder of ljspeech_en")
    parser.add_argument("--train", action="store_true", help="train, from where it stopped")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of that training")
    parser.add_argument(
        "--only", choices=("latency", "accuracy"), help="measure one of them; latency needs no training"
    )
    parser.add_argument("--table", action="store_true", help="print the last figures")
    arguments = parser.parse_args()
    if arguments.table:
        return print_table()
    if arguments.speech is None:
        parser.error("give the folder that holds ljspeech_en")
    speech = arguments.speech.resolve()
    if arguments.train:
        return train(speech, arguments.steps)
    if arguments.only != "latency" and not (FOLDER / "run" / "export").is_dir():
        parser.error(f"there is no trained model in {FOLDER / 'run'}; type --train, or --only latency")
    if arguments.only != "accuracy":
        write_latency(speech)
    if arguments.only != "latency":
        write_accuracy(speech)
    return None


if __name__ == "__main__":
    main()
