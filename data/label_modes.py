"""How the labels of a clip are written in an epoch: with timestamps, with the text before it; drawn, not stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LABEL_STREAM = 5  # first word of the seed; 1 to 3 are those of the clips, the order and the speed


@dataclass(frozen=True)
class LabelSettings:
    """What is drawn, and how often."""

    timestamp_share: float = 0.0
    """Of the clips with segments: how many are labelled with timestamp tokens, 0 to 1."""
    prompt_share: float = 0.0
    """Of the clips with a prompt: how many are given it, 0 to 1."""
    no_speech_share: float = 0.0
    """Of the clips of an epoch: how many at most have no speech, 0 to under 1."""

    def __post_init__(self) -> None:
        for name in ("timestamp_share", "prompt_share", "no_speech_share"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"labels.{name}={value} must lie in 0 to 1; labels.{name}=0.5 takes every second clip")
        if self.no_speech_share == 1.0:
            raise ValueError("labels.no_speech_share=1 leaves no clip with speech; 0.05 makes one in twenty silent")


@dataclass(frozen=True)
class LabelMode:
    """What `LabelBuilder.build` is asked for."""

    with_timestamps: bool
    with_prompt: bool


def draw_label_mode(settings: LabelSettings, *, seed: int, epoch: int, index: int) -> LabelMode:
    """Draw the mode of one clip in one epoch; no worker state can reach it.

    Both are always drawn, so that a change of one share leaves the draws of the other as they were.
    """
    timestamp, prompt = np.random.default_rng([LABEL_STREAM, seed, epoch, index]).random(2)
    return LabelMode(bool(timestamp < settings.timestamp_share), bool(prompt < settings.prompt_share))
