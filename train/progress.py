"""The progress bar of a run: loss, learning rate, loss scale, audio-seconds a second, time left."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from train.step import UpdateResult

LINE_EVERY_S = 10.0  # where there is no terminal to draw in, a line now and then
DRAW_EVERY_S = 0.2


class ProgressBar:
    """Show how far a run is: a bar in a terminal, plain lines elsewhere, nothing on the other ranks."""

    def __init__(self, max_steps: int, *, start: int, shown: bool) -> None:
        self._console = Console()
        self._max_steps = max_steps
        self._step = start
        self._shown = shown
        self._audio_s = 0.0
        self._began = self._spoke = time.perf_counter()
        self._bar: Progress | None = None
        self._every_s = LINE_EVERY_S
        if shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._every_s = DRAW_EVERY_S
            self._task = self._bar.add_task("training", total=max_steps, completed=start, figures="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, result: UpdateResult, *, lr: float, audio_s: float) -> None:
        """Show one more update."""
        self._step += 1
        self._audio_s += audio_s
        now = time.perf_counter()
        is_last = self._step == self._max_steps
        if not self._shown or (now - self._spoke < self._every_s and not is_last):
            return  # asking for the loss scale waits for the device, and drawing takes time
        self._spoke = now
        speed = self._audio_s / max(1e-9, now - self._began)
        scale = "" if result.loss_scale is None else f"  scale {result.loss_scale:g}"
        figures = f"loss {result.loss:.3f}  lr {lr:.1e}{scale}  {speed:.0f} audio-s/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, figures=figures)
        else:
            self._console.print(f"step {self._step}/{self._max_steps}  {figures}", highlight=False)
