"""The parts of `benchmarks.gpu` that are about numbers; each returns figures, at large-v3's size or a toy's."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Callable

import torch

from benchmarks import accumulation, loss_scale
from benchmarks.gpu_training import (
    Figures,
    Job,
    build_updater,
    build_whisper,
    device,
    peak_gib,
    relative,
    synchronize,
    uniform_batch,
)
from data.batches import SpeechBatch
from train.compiling import compile_layers
from train.loss import TrainingObjective
from train.throughput import measure_matmul_rate

OPTIMIZERS = ("plain_adamw", "fused_adamw", "adamw_8bit")


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the parts are."""

    size: str = "large_v3"
    num_clips: int = 8
    num_frames: int = 3000
    num_labels: int = 128
    num_updates: int = 20
    matmul_size: int = 8192
    backend: str = "inductor"


TOY = Scale("toy", num_clips=2, num_frames=100, num_labels=12, num_updates=3, matmul_size=256, backend="aot_eager")


def rates(scale: Scale) -> Figures:
    """Measure matrix products in each precision, and copies on the device and to it."""
    found: Figures = {}
    for name, dtype, is_tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp16", torch.float16, False),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = is_tf32
        found[f"{name}_tflop_per_s"] = measure_matmul_rate(device(), dtype, size=scale.matmul_size) / 1e12
    num_bytes = 2**30 if scale.size == "large_v3" else 2**22
    there = torch.zeros(num_bytes, dtype=torch.uint8, device=device())
    other = torch.empty_like(there)
    here = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    found["copy_on_device_gb_per_s"] = 2 * num_bytes / _seconds(lambda: other.copy_(there)) / 1e9  # read and written
    found["copy_to_device_gb_per_s"] = num_bytes / _seconds(lambda: there.copy_(here, non_blocking=True)) / 1e9
    return found


def _seconds(action: Callable[[], object], *, times: int = 5) -> float:
    action()
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        action()
    synchronize()
    return (time.perf_counter() - start) / times


def overflow(scale: Scale) -> Figures:
    """Hold planted overflows against the oracle."""
    num_updates = 12 if scale is TOY else loss_scale.NUM_UPDATES
    return {kind: _unless_missing(lambda kind=kind: loss_scale.run(kind, num_updates)) for kind in OPTIMIZERS}  # type: ignore[misc]


def gradient(scale: Scale) -> Figures:
    """Hold the gradient of one update, cut in three ways, against float64."""
    reference = accumulation.reference_gradient()
    splits = accumulation.SPLITS[1:2] if scale is TOY else accumulation.SPLITS

    def difference(precision: str, size: int, kind: str) -> float:
        return relative(accumulation.our_gradient(precision, size, kind=kind, device=device().type)[0], reference)

    return {
        kind: _unless_missing(
            lambda kind=kind: {  # type: ignore[misc]
                precision: {f"{n}x{size}": difference(precision, size, kind) for size, n in splits}
                for precision in ("fp32", "fp16", "bf16")
            }
        )
        for kind in OPTIMIZERS
    }


def _unless_missing(action: Callable[[], Figures]) -> Figures:
    try:
        return action()
    except RuntimeError as e:
        if "needs bitsandbytes" not in str(e):
            raise
        return {"left_out": "bitsandbytes is not installed"}


def _train(job: Job, scale: Scale, *, num_updates: int) -> tuple[list[float], float, float]:
    """Return losses, seconds of an update and peak memory of some updates."""
    peak_gib(reset=True)
    whisper = build_whisper(job)
    updater = build_updater(job, whisper)
    batches = [_batch(scale, seed=seed) for seed in range(2)]
    losses = [updater.update([batches[0]], lr=1e-6).loss]
    synchronize()
    start = time.perf_counter()
    for i in range(num_updates):
        losses.append(updater.update([batches[i % 2]], lr=1e-6).loss)
    synchronize()
    return losses, (time.perf_counter() - start) / num_updates, peak_gib()


def _batch(scale: Scale, *, seed: int = 0) -> SpeechBatch:
    return uniform_batch(
        scale.size, num_clips=scale.num_clips, num_frames=scale.num_frames, num_labels=scale.num_labels, seed=seed
    )


def cache(scale: Scale) -> Figures:
    """Train with checkpoints, with and without autocast's cache of half-precision weights."""
    found: Figures = {}
    losses: dict[bool, list[float]] = {}
    for is_on in (True, False):
        job = Job(scale.size, "fp16", checkpointing=True, caches_autocast=is_on)
        losses[is_on], update_s, peak = _train(job, scale, num_updates=min(3, scale.num_updates))
        found["on" if is_on else "off"] = {"update_s": update_s, "peak_gib": peak}
    found["saved_gib"] = found["on"]["peak_gib"] - found["off"]["peak_gib"]
    found["largest_relative_difference_of_losses"] = _largest(losses[True], losses[False])
    return found


