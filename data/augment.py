"""Augmentation of a clip: a function of (seed, epoch, row) alone, whatever worker draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.audio import SAMPLING_RATE, Waveform
from data.codec import CODECS, pass_codec, verify_codecs
from data.features import MAX_WINDOW_S
from data.level import change_gain, overdrive
from data.noise import add_noise, draw_noise
from data.room import add_room, draw_room
from data.sounds import Sounds, open_sounds
from data.speed import change_speed, draw_uniform

CLIP_STREAM = 1  # first word of the seed; numpy pads seeds with zeros, so shorter ones need another
SPEED_STREAM = 3  # 2 is that of the order in `batches`
MAX_OVERDRIVE_DB = 15.0  # heard as a crackle at the peaks, or in every word


@dataclass(frozen=True)
class Augmentation:
    """What is changed and how much; a share is one of the clips, and where all are zero a clip stays as it is."""

    speed_share: float = 0.0
    """Clips that are played at another speed, pitch and all."""
    speeds: tuple[float, ...] = (0.9, 1.1)
    """What is drawn from; 1.1 makes a clip shorter by a factor of 1.1."""
    room_share: float = 0.0
    rooms: tuple[str, ...] = ()
    """Impulse responses: audio files, folders or JSON-lines files; none makes responses of decaying noise."""
    rt60_s: tuple[float, float] = (0.2, 0.8)
    """Shortest and longest reverberation time of the made responses."""
    noise_share: float = 0.0
    noise: tuple[str, ...] = ()
    """Recordings: audio files, folders or JSON-lines files; none makes white, pink and brown noise."""
    snr_db: tuple[float, float] = (5.0, 25.0)
    """Lowest and highest ratio of the active speech level to that of the noise."""
    clipping_share: float = 0.0
    """Clips whose peaks are cut off, by up to 15 dB."""
    codec_share: float = 0.0
    codecs: tuple[str, ...] = CODECS
    """What is drawn from: mulaw and gsm at 8 kHz, opus and mp3 at a drawn low bit rate."""
    gain_db: float = 0.0
    """Level drawn within plus or minus this many dB."""
    num_frequency_masks: int = 0
    max_frequency_share: float = 0.0
    """Widest frequency mask, as a share of the mel bins."""
    num_time_masks: int = 0
    max_time_share: float = 0.0
    """Widest time mask, as a share of the clip's own frames, not of its padding."""
    token_mask_share: float = 0.0
    """Share of text tokens hidden from the decoder's input, so that it must listen instead of guessing on."""
    sounds_gib: float = 1.0
    """Memory for decoded noises and as much again for rooms, in GiB; forked loaders share it."""

    def __post_init__(self) -> None:
        kinds = ("speed", "room", "noise", "clipping", "codec")
        shares = [f"{kind}_share" for kind in kinds] + ["max_frequency_share", "max_time_share", "token_mask_share"]
        for name in shares:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"augment.{name}={getattr(self, name)} must lie in 0 to 1")
        if not self.speeds or not all(0.5 <= speed <= 2.0 for speed in self.speeds):
            raise ValueError(f"augment.speeds={list(self.speeds)} must be factors in 0.5 to 2, as [0.9, 1.1]")
        if not 0.05 <= self.rt60_s[0] <= self.rt60_s[1] <= 5.0:
            raise ValueError(f"augment.rt60_s={list(self.rt60_s)} must rise, in 0.05 to 5 s, as [0.2, 0.8]")
        if not -20.0 <= self.snr_db[0] <= self.snr_db[1] <= 100.0:
            raise ValueError(f"augment.snr_db={list(self.snr_db)} must rise, in -20 to 100 dB, as [5, 25]")
        if not 0.0 <= self.gain_db <= 60.0:
            raise ValueError(f"augment.gain_db={self.gain_db} must lie in 0 to 60 dB; it is drawn on both sides of 0")
        for files, share in (("noise", "noise_share"), ("rooms", "room_share")):
            if getattr(self, files) and getattr(self, share) == 0.0:
                raise ValueError(f"augment.{files} is never heard while augment.{share}=0; add augment.{share}=0.5")
        if self.codec_share > 0.0:
            if not self.codecs:
                raise ValueError(f"augment.codecs=[] leaves nothing to draw from; known are {', '.join(CODECS)}")
            verify_codecs(self.codecs)

    @property
    def changes_waveform(self) -> bool:
        """True if anything but speed is drawn for a waveform."""
        shares = (self.room_share, self.noise_share, self.clipping_share, self.codec_share)
        return any(share > 0.0 for share in shares) or self.gain_db > 0.0


