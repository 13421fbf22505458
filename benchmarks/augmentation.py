"""What augmentation costs, and what it gains: speech in noise that was never heard in training.

    python -m benchmarks.augmentation cost
    python -m benchmarks.augmentation gain fsdd_en noise/ --seeds 0 1 2 --overrides trainer.max_steps=1200

`cost` measures each kind of change on one core, in seconds of audio a second of processor time, on made speech.

`gain` trains `model=scratch` on spoken digits without augmentation, with made noise, and with recorded noise, otherwise
alike, and scores each model on the plain test split and on the same clips with noise at 10 dB. Every other file of the
noise folder is for training and the others for the test. `--arms` takes some of the trainings; what the result file
holds of others, made at the same overrides, is kept. `--go-on` takes a stopped training up again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.environment import PROJECT, RESULTS, write_result
from benchmarks.human_speech import train_and_score
from data.audio import SAMPLING_RATE, Waveform, load_waveform
from data.augment import Augmentation, Recordings, augment_waveform, clip_rng, draw_speeds
from data.codec import CODECS
from data.features import LogMel
from data.noise import add_noise, draw_noise, make_noise
from data.room import make_room
from data.sounds import Sounds, open_sounds
from scripts.settings import build, compose_config, to_plain

CLIP_LENGTHS_S = (0.5, 8.0)
AUDIO_S = 60.0  # of each measurement; the best of three counts
TEST_SNR_DB = 10.0
ARMS = ("none", "recorded noise", "made noise")
NOISE = ["augment.noise_share=0.5", "augment.snr_db=[0,20]"]


def made_speech(duration_s: float, seed: int) -> Waveform:
    """Return noise that swells four times a second, as syllables do."""
    num_samples = round(duration_s * SAMPLING_RATE)
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(num_samples) / SAMPLING_RATE)
    noise = make_noise(num_samples, -0.5, np.random.default_rng(seed))
    return (0.1 * noise * swell).astype(np.float32)


def made_recordings(folder: Path) -> Recordings:
    """Write and open ten noises of 20 s and ten room responses, as files that stand for recorded ones."""
    for i in range(10):
        rng = np.random.default_rng(i)
        for kind, samples in (("noise", make_noise(20 * SAMPLING_RATE, -0.5, rng)), ("rooms", make_room(0.5, 6, rng))):
            (folder / kind).mkdir(exist_ok=True)
            soundfile.write(folder / kind / f"{i}.flac", 0.1 * samples, SAMPLING_RATE)
    noises, rooms = (open_sounds([str(folder / kind)], key=kind, cache_gib=1.0) for kind in ("noise", "rooms"))
    return Recordings(noises, rooms)


def audio_s_per_cpu_s(change: Callable[[Waveform, int], object], clip_s: float) -> float:
    """Return seconds of audio that one core changes in a second; the clock is the process's own, not the wall's."""
    clips = [made_speech(clip_s, seed) for seed in range(max(1, round(AUDIO_S / clip_s)))]
    seconds = []
    for _ in range(3):
        start = time.process_time()
        for row, waveform in enumerate(clips):
            change(waveform, row)
        seconds.append(time.process_time() - start)
    return round(sum(map(len, clips)) / SAMPLING_RATE / min(seconds), 1)


def measure_cost() -> dict[str, Any]:
    """Measure every kind of change, the presets, and the features that follow in any case."""
    with tempfile.TemporaryDirectory() as folder:
        recordings = made_recordings(Path(folder))

    def changing(speed: float = 1.0, given: Recordings | None = None, **settings: Any) -> Callable[..., object]:
        augmentation = Augmentation(**settings)
        return lambda waveform, row: augment_waveform(
            waveform, augmentation, clip_rng(0, 0, row), speed=speed, recordings=given or Recordings()
        )

    def preset(name: str) -> Callable[..., object]:
        augmentation = build(
            Augmentation, to_plain(compose_config("train", [f"augment={name}"]))["augment"], path="augment"
        )

        def change(waveform: Waveform, row: int) -> object:
            durations_s = np.array([len(waveform) / SAMPLING_RATE])
            (speed,) = draw_speeds(augmentation, seed=0, epoch=0, rows=np.array([row]), durations_s=durations_s)
            return augment_waveform(waveform, augmentation, clip_rng(0, 0, row), speed=speed)

        return change

    log_mel = LogMel(80)
    kinds = {
        "speed 0.9": changing(0.9),
        "speed 1.1": changing(1.1),
        "room, made": changing(room_share=1.0),
        "room, recorded": changing(room_share=1.0, given=recordings),
        "noise, made": changing(noise_share=1.0),
        "noise, recorded": changing(noise_share=1.0, given=recordings),
        "clipping": changing(clipping_share=1.0),
        **{f"codec {name}": changing(codec_share=1.0, codecs=(name,)) for name in CODECS},
        "gain": changing(gain_db=6.0),
        "augment=light": preset("light"),
        "augment=strong": preset("strong"),
        "log-mel, for comparison": lambda waveform, _: log_mel(waveform, num_frames=-(-len(waveform) // 160)),
    }
    table: dict[str, Any] = {}
    for name, change in kinds.items():
        table[name] = {f"clips of {clip_s:g} s": audio_s_per_cpu_s(change, clip_s) for clip_s in CLIP_LENGTHS_S}
        print(name, table[name])
    rows, durations_s = np.arange(1_000_000), np.full(1_000_000, 5.0)
    start = time.process_time()
    draw_speeds(Augmentation(speed_share=0.6), seed=0, epoch=0, rows=rows, durations_s=durations_s)
    draw_s = round(time.process_time() - start, 3)
    print("seconds to draw a million speeds", draw_s)
    return {"audio_s_per_cpu_s": table, "seconds_to_draw_1e6_speeds": draw_s}


def write_noisy_test(corpus: Path, noises: Sounds, folder: Path) -> Path:
    """Write the test clips with noise at 10 dB and their manifest; the same noise at every call."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for row, line in enumerate((corpus / "test.jsonl").read_text(encoding="utf-8").splitlines()):
        fields = json.loads(line)
        waveform = load_waveform(corpus / fields["audio"])
        noise = draw_noise(len(waveform), clip_rng(0, 0, row), noises)
        audio = f"audio/{row:04}.wav"
        noisy = add_noise(waveform, noise, snr_db=TEST_SNR_DB)
        soundfile.write(folder / audio, noisy, SAMPLING_RATE, subtype="FLOAT")
        kept = {key: fields[key] for key in ("text", "language")}
        lines.append(json.dumps({"audio": audio, **kept, "duration_s": len(noisy) / SAMPLING_RATE}))
    manifest = folder / "test.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def score(run_dir: Path, manifest: Path) -> float:
    """Return the WER of a run's artefact on a manifest, a fraction."""
    report_dir = run_dir / "report-noisy"
    options = [f"artefact={run_dir / 'export'}", "dataset=manifest", f"dataset.test={manifest}"]
    program = [sys.executable, str(PROJECT / "scripts/evaluate.py")]
    subprocess.run([*program, *options, f"report.dir={report_dir}"], check=True)
    return float(json.loads((report_dir / "report.json").read_text())["overall"]["wer"])