def _largest(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def _loss_and_gradient(
    objective: TrainingObjective, batch: SpeechBatch, dtype: torch.dtype
) -> tuple[float, torch.Tensor]:
    batch = batch.to(device())
    with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
        loss = objective(
            batch.input_features, batch.decoder_input_ids, batch.labels, num_label_tokens=batch.num_label_tokens
        )
    (loss * (256.0 / batch.num_label_tokens)).backward()
    weights = [p for p in objective.parameters() if p.grad is not None]
    gradient = torch.cat([p.grad.flatten()[:4096].float().cpu() for p in weights if p.grad is not None])
    for p in weights:
        p.grad = None
    return float(loss.detach()), gradient


def chunked_loss(scale: Scale) -> Figures:
    """Compare the loss in chunks of label tokens with the plain one."""
    whisper = build_whisper(Job(scale.size))
    found: Figures = {}
    expected: dict[str, tuple[float, torch.Tensor]] = {}
    for name, options in (
        ("whole", {"chunk_tokens": 0}),
        ("chunked", {"chunk_tokens": scale.num_clips * scale.num_labels // 4}),
    ):
        objective = TrainingObjective(whisper, **options)
        for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
            peak_gib(reset=True)
            loss, gradient = _loss_and_gradient(objective, _batch(scale), dtype)
            figures: Figures = {"peak_gib": peak_gib()}
            if name == "whole":
                expected[precision] = loss, gradient
            else:
                figures["loss_relative_difference"] = abs(loss / expected[precision][0] - 1)
                figures["gradient_relative_difference"] = relative(gradient, expected[precision][1])
            found.setdefault(precision, {})[name] = figures
    return found


def compiled(scale: Scale) -> Figures:
    """Compare compiled layers with eager ones: the gradient, and the time of a forward and backward."""
    found: Figures = {"backend": scale.backend}
    batch = _batch(scale)
    for precision, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        whisper = build_whisper(Job(scale.size))
        objective = TrainingObjective(whisper)
        _, eager = _loss_and_gradient(objective, batch, dtype)
        eager_s = _seconds(lambda: _loss_and_gradient(objective, batch, dtype), times=3)  # noqa: B023
        start = time.perf_counter()
        compile_layers(whisper, backend=scale.backend)
        _, fast = _loss_and_gradient(objective, batch, dtype)
        first_s = time.perf_counter() - start
        compiled_s = _seconds(lambda: _loss_and_gradient(objective, batch, dtype), times=3)  # noqa: B023
        found[precision] = {
            "gradient_relative_difference": relative(fast, eager),
            "speed_up": eager_s / compiled_s,
            "eager_s": eager_s,
            "compiled_s": compiled_s,
            "first_s": first_s,
        }
    return found


def repeat(scale: Scale) -> Figures:
    """Train twice from the same seed with deterministic kernels; losses and weights must be the same bits."""
    found: Figures = {}
    num_updates = 50 if scale.size == "large_v3" else scale.num_updates
    small = dataclasses.replace(scale, size="toy" if scale.size == "toy" else "tiny")
    before = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        for precision in ("fp16", "bf16"):
            runs = [_digest(Job(small.size, precision), small, num_updates) for _ in range(2)]
            found[precision] = {"updates": num_updates, "is_equal": runs[0] == runs[1], "sha256": runs[0]}
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fills
    return found


def _digest(job: Job, scale: Scale, num_updates: int) -> str:
    whisper = build_whisper(job)
    updater = build_updater(job, whisper)
    digest = hashlib.sha256()
    for i in range(num_updates):
        result = updater.update([_batch(scale, seed=i % 4)], lr=1e-4)
        digest.update(repr((result.loss, result.grad_norm, result.loss_scale)).encode())
    for tensor in whisper.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def waits(scale: Scale) -> Figures:
    """Count how often the host waits for the device in an update; on a CPU there is nothing to wait for."""
    if not torch.cuda.is_available():
        return {"left_out": "no GPU"}
    found: Figures = {}
    for precision in ("bf16", "fp16"):
        job = Job("tiny", precision)
        updater = build_updater(job, build_whisper(job))
        batch = uniform_batch("tiny", num_clips=2, num_frames=1000, num_labels=20).to(device())
        updater.update([batch], lr=1e-6)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                updater.update([batch, batch], lr=1e-6)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found[precision] = sum("synchroniz" in str(warning.message) for warning in caught)
    return found