@dataclass(frozen=True)
class Recordings:
    """What is mixed with clips; None where it is made instead."""

    noises: Sounds | None = None
    rooms: Sounds | None = None


NO_RECORDINGS = Recordings()


def open_recordings(augmentation: Augmentation) -> Recordings:
    """List, check and decode the noises and rooms of the settings; once, before training.

    Raises:
        FileNotFoundError: if one of them does not exist.
        ValueError: naming the files that cannot be used.
    """

    def open_or_none(entries: tuple[str, ...], key: str) -> Sounds | None:
        return open_sounds(entries, key=key, cache_gib=augmentation.sounds_gib) if entries else None

    return Recordings(
        open_or_none(augmentation.noise, "augment.noise"), open_or_none(augmentation.rooms, "augment.rooms")
    )


def clip_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of one clip in one epoch; no worker state can reach it."""
    return np.random.default_rng([CLIP_STREAM, seed, epoch, index])


def draw_speeds(
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int,
    rows: npt.NDArray[np.int64],
    durations_s: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Draw the speed of clips; the plan of an epoch needs it before any clip is read, since it changes the window.

    Args:
        augmentation: the share of clips and the factors.
        seed: of the run.
        epoch: counted from 0.
        rows: (num_rows,) int64, index of each clip in the data set; a row gets its factor in whatever company.
        durations_s: (num_rows,) float64, length of each clip at its own speed, in seconds.

    Returns:
        (num_rows,) float64 for `augment_waveform`; 1 where a clip stays, as it does where it would outgrow 30 s.
    """
    uniform = draw_uniform(SPEED_STREAM, seed, epoch, rows)
    share, factors = augmentation.speed_share, np.asarray(augmentation.speeds)
    # Below the share the number is spread evenly over the factors once more; above it, it chooses nothing.
    choice = np.minimum(uniform / (share or 1.0) * len(factors), len(factors) - 1).astype(np.int64)
    speeds = np.where(uniform < share, factors[choice], 1.0)
    fits = np.round(durations_s / speeds * SAMPLING_RATE) <= MAX_WINDOW_S * SAMPLING_RATE
    return np.where(fits, speeds, 1.0)


def augment_waveform(
    waveform: Waveform,
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    speed: float = 1.0,
    recordings: Recordings = NO_RECORDINGS,
) -> Waveform:
    """Change a clip in the order of the world: the voice, its room, the sounds around, microphone, line, and level.

    Each kind draws from a stream of its own, so that switching one on leaves the draws of the others as they were.
    Libraries for this draw from the global state of their process, which differs from worker to worker.

    Args:
        waveform: (num_samples,) float32 in [-1, 1]; never written to.
        augmentation: what is drawn.
        rng: from `clip_rng`.
        speed: from `draw_speeds`.
        recordings: from `open_recordings`.

    Returns:
        (round(num_samples / speed),) float32 in [-1, 1]; the clip itself where nothing is drawn.
    """
    assert recordings.noises is not None or not augmentation.noise, "augment.noise was not opened"
    assert recordings.rooms is not None or not augmentation.rooms, "augment.rooms was not opened"
    waveform = change_speed(waveform, speed)
    if not augmentation.changes_waveform:
        return waveform
    room_rng, noise_rng, clipping_rng, codec_rng, gain_rng = rng.spawn(5)
    if room_rng.random() < augmentation.room_share:
        waveform = add_room(waveform, draw_room(room_rng, augmentation.rt60_s, recordings.rooms))
    if noise_rng.random() < augmentation.noise_share:
        snr_db = noise_rng.uniform(*augmentation.snr_db)
        waveform = add_noise(waveform, draw_noise(len(waveform), noise_rng, recordings.noises), snr_db=snr_db)
    if clipping_rng.random() < augmentation.clipping_share:
        waveform = overdrive(waveform, clipping_rng.uniform(0.0, MAX_OVERDRIVE_DB))
    if codec_rng.random() < augmentation.codec_share:
        waveform = pass_codec(
            waveform, augmentation.codecs[int(codec_rng.integers(len(augmentation.codecs)))], codec_rng
        )
    if augmentation.gain_db > 0.0:
        waveform = change_gain(waveform, gain_rng.uniform(-augmentation.gain_db, augmentation.gain_db))
    return waveform
