"""What the gate lets pass: one frozen value that stands beside every verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

CPU_HALF_CLIPS, DEVICE_HALF_CLIPS = 20, 200
"""A clip of 30 s costs a CPU about a second in half arithmetic, for a small model."""


@dataclass(frozen=True)
class Tolerance:
    """The `gate.tolerance` group; rates are fractions, 0.001 is a tenth of a point."""

    top1: float = 0.995
    """Teacher-forced, the least share of tokens that FP16 and strict FP32 agree on."""
    kl: float = 1e-3
    """Teacher-forced, the largest mean divergence of FP16 from FP32, in nats a token."""
    wer: float = 0.001
    """Largest difference between FP16 and FP32 in WER; one word on a small set is none."""
    cer: float = 0.0005
    """The same in CER; one character on a small set is none."""
    headroom: float = 0.5
    """Largest activation in half arithmetic, as a share of FP16's largest value."""
    full_window_wer: float = 0.02
    """Most WER that a model trained on short windows may lose at 30 s, where stock runtimes run it."""
    runtime_wer: float = 0.003
    """Largest difference in WER between a runtime and ours at the same windows, formats in floating point."""
    runtime_identical: float = 0.98
    """Least share of identical texts between them."""
    int8_wer: float = 0.01
    """Largest difference in WER of a quantised format; its texts may differ."""
    long_form_wer: float = 0.05
    """Most error that a long recording may cost against its clips one by one."""
    lost_timestamps: bool = False
    """Whether a model may lose timestamps or long recordings that its base has."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, bool) and not 0 <= value <= 1:
                raise ValueError(f"gate.tolerance.{item.name}={value} must lie in 0 to 1; rates are fractions")


@dataclass(frozen=True)
class GateSettings:
    """The `gate` group."""

    enabled: bool = True
    clips: int = 200
    """Held-out clips that everything is judged on, evenly from the shortest to the longest."""
    half_clips: int | None = None
    """Of them, for what runs in half arithmetic, which a CPU is slow at; None takes 20 on a CPU, else 200."""
    batch_size: int = 16
    latency_clips: int = 20
    """Timed one at a time."""
    long_recording: str | None = None
    """A recording with timestamps to try; None joins held-out clips with pauses."""
    long_s: float = 90.0
    """Seconds of speech joined."""
    base: str | None = None
    """The model that was fine-tuned, to compare timestamps with; None takes the one that the manifest names, if it is
    there."""
    tolerance: Tolerance = field(default_factory=Tolerance)

    def __post_init__(self) -> None:
        for name in ("clips", "half_clips", "batch_size", "latency_clips"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"gate.{name}={value} must be 1 or more")
        if not 1.0 <= self.long_s <= 3600.0:
            raise ValueError(f"gate.long_s={self.long_s} must lie in 1 to 3600 seconds")

    def half_clips_on(self, device: str) -> int:
        """Return how many clips half arithmetic is given on a type of device."""
        if self.half_clips is not None:
            return self.half_clips
        return CPU_HALF_CLIPS if device == "cpu" else DEVICE_HALF_CLIPS
