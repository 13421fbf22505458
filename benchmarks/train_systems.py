"""The systems that `benchmarks.train_speed` compares, each trained in a process of its own.

    python -m benchmarks.train_systems SYSTEM FOLDER --precision bf16 --device cpu --batch 8

A process trains without end and stops at the same point of every round until it is told to go on: `go` on stdin begins
a round, a JSON line on stdout ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

SYSTEMS = ("hugging_face", "ours", "ours_full_window")
MARK = "@@"  # begins our own lines on stdout, among all that libraries print


class Gate:
    """Stop training at the end of each round, and measure rounds."""

    def __init__(self, updates_per_round: int, device: str) -> None:
        self.updates_per_round = updates_per_round
        self.device = device
        self.num_passed = 0
        self.began = (0.0, 0.0)

    def pass_update(self, **figures: float) -> None:
        """Call before each update; ends the process when nobody asks for more.

        Args:
            figures: that are reported with the round which ends here.
        """
        if self.num_passed % self.updates_per_round == 0:
            if self.device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter(), time.process_time()
            if self.num_passed:
                peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
                report = {
                    "seconds": now[0] - self.began[0],
                    "cpu_seconds": now[1] - self.began[1],
                    "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                    "peak_cuda_gib": peak / 2**30,
                    **figures,
                }
                print(MARK + json.dumps(report), flush=True)
            else:
                print(MARK + "{}", flush=True)
            if sys.stdin.readline().strip() != "go":
                sys.stdout.flush()
                os._exit(0)
            self.began = time.perf_counter(), time.process_time()
        self.num_passed += 1


@dataclass
class Collator:
    """The collator of the published recipe, as everybody copies it."""

    processor: Any
    decoder_start_token_id: int

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad features and labels to a batch."""
        inputs = [{"input_features": feature["input_features"]} for feature in features]
        batch: dict[str, torch.Tensor] = self.processor.feature_extractor.pad(inputs, return_tensors="pt")
        labels = [{"input_ids": feature["labels"]} for feature in features]
        padded = self.processor.tokenizer.pad(labels, return_tensors="pt")
        ids = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
        if (ids[:, 0] == self.decoder_start_token_id).all().cpu().item():
            ids = ids[:, 1:]
        batch["labels"] = ids
        return batch


def run_hugging_face(folder: Path, gate: Gate, *, precision: str, batch: int) -> None:
    """Train by the published recipe: stock Whisper, every clip padded to 30 s, `Seq2SeqTrainer`.

    Features are made before training, as the recipe does, and lie in memory as arrays. Its gradient checkpointing is
    left off: with it, it would be slower by a third.
    """
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    from infer.artefact import load_tokenizer

    whisper = WhisperForConditionalGeneration.from_pretrained(str(folder / "model"), dtype=torch.float32)
    whisper.config.use_cache = False
    extractor = WhisperFeatureExtractor.from_pretrained(str(folder / "model"))
    tokenizer = load_tokenizer(folder / "model")
    prefix = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])
    texts = [json.loads(line)["text"] for line in (folder / "clips.jsonl").read_text().splitlines()]
    waveforms = np.load(folder / "waveforms.npz")
    rows = [
        {
            "input_features": extractor(waveforms[name], sampling_rate=16_000).input_features[0],
            "labels": [*prefix, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id],
        }
        for name, text in zip(waveforms.files, texts, strict=True)
    ]

    train_by_the_recipe(whisper, WhisperProcessor(extractor, tokenizer), rows, gate, precision=precision, batch=batch)


def train_by_the_recipe(
    whisper: Any, processor: Any, rows: list[dict[str, Any]], gate: Gate, *, precision: str, batch: int
) -> None:
    """Hand features and labels to `Seq2SeqTrainer`.

    Args:
        whisper: stock Whisper in FP32.
        processor: has `feature_extractor` and `tokenizer`.
        rows: `input_features` and `labels` of each clip.
        gate: is passed before each update.
        precision: `fp32`, `fp16` or `bf16`.
        batch: clips of an update.
    """
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    class Rounds(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            gate.pass_update()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.pass_update()

    arguments = Seq2SeqTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        learning_rate=1e-5,
        warmup_steps=50,
        max_steps=1_000_000,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=gate.device == "cpu",
        logging_steps=25,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
    )
    Seq2SeqTrainer(
        model=whisper,
        args=arguments,
        train_dataset=rows,
        data_collator=Collator(processor, whisper.config.decoder_start_token_id),
        callbacks=[Rounds()],
    ).train()


class _Rounds:
    """A data set whose updates pass the gate; all else is asked of the real one."""

    def __init__(self, inner: Any, gate: Gate, spent: dict[str, float]) -> None:
        self._inner, self._gate, self._spent = inner, gate, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Read updates without end."""
        updates = self._inner.open(*arguments, **options)
        while True:
            self._gate.pass_update(**self._spent)
            if (self._gate.num_passed - 1) % self._gate.updates_per_round == 0:
                self._spent.update(update_s=0.0, data_s=0.0)
            start = time.perf_counter()
            batches = next(updates)
            self._spent["data_s"] += time.perf_counter() - start
            yield batches


def run_ours(folder: Path, gate: Gate, *, precision: str, batch: int, window: str) -> None:
    """Train by the real loop, as `scripts/train.py` runs it, with a line in `metrics.jsonl` after every update."""
    from scripts.settings import compose_config
    from scripts.train import build_settings
    from train import run as training
    from train.loop import Loop

    spent = {"update_s": 0.0, "data_s": 0.0}
    run_loop = Loop.run

    def run(loop: Loop) -> bool:
        object.__setattr__(loop.parts, "dataset", _Rounds(loop.parts.dataset, gate, spent))
        update = loop.parts.updater.update

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = update(*arguments, **options)
            spent["update_s"] += time.perf_counter() - start
            return result

        loop.parts.updater.update = timed  # type: ignore[method-assign]
        return run_loop(loop)

    Loop.run = run  # type: ignore[method-assign]
    overrides = [
        "model=tiny",
        f"model.path={folder / 'model'}",
        "dataset=manifest",
        f"dataset.train={folder / 'ours.jsonl'}",
        f"precision={precision}",
        f"window={window}",
        "window.full_share=0",
        f"trainer.micro_batch_size={batch}",
        "trainer.max_steps=1000000",
        "trainer.log_every_steps=1",
        "trainer.eval_every_steps=0",
        "trainer.save_every_steps=0",
        "tracker=none",
        "run.name=speed",
        f"run.dir={tempfile.mkdtemp()}",
    ]
    training.run_training(build_settings(compose_config("train", overrides)))


def main() -> None:
    """Train one system until nobody asks for more."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--updates", type=int, required=True, help="of a round")
    arguments = parser.parse_args()
    gate = Gate(arguments.updates, arguments.device)
    options = {"precision": arguments.precision, "batch": arguments.batch}
    if arguments.system == "hugging_face":
        run_hugging_face(arguments.folder, gate, **options)
    else:
        window = "bucketed" if arguments.system == "ours" else "full"
        run_ours(arguments.folder, gate, window=window, **options)


if __name__ == "__main__":
    main()
