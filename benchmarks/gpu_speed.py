"""Speed on the device: ours against the Hugging Face recipe, turn by turn in one process, over the same weights."""

from __future__ import annotations

import statistics
import threading
import time
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Seq2SeqTrainer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from benchmarks.gpu_training import (
    Figures,
    Job,
    build_batches,
    build_updater,
    build_whisper,
    device,
    endless,
    synchronize,
)
from benchmarks.speed_corpus import Clip, made_clips
from benchmarks.train_systems import train_by_the_recipe
from data.windows import Windows, build_windows, full_windows
from train.feed import Feed
from train.flops import FlopCount
from train.throughput import Throughput, measure_matmul_rate
from train.vocabulary import learn_tokenizer

assert Seq2SeqTrainer is not None  # resolved before packages are absent for it
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ThreadGate:
    """Stop a training in another thread before each turn; see `train_systems.Gate`."""

    def __init__(self, updates_per_round: int) -> None:
        self.updates_per_round = updates_per_round
        self.device = device().type
        self._num_passed = 0
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._ends = False

    def pass_update(self, **_: float) -> None:
        """Called by the training before each update."""
        if self._num_passed % self.updates_per_round == 0:
            synchronize()
            self._stopped.release()
            self._go.acquire()
            if self._ends:
                raise SystemExit
        self._num_passed += 1

    def round(self) -> float:
        """Let it train one turn; return its seconds."""
        start = time.perf_counter()
        self._go.release()
        self._stopped.acquire()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait until it stands before its first update."""
        self._stopped.acquire()

    def end(self) -> None:
        """End the training."""
        self._ends = True
        self._go.release()


def share_weights(whisper: Any) -> WhisperForConditionalGeneration:
    """Return stock Whisper over the same parameters."""
    with torch.device("meta"):
        stock = WhisperForConditionalGeneration(whisper.config)
    stock.load_state_dict(whisper.state_dict(keep_vars=True), assign=True)
    stock.tie_weights()
    stock.generation_config = whisper.generation_config
    return stock.train()


def start_hugging_face(whisper: Any, clips: list[Clip], gate: ThreadGate, *, precision: str, batch: int) -> Any:
    """Start the recipe in a thread; return it."""
    texts = [text for _, text in clips]
    tokenizer = learn_tokenizer(texts, unit="bpe", vocabulary_size=256 + 400)
    extractor = WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins)
    limit = whisper.config.vocab_size
    rows = [
        {
            "input_features": extractor(waveform, sampling_rate=16_000).input_features[0],
            "labels": [1, 3, 4, 5, *(i % limit for i in tokenizer(text, add_special_tokens=False).input_ids), 0],
        }
        for waveform, text in clips
    ]
    stock = share_weights(whisper)
    processor = SimpleNamespace(feature_extractor=extractor, tokenizer=tokenizer)
    thread = threading.Thread(
        target=train_by_the_recipe,
        args=(stock, processor, rows, gate),
        kwargs={"precision": precision, "batch": batch},
        daemon=True,
    )
    thread.start()
    gate.wait()
    return thread


def compare_speed(
    *, size: str, precision: str, length_s: float | None, edges_s: list[float], batch: int, clips: int, turns: int
) -> Figures:
    """Let ours and the recipe take turns over the same clips.

    Args:
        size: of the model.
        precision: of both.
        length_s: of each clip, in seconds; None takes the lengths of real sentences.
        edges_s: windows of ours.
        batch: clips of an update.
        clips: of a turn.
        turns: of each, after one that warms up.
    """
    job = Job(size, precision)
    whisper = build_whisper(job)
    updater = build_updater(job, whisper)
    made = made_clips(clips, length_s=length_s)
    windows: Windows = build_windows(edges_s) if len(edges_s) > 1 else full_windows()
    batches = build_batches(made, windows, size=size, batch=batch)
    feed = Feed(endless(batches), device())
    rate = measure_matmul_rate(device(), DTYPES[precision], size=8192 if size == "large_v3" else 512)
    throughput = Throughput(device(), flops=FlopCount(whisper), matmul_flops_per_s=rate)
    gate = ThreadGate(-(-clips // batch))
    thread = start_hugging_face(whisper, made, gate, precision=precision, batch=batch)
    audio_s = sum(len(waveform) for waveform, _ in made) / 16_000
    ours_s: list[float] = []
    theirs_s: list[float] = []
    reports: list[dict[str, float]] = []
    for turn in range(turns + 1):
        theirs = gate.round()
        synchronize()
        throughput.report()  # begins anew
        start = time.perf_counter()
        for _ in batches:
            update = feed.next()
            result = updater.update(update.micro_batches, lr=1e-6, meanwhile=feed.read_ahead)
            throughput.record(
                update.micro_batches, num_label_tokens=result.num_label_tokens, waited_s=feed.take_waited_s()
            )
        synchronize()
        if turn:
            ours_s.append(time.perf_counter() - start)
            theirs_s.append(theirs)
            reports.append(throughput.report())
    gate.end()
    thread.join(timeout=30)
    ratios = [theirs / ours for ours, theirs in zip(ours_s, theirs_s, strict=True)]
    return {
        "windows_s": sorted({batch.num_frames / 100 for batch in batches}),
        "ours_audio_s_per_s": audio_s / statistics.median(ours_s),
        "hugging_face_audio_s_per_s": audio_s / statistics.median(theirs_s),
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "mfu": statistics.median(report["train/mfu"] for report in reports),
        "matmul_tflop_per_s": rate / 1e12,
        "data_wait_share": statistics.median(report["train/data_wait_share"] for report in reports),
        "report": reports[-1],
    }
