"""How often each clip comes: weights of sources, temperature over languages, a share of replay against forgetting.

An epoch takes a number of clips from each group (a source and a language). A group is drawn in rounds: no clip comes a
second time before all others of its group have come, over epochs as within them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROUND_STREAM = 4  # first word of the seed; 1 to 3 are those of the clips, the order and the speed


@dataclass(frozen=True)
class Group:
    """Clips of one source and one language."""

    source: str
    language: str
    clips: npt.NDArray[np.int64]
    """Places of the clips."""
    hours: float
    num_draws: float
    """Clips an epoch takes from it; more than there are means that some come more than once."""
    is_replay: bool
    no_speech: bool = False
    """Nothing is said in any of the clips."""

    @property
    def drawn_hours(self) -> float:
        """Hours an epoch takes from it."""
        return self.hours * self.num_draws / len(self.clips)


@dataclass(frozen=True)
class MixtureSettings:
    """How sources are mixed."""

    temperature: float = 1.0
    """Over the hours of the languages: 1 leaves them, larger evens them out (share to the power of 1/T)."""
    replay_share: float = 0.0
    """Share of the clips of an epoch that come from the replay sources."""

    def __post_init__(self) -> None:
        if self.temperature < 1.0:
            raise ValueError(f"dataset.temperature={self.temperature} must be 1 or more")
        if not 0.0 <= self.replay_share < 1.0:
            raise ValueError(f"dataset.replay_share={self.replay_share} must lie in 0 to 1")


class Mixture:
    """Which clips an epoch takes, as a function of (seed, epoch)."""

    def __init__(self, groups: Sequence[Group], *, seed: int) -> None:
        self.groups = tuple(groups)
        self.seed = seed

    def draw(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the places of the clips of an epoch, group by group."""
        return np.concatenate([np.zeros(0, np.int64), *(self._draw(i, epoch) for i in range(len(self.groups)))])

    def _draw(self, index: int, epoch: int) -> npt.NDArray[np.int64]:
        group = self.groups[index]
        size = len(group.clips)
        # The group's rounds, one after the other, are cut into epochs; where a cut lies needs no memory of the past.
        start, stop = int(epoch * group.num_draws), int((epoch + 1) * group.num_draws)
        parts = [np.zeros(0, np.int64)]
        for cycle in range(start // size, -(-stop // size)):
            order = np.random.default_rng([ROUND_STREAM, self.seed, index, cycle]).permutation(size)
            parts.append(group.clips[order[max(0, start - cycle * size) : stop - cycle * size]])
        return np.concatenate(parts)


def every_clip(num_clips: int, *, seed: int = 0) -> Mixture:
    """Return the mixture that takes each of so many clips once in an epoch."""
    group = Group("all", "all", np.arange(num_clips), hours=0.0, num_draws=float(num_clips), is_replay=False)
    return Mixture([group], seed=seed)


def build_mixture(
    durations_s: npt.NDArray[np.float64],
    languages: npt.NDArray[np.str_],
    source_of: npt.NDArray[np.int64],
    no_speech: npt.NDArray[np.bool_],
    *,
    names: Sequence[str],
    weights: Sequence[float],
    is_replay: Sequence[bool],
    settings: MixtureSettings,
    no_speech_share: float = 0.0,
    seed: int = 0,
) -> Mixture:
    """Group clips by source and language, and decide how many an epoch takes of each group.

    Args:
        durations_s: (num_clips,) seconds.
        languages: (num_clips,) ISO codes.
        source_of: (num_clips,) place of each clip's source.
        no_speech: (num_clips,) whether nothing is said.
        names: of the sources.
        weights: of the sources; 1 takes each clip once in an epoch.
        is_replay: whether a source is for replay; its weight counts among those that are.
        settings: temperature and share of replay.
        no_speech_share: largest share of an epoch's clips in which nothing is said.
        seed: of the draws.

    Raises:
        ValueError: if there is a share of replay without a source for it, or the other way round.
    """
    has_replay = any(is_replay)
    if has_replay != (settings.replay_share > 0.0) or all(is_replay):
        raise ValueError(
            "dataset.replay= and dataset.replay_share= go together, beside dataset.train=; found "
            f"{sum(is_replay)} replay sources, {len(names) - sum(is_replay)} others, and a share of "
            f"{settings.replay_share:g}"
        )
    known, language_of = np.unique(languages, return_inverse=True)
    kinds = (source_of * len(known) + language_of) * 2 + no_speech
    keys, group_of = np.unique(kinds, return_inverse=True)
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of, minlength=len(keys)))[:-1])
    groups: list[Group] = []
    for key, clips in zip(keys.tolist(), members, strict=True):
        source, language = divmod(key // 2, len(known))
        group = Group(
            source=names[source],
            language=str(known[language]),
            clips=clips,
            hours=float(durations_s[clips].sum()) / 3600,
            num_draws=len(clips) * weights[source],
            is_replay=is_replay[source],
            no_speech=bool(key % 2),
        )
        groups.append(group)
    groups = _even_out(groups, settings.temperature)
    groups = _share_replay(groups, settings.replay_share)
    return Mixture(_limit_silence(groups, no_speech_share), seed=seed)


def _even_out(groups: Sequence[Group], temperature: float) -> list[Group]:
    """Raise each language's share of the hours to the power of 1/T; the hours of an epoch stay as they are."""
    hours: dict[str, float] = {}
    for group in groups:
        if not group.is_replay and not group.no_speech:
            hours[group.language] = hours.get(group.language, 0.0) + group.drawn_hours
    total = sum(hours.values())
    wanted = {language: (found / total) ** (1 / temperature) for language, found in hours.items()}
    scale = total / sum(wanted.values())
    factors = {language: wanted[language] * scale / hours[language] for language in hours}
    return [g if g.is_replay or g.no_speech else _redrawn(g, g.num_draws * factors[g.language]) for g in groups]


def _share_replay(groups: Sequence[Group], share: float) -> list[Group]:
    fresh = sum(group.num_draws for group in groups if not group.is_replay and not group.no_speech)
    replayed = sum(group.num_draws for group in groups if group.is_replay)
    if replayed == 0:
        return list(groups)
    factor = fresh * share / (1.0 - share) / replayed
    return [_redrawn(g, g.num_draws * factor) if g.is_replay else g for g in groups]


def _limit_silence(groups: Sequence[Group], share: float) -> list[Group]:
    speech = sum(group.num_draws for group in groups if not group.no_speech)
    silence = sum(group.num_draws for group in groups if group.no_speech)
    if silence == 0:
        return list(groups)
    factor = min(1.0, speech * share / (1.0 - share) / silence)
    limited = [_redrawn(g, g.num_draws * factor) if g.no_speech else g for g in groups]
    return [group for group in limited if group.num_draws > 0]


def _redrawn(group: Group, num_draws: float) -> Group:
    # A share that is a whole number but for rounding must not lose a clip every epoch.
    whole = round(num_draws)
    exact = float(whole) if abs(num_draws - whole) < 1e-6 else num_draws
    return dataclasses.replace(group, num_draws=exact)


def describe_groups(groups: Sequence[Group]) -> list[str]:
    """Return the plan of an epoch as lines of text: clips and hours by source and language, and what is taken."""
    total = sum(group.drawn_hours for group in groups)
    lines = [f"{'an epoch takes':<32} {'lang':<5} {'clips':>9} {'hours':>8} {'taken':>9} {'hours':>8} {'share':>6}"]
    for group in groups:
        kind = " (replay)" if group.is_replay else " (no speech)" if group.no_speech else ""
        name = group.source if len(group.source) + len(kind) <= 32 else "..." + group.source[len(kind) - 29 :]
        lines.append(
            f"{name + kind:<32} {group.language:<5} {len(group.clips):>9,} {group.hours:>8.2f} "
            f"{group.num_draws:>9,.0f} {group.drawn_hours:>8.2f} {group.drawn_hours / total:>6.1%}"
        )
    return lines
