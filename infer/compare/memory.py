"""How much memory a model takes, as the system sees it: on a CPU the process's, on CUDA the whole card's."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from infer.artefact import Artefact
from infer.compare.arithmetic import Arithmetic

STATUS = Path("/proc/self/status")
CLEAR_PEAK = Path("/proc/self/clear_refs")
EVERY_S = 0.005  # between two looks at the card
COMPUTED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class MemoryMeter:
    """Peak memory of a block, and its growth since the meter was made.

    Torch's own counter does not see what CTranslate2 takes; so on CUDA the card is looked at, for both alike.
    """

    def __init__(self, device: torch.device) -> None:
        """Note what is in use before a model is loaded."""
        self.device = device
        self._peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if device.type == "cuda":
            torch.zeros(1, device=device)  # the context is no part of a model
        self._before = self._used()

    def __enter__(self) -> MemoryMeter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        elif CLEAR_PEAK.exists():
            CLEAR_PEAK.write_text("5")  # the kernel's mark of the highest use begins anew
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
        else:
            self._peak = _status_bytes("VmHWM") or 0

    def figures(self) -> dict[str, Any]:
        """Return bytes: before the model, at the peak, and the growth between; None where the system does not say."""
        known = self._peak > 0 and self._before > 0
        figures = {
            "before_bytes": self._before if known else None,
            "peak_bytes": self._peak if known else None,
            "growth_bytes": self._peak - self._before if known else None,
        }
        if self.device.type == "cuda":
            figures["torch_peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return figures

    def _used(self) -> int:
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return int(total - free)
        return _status_bytes("VmRSS") or 0

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._peak = max(self._peak, self._used())
            self._stop.wait(EVERY_S)


def _status_bytes(key: str) -> int | None:
    if not STATUS.is_file():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return None


def weights_bytes(artefact: Any, arithmetic: Arithmetic) -> int:
    """Return the bytes of the weights as they lie in memory while computing.

    Args:
        artefact: of torch or of CTranslate2.
        arithmetic: the row. In int8 it is the size of the file, which stores what computes.
    """
    if isinstance(artefact, Artefact):
        return sum(tensor.numel() * tensor.element_size() for tensor in artefact.model.parameters())
    size: int = (artefact.path / "model.bin").stat().st_size
    if arithmetic.dtype == "int8":
        return size
    return size * COMPUTED_BYTES[artefact.compute] // COMPUTED_BYTES[artefact.stored]