def measure_gain(
    corpus: Path,
    noise: Path,
    seeds: list[int],
    overrides: list[str],
    *,
    chosen: list[str] | None = None,
    go_on: bool = False,
) -> None:
    """Train, score, and write the table after every run.

    Args:
        corpus: folder with `train.jsonl` and `test.jsonl`.
        noise: folder of noise files.
        seeds: of the trainings.
        overrides: of every training.
        chosen: the trainings to do; all if None.
        go_on: take up trainings that were stopped.
    """
    work = PROJECT / "runs" / "augmentation"
    work.mkdir(parents=True, exist_ok=True)
    files = sorted(path.resolve() for path in noise.iterdir())
    train_files, test_files = files[0::2], files[1::2]
    train_noise = work / "train_noise.jsonl"
    train_noise.write_text("".join(json.dumps({"audio": str(path)}) + "\n" for path in train_files), encoding="utf-8")
    noises = open_sounds([str(path) for path in test_files], key="noise", cache_gib=1.0)
    noisy_test = write_noisy_test(corpus, noises, work / "noisy")
    given = (
        ["augment=none"],
        ["augment=none", *NOISE, f"augment.noise=[{train_noise}]"],
        ["augment=none", *NOISE],
    )
    arms = dict(zip(ARMS, given, strict=True))
    chosen = chosen or list(arms)
    runs = [run for run in _earlier_runs(overrides) if (run["training"], run["seed"]) not in product(chosen, seeds)]
    for seed in seeds:
        for arm, augment in ((arm, arms[arm]) for arm in chosen):
            run_dir = work / f"{arm.replace(' ', '-')}-{seed}"
            options = [*augment, f"trainer.seed={seed}", *overrides, *(["run.overwrite=false"] if go_on else [])]
            figures = train_and_score(corpus, run_dir, options)
            if go_on:
                del figures["seconds_with_start"]  # of the last sitting only
            runs.append(
                {
                    "training": arm,
                    "seed": seed,
                    "wer_plain": figures.pop("wer"),
                    "wer_noise_10_db": score(run_dir, noisy_test),
                    **figures,
                }
            )
            print(runs[-1])
            write_result(
                "augmentation",
                {
                    "mean_wer": {name: _mean_wer([run for run in runs if run["training"] == name]) for name in arms},
                    "test_snr_db": TEST_SNR_DB,
                    "training_noise": NOISE,
                    "noise_files": {
                        "train": [path.name for path in train_files],
                        "test": [path.name for path in test_files],
                    },
                    "overrides": overrides,
                    "runs": runs,
                },
            )


def _earlier_runs(overrides: list[str]) -> list[dict[str, Any]]:
    path = RESULTS / "augmentation.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return list(earlier["runs"]) if earlier.get("overrides") == overrides else []


def _mean_wer(runs: list[dict[str, Any]]) -> dict[str, float]:
    cells = ("wer_plain", "wer_noise_10_db")
    return {cell: float(np.mean([run[cell] for run in runs])) for cell in cells} if runs else {}


def main() -> None:
    """Measure and write `results/augmentation_cost.json` or `results/augmentation.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("cost")
    gain = parts.add_parser("gain")
    gain.add_argument("corpus", type=Path, help="folder with train.jsonl and test.jsonl")
    gain.add_argument("noise", type=Path, help="folder of noise files")
    gain.add_argument("--seeds", nargs="+", type=int, default=[0])
    gain.add_argument("--arms", nargs="+", choices=ARMS)
    gain.add_argument("--go-on", action="store_true")
    gain.add_argument("--overrides", nargs="*", default=[], help="of the training, such as trainer.max_steps=300")
    arguments = parser.parse_args()
    if arguments.part == "cost":
        write_result("augmentation_cost", measure_cost())
    else:
        measure_gain(
            arguments.corpus,
            arguments.noise,
            arguments.seeds,
            arguments.overrides,
            chosen=arguments.arms,
            go_on=arguments.go_on,
        )


if __name__ == "__main__":
    main()
