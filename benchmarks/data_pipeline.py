"""Speed of the data on its way to the model: clips to features, a manifest of a million lines, waiting in training.

    python -m benchmarks.data_pipeline features CORPUS    one core, against the feature extractor that pads to 30 s
    python -m benchmarks.data_pipeline decoders CORPUS    Ogg/Opus through every decoder that is installed, one core
    python -m benchmarks.data_pipeline manifest           1,000,000 lines: opening, memory, first batch, shuffling
    python -m benchmarks.data_pipeline waiting CORPUS     share of a training step, tiny-sized model

CORPUS is a folder with `test.jsonl`. Ratios are measured side by side, in turns; timings of a busy machine lie.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from benchmarks.environment import PROJECT, write_result
from data.audio import load_waveform
from data.augment import NO_RECORDINGS, Augmentation
from data.dataset import open_clips
from data.features import LogMel
from data.label_modes import LabelSettings
from data.labels import LabelBuilder
from data.loaders import ClipRecipe, UpdateDataset
from data.mixture import every_clip
from data.plan import BatchSize, EpochPlan, Position
from data.reader import ClipReader
from data.sources import Source
from data.windows import Windows
from train.vocabulary import learn_tokenizer

EDGES_S = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
NUM_LINES = 1_000_000


def measure_features(corpus: Path, rounds: int) -> dict[str, Any]:
    """Return audio-seconds a second of one core: our path and the stock one, of Ogg/Opus and of FLAC."""
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    paths = [corpus / row["audio"] for row in rows]
    windows, log_mel = Windows(EDGES_S), LogMel(128)
    extractor = WhisperFeatureExtractor(feature_size=128)

    def ours(path: Path) -> None:
        waveform = load_waveform(path)
        log_mel(waveform, num_frames=windows.num_frames(len(waveform) / 16_000))

    def stock(path: Path) -> None:
        waveform, rate = soundfile.read(path, dtype="float32")
        extractor(waveform, sampling_rate=rate, return_tensors="pt")

    figures: dict[str, Any] = {"clips": len(paths), "audio_s": sum(row["duration_s"] for row in rows)}
    with tempfile.TemporaryDirectory() as folder:
        flac = []
        for path in paths:
            samples, rate = soundfile.read(path)
            flac.append(Path(folder) / f"{path.stem}.flac")
            soundfile.write(flac[-1], samples, rate)
        for name, files in (("opus", paths), ("flac", flac)):
            seconds: dict[str, list[float]] = {"ours": [], "stock": [], "decoding alone": []}
            for _ in range(rounds):  # in turns, so that a busy moment meets all alike
                for kind, function in (("ours", ours), ("stock", stock), ("decoding alone", soundfile.read)):
                    start = time.process_time()
                    for file in files:
                        function(file)
                    seconds[kind].append(time.process_time() - start)
            speed = {kind: figures["audio_s"] / statistics.median(taken) for kind, taken in seconds.items()}
            ratios = [b / a for a, b in zip(seconds["ours"], seconds["stock"], strict=True)]
            figures[name] = {"audio_s_per_cpu_s": speed, "times_stock": statistics.median(ratios)}
    return figures


def measure_decoders(corpus: Path, rounds: int) -> dict[str, Any]:
    """Return audio-seconds a second of one core, of Ogg/Opus by each decoder, and by our path to 16 kHz."""
    rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    paths = [corpus / row["audio"] for row in rows]
    ways: dict[str, Callable[[Path], object]] = {
        "ours, to 16 kHz": load_waveform,
        "libsndfile, float32": lambda path: soundfile.read(path, dtype="float32"),
        "libsndfile, int16": lambda path: soundfile.read(path, dtype="int16"),
        "FFmpeg, its own decoder, to 48 kHz": lambda path: _decode_av(path, "opus"),
        "FFmpeg, libopus, to 48 kHz": lambda path: _decode_av(path, "libopus"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, decode in ways.items():
            start = time.process_time()
            for path in paths:
                decode(path)
            seconds[name].append(time.process_time() - start)
    audio_s = sum(row["duration_s"] for row in rows)
    return {"audio_s": audio_s, "audio_s_per_cpu_s": {name: audio_s / min(taken) for name, taken in seconds.items()}}


def _decode_av(path: Path, codec: str) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        decoder = av.CodecContext.create(codec, "r")
        decoder.extradata = stream.codec_context.extradata
        decoder.thread_count = 1
        return sum(frame.samples for packet in container.demux(stream) for frame in decoder.decode(packet))


def measure_manifest() -> dict[str, Any]:
    """Return seconds and memory for a manifest of a million lines."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i in range(100):
            noise = np.random.default_rng(i).normal(0, 0.1, 16_000 * 2).astype(np.float32)
            soundfile.write(root / f"{i}.flac", noise, 16_000)
        with (root / "train.jsonl").open("w") as file:
            for i in range(NUM_LINES):
                text = f"sentence number {i} of a large corpus, as long as sentences are"
                row = {"id": f"c{i:07d}", "audio": f"{i % 100}.flac", "text": text, "language": "en", "duration_s": 2.0}
                file.write(json.dumps(row) + "\n")
        tokenizer = learn_tokenizer(["sentence number 0123456789"], unit="character", vocabulary_size=256)
        builder = LabelBuilder(tokenizer, max_positions=448)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.perf_counter()
        clips = open_clips([Source(str(root / "train.jsonl"))], builder, on_bad="strict", max_bad_share=0.0)
        opened_s = time.perf_counter() - start
        start = time.perf_counter()
        mixture = every_clip(len(clips))
        plan = EpochPlan(clips.durations_s, mixture, windows=Windows(EDGES_S), size=BatchSize(16), seed=0)
        recipe = ClipRecipe(builder, LabelSettings(), LogMel(80), Augmentation(), NO_RECORDINGS, 0, 0)
        dataset = UpdateDataset(clips, plan, ClipReader(clips.rows, cache_gib=0.0), recipe)
        dataset[Position(0, 0)]
        first_s = time.perf_counter() - start
        start = time.perf_counter()
        num_updates = len(plan.updates(1))
        shuffle_s = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "lines": NUM_LINES,
        "opened_s": opened_s,
        "first_batch_s": first_s,
        "next_epoch_s": shuffle_s,
        "updates": num_updates,
        "peak_resident_gib": peak,
        "resident_before_gib": before,
    }


