"""How fast is training? Ours, ours at 30 s, and the Hugging Face recipe, side by side in one run.

    python -m benchmarks.train_speed                               CPU, Whisper tiny, FP32 and BF16
    python -m benchmarks.train_speed --precisions bf16 --size large_v3 --device cuda

Same clips, same model from random weights, same precision, same clips in an update. Each system trains in a process of
its own, so that its peak memory is its own; they take turns, at least five each, and only one ever works. The Hugging
Face side is the published recipe: features made beforehand, its collator, `Seq2SeqTrainer` with its defaults. Ours is
`scripts/train.py` with its defaults: it reads the audio, makes the features and writes a log line in every update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import PROJECT, write_result
from benchmarks.speed_corpus import GEOMETRIES, made_clips, real_clips, write_folder
from benchmarks.train_systems import MARK, SYSTEMS

SENTENCES = PROJECT.parent / "shared" / "speech" / "ljspeech_en" / "test.jsonl"
FULL_SHARE = 0.1  # of the updates at 30 s, in the recipes for pretrained models


class System:
    """A process that trains round by round."""

    def __init__(self, name: str, folder: Path, *, precision: str, device: str, batch: int, updates: int) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.train_systems", name, str(folder)]
        command += ["--precision", precision, "--device", device, "--batch", str(batch), "--updates", str(updates)]
        self._process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._read()

    def round(self) -> dict[str, float]:
        """Train one round; return its seconds, peak memory and more."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None and self._process.stderr is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, float] = json.loads(line.removeprefix(MARK))
                return found
        raise RuntimeError(f"{self.name} stopped:\n{self._process.stderr.read()[-2000:]}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate("stop\n", timeout=60)


def compare(
    folder: Path, corpus: dict[str, Any], *, precision: str, device: str, batch: int, repeats: int, repetitions: int
) -> dict[str, Any]:
    """Let the systems take turns; return their figures and the ratios of each turn."""
    audio_s = corpus["clips"] * corpus["mean_s"]
    num_updates = corpus["clips"] // batch
    # The short windows are over so soon that they take each clip several times in a turn.
    times = {"hugging_face": 1, "ours": repeats, "ours_full_window": 1}
    systems = [
        System(name, folder, precision=precision, device=device, batch=batch, updates=num_updates * times[name])
        for name in SYSTEMS
    ]
    rounds: dict[str, list[dict[str, float]]] = {system.name: [] for system in systems}
    for repetition in range(repetitions + 1):
        for system in systems:
            found = system.round()
            if repetition:  # the first turn warms up
                rounds[system.name].append(found)
                speed = times[system.name] * audio_s / found["seconds"]
                print(f"{precision} turn {repetition} {system.name}: {speed:.1f} audio-s/s", flush=True)
    for system in systems:
        system.close()
    speeds = {name: [times[name] * audio_s / r["seconds"] for r in found] for name, found in rounds.items()}
    cpu_speeds = {name: [times[name] * audio_s / r["cpu_seconds"] for r in found] for name, found in rounds.items()}
    # A run that takes a share of its updates at 30 s spends their time there.
    speeds["ours_with_full_share"] = [
        1 / ((1 - FULL_SHARE) / short + FULL_SHARE / full)
        for short, full in zip(speeds["ours"], speeds["ours_full_window"], strict=True)
    ]
    ours = rounds["ours"]
    return {
        "audio_s_per_s": {name: _spread(values) for name, values in speeds.items()},
        "windows_per_s": {name: _spread([v / corpus["mean_s"] for v in values]) for name, values in speeds.items()},
        "peak_rss_gib": {name: round(found[-1]["peak_rss_gib"], 3) for name, found in rounds.items()},
        "peak_cuda_gib": {name: round(found[-1]["peak_cuda_gib"], 3) for name, found in rounds.items()},
        "ratio_to_hugging_face": {
            name: _spread([a / b for a, b in zip(values, speeds["hugging_face"], strict=True)])
            for name, values in speeds.items()
            if name != "hugging_face"
        },
        "ratio_in_processor_time": {
            name: _spread([a / b for a, b in zip(values, cpu_speeds["hugging_face"], strict=True)])
            for name, values in cpu_speeds.items()
            if name != "hugging_face"
        },
        "share_of_our_loop": _spread([1 - (r["update_s"] + r["data_s"]) / r["seconds"] for r in ours]),
        "share_of_reading_and_features": _spread([r["data_s"] / r["seconds"] for r in ours]),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "lowest": round(min(values), 4),
        "highest": round(max(values), 4),
    }


def main() -> None:
    """Measure and write `results/train_speed.json`, or another name for another device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(GEOMETRIES), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="clips in an update")
    parser.add_argument("--repeats", type=int, default=4, help="how often the short windows take each clip in a turn")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each system, after one that warms up")
    parser.add_argument("--name", default="train_speed", help="of the file of results")
    arguments = parser.parse_args()
    is_real = SENTENCES.is_file()
    clips = real_clips(SENTENCES, arguments.clips) if is_real else made_clips(arguments.clips)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = write_folder(folder, clips, arguments.size, repeats=arguments.repeats)
        print(corpus)
        figures = {
            precision: compare(
                folder,
                corpus,
                precision=precision,
                device=arguments.device,
                batch=arguments.batch,
                repeats=arguments.repeats,
                repetitions=arguments.repetitions,
            )
            for precision in arguments.precisions
        }
    print(json.dumps(figures, indent=2))
    speech = "ljspeech_en" if is_real else "made sound of the same lengths"
    settings = {"size": arguments.size, "speech": speech, "corpus": corpus, "clips_per_update": arguments.batch}
    write_result(arguments.name, {**settings, "turns": arguments.repetitions, "precisions": figures})


if __name__ == "__main__":
    main()
