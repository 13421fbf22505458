"""Everything that needs a GPU, in one command of at most nine minutes on one large card.

    python -m benchmarks.gpu                    all parts
    python -m benchmarks.gpu waits memory       some of them
    python -m benchmarks.gpu --toy              the same code at toy size, on a CPU too

Each part stands alone, and one that fails leaves the others be. After each, `results/gpu.json` is written anew. Needed
are torch, transformers and accelerate; bitsandbytes where it is there. Packages that read audio or score text are not.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products, before the first of them

import torch
from transformers import Seq2SeqTrainer  # noqa: F401  looks for packages itself, so before they seem to be there

from benchmarks.absent import without_absent

with without_absent() as MISSING:
    from benchmarks import gpu_memory, gpu_parts
    from benchmarks.environment import write_result
    from benchmarks.gpu_parts import TOY, Scale
    from benchmarks.gpu_speed import compare_speed

BUDGET_S = 530.0
EDGES_S = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0]


def _speed(scale: Scale, *, length_s: float | None, edges_s: list[float]) -> dict[str, Any]:
    is_toy = scale.size == "toy"
    return compare_speed(
        size=scale.size,
        precision="fp32" if is_toy else "bf16",
        length_s=length_s,
        edges_s=edges_s,
        batch=1 if is_toy else 8,
        clips=2 if is_toy else 32,
        turns=1 if is_toy else 5,
    )


PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "rates": gpu_parts.rates,
    "waits": gpu_parts.waits,
    "overflow": gpu_parts.overflow,
    "gradient": gpu_parts.gradient,
    "repeat": gpu_parts.repeat,
    "memory": gpu_memory.plan_against_peaks,
    "speed_30s": lambda scale: _speed(scale, length_s=29.5 if scale.size != "toy" else 4.0, edges_s=[30.0]),
    "speed_sentences": lambda scale: _speed(scale, length_s=None, edges_s=EDGES_S),
    "cache": gpu_parts.cache,
    "chunked_loss": gpu_parts.chunked_loss,
    "compiled": gpu_parts.compiled,
}


def run_parts(names: list[str], scale: Scale, *, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """Run parts in turn and return their figures; what fails, or finds no time left, says so."""
    start = time.perf_counter()
    found: dict[str, Any] = {}
    for name in names:
        if time.perf_counter() - start > budget_s:
            found[name] = {"left_out": f"{budget_s:.0f} s are over"}
            continue
        began = time.perf_counter()
        try:
            figures = PARTS[name](scale)
        except Exception as e:  # one part's failure is a finding; the others still count
            traceback.print_exc()
            figures = {"error": f"{type(e).__name__}: {e}"}
        found[name] = {**figures, "seconds": round(time.perf_counter() - began, 1)}
        print(name, found[name], flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if scale is not TOY:
            write_result("gpu", {"missing_packages": MISSING, "parts": found})
    return found


def main() -> int:
    """Measure; return 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--toy", action="store_true", help="a small model, few updates; nothing is written")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not arguments.toy and not torch.cuda.is_available():
        parser.error("no GPU here; --toy runs the same code on the CPU")
    found = run_parts(arguments.parts or list(PARTS), TOY if arguments.toy else Scale())
    return int(any("error" in figures for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