def measure_waiting(corpus: Path, num_updates: int) -> dict[str, Any]:
    """Return the share of the time that a training of a tiny-sized model waits for data.

    The first pass, in which every clip is decoded, is counted for itself, from the start of the training on.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(PROJECT / "scripts/train.py"),
            "model=scratch",
            "model.geometry={d_model: 384, encoder_layers: 4, decoder_layers: 4, attention_heads: 6, ffn_dim: 1536, "
            "num_mel_bins: 80}",
            "dataset=manifest",
            f"dataset.train={corpus / 'test.jsonl'}",
            f"trainer.max_steps={num_updates}",
            "trainer.micro_batch_size=8",
            "trainer.log_every_steps=1",
            "trainer.eval_every_steps=0",
            "tracker=none",
            f"run.dir={folder}/run",
        ]
        subprocess.run(command, check=True)
        lines = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "train/data_wait_share" in line]
    waited_s = [line["train/data_wait_share"] * line["train/update_s"] for line in updates]
    # `train/epoch` is that of the next update: the first pass ends with the first update behind which it is 1.
    num_first = next(i for i, line in enumerate(updates, start=1) if line["train/epoch"] >= 1)
    parts = {"first_pass": slice(0, num_first), "later_passes": slice(num_first, None), "all": slice(None)}
    seconds = [line["train/update_s"] for line in updates]
    return {
        "share_of_time": {
            name: sum(waited_s[part]) / sum(seconds[part]) for name, part in parts.items() if seconds[part]
        },
        "updates_of_the_first_pass": num_first,
        "waited_s": [round(value, 4) for value in waited_s],
        "update_s": [round(value, 3) for value in seconds],
        "median": statistics.median(line["train/data_wait_share"] for line in updates),
    }


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("features", "decoders", "manifest", "waiting"))
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=16, help="of `waiting`; the first pass takes some of them")
    options = parser.parse_args()
    if options.part != "manifest" and options.corpus is None:
        parser.error(f"{options.part} needs a corpus")
    if options.part == "features":
        figures = measure_features(options.corpus, options.rounds)
    elif options.part == "decoders":
        figures = measure_decoders(options.corpus, options.rounds)
    elif options.part == "manifest":
        figures = measure_manifest()
    else:
        figures = measure_waiting(options.corpus, options.updates)
    print(json.dumps(figures, indent=2))
    write_result(f"data_{options.part}", figures)


if __name__ == "__main__":
    main()
