"""Clips come as often as the mixture says: counted over epochs, and held against the formulas."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data.mixture import Group, Mixture, MixtureSettings, build_mixture, describe_groups

HOURS = {"en": 8.0, "zh": 1.0, "ar": 0.125}


def _build(
    languages: list[str],
    sources: list[int] | None = None,
    *,
    durations_s: list[float] | None = None,
    weights: tuple[float, ...] = (1.0,),
    num_replay: int = 0,
    no_speech: list[bool] | None = None,
    no_speech_share: float = 0.0,
    seed: int = 0,
    **settings: float,
) -> Mixture:
    count = len(languages)
    return build_mixture(
        np.full(count, 3.6) if durations_s is None else np.array(durations_s),
        np.array(languages),
        np.zeros(count, np.int64) if sources is None else np.array(sources),
        np.zeros(count, bool) if no_speech is None else np.array(no_speech),
        names=[f"source {i}" for i in range(len(weights))],
        weights=weights,
        is_replay=[i >= len(weights) - num_replay for i in range(len(weights))],
        settings=MixtureSettings(**settings),
        no_speech_share=no_speech_share,
        seed=seed,
    )


def test_without_wishes_each_clip_comes_once_an_epoch() -> None:
    mixture = _build(["en", "zh", "en", "ar", "zh"] * 4, [0, 1] * 10, weights=(1.0, 1.0))
    for epoch in range(3):
        assert sorted(mixture.draw(epoch).tolist()) == list(range(20))


@pytest.mark.parametrize("weight", [1, 2, 5])
def test_a_whole_weight_is_how_often_each_clip_comes(weight: int) -> None:
    mixture = _build(["en"] * 7, [0] * 4 + [1] * 3, weights=(1.0, float(weight)))
    for epoch in range(4):
        assert Counter(mixture.draw(epoch).tolist()) == {clip: 1 if clip < 4 else weight for clip in range(7)}


@pytest.mark.parametrize(("weight", "num_clips"), [(0.5, 10), (0.3, 10), (0.3, 7), (1.5, 9), (2.4, 5), (0.05, 30)])
def test_a_fractional_weight_covers_all_before_any_comes_again(weight: float, num_clips: int) -> None:
    """Over epochs as within them: at any moment, no clip is ahead of another by more than one."""
    mixture = _build(["en"] * num_clips, weights=(weight,))
    seen: Counter[int] = Counter()
    drawn: list[int] = []
    for epoch in range(40):
        found = mixture.draw(epoch).tolist()
        assert abs(len(found) - weight * num_clips) < 1
        for clip in found:
            seen[clip] += 1
            counts = [seen[other] for other in range(num_clips)]
            assert max(counts) - min(counts) <= 1
        drawn += found
    assert len(drawn) == int(40 * weight * num_clips + 1e-9)
    rounds = [drawn[i : i + num_clips] for i in range(0, len(drawn) - num_clips + 1, num_clips)]
    assert all(sorted(part) == list(range(num_clips)) for part in rounds)
    assert len(rounds) < 2 or rounds[0] != rounds[1]  # and in another order each time


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    made = [_build(["en", "zh"] * 10, weights=(0.7,), seed=seed) for seed in (0, 0, 1)]
    first = [made[0].draw(epoch).tolist() for epoch in range(5)]
    assert [made[1].draw(epoch).tolist() for epoch in (4, 2, 0, 1, 3)] == [first[epoch] for epoch in (4, 2, 0, 1, 3)]
    assert [made[2].draw(epoch).tolist() for epoch in range(5)] != first


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 100.0])
def test_temperature_follows_the_formula(temperature: float) -> None:
    """Share of a language's hours to the power of 1/T; the hours of an epoch stay."""
    languages = [language for language, hours in HOURS.items() for _ in range(round(hours * 1000))]
    mixture = _build(languages, temperature=temperature)
    total = sum(HOURS.values())
    powers = {language: (hours / total) ** (1 / temperature) for language, hours in HOURS.items()}
    expected = {language: power / sum(powers.values()) * total for language, power in powers.items()}
    found = {group.language: group.drawn_hours for group in mixture.groups}
    assert found == pytest.approx(expected)
    counts = Counter(languages[clip] for clip in mixture.draw(0))
    for language, hours in expected.items():
        assert counts[language] == pytest.approx(hours * 1000, abs=1)


def test_temperature_weighs_hours_not_clips_and_leaves_the_sources_of_a_language_in_proportion() -> None:
    """As many clips of each language, but those of one are nine times as long."""
    languages, sources = ["en"] * 90 + ["zh"] * 90, ([0] * 60 + [1] * 30) * 2
    durations_s = [9.0] * 90 + [1.0] * 90
    mixture = _build(languages, sources, durations_s=durations_s, weights=(1.0, 2.0), temperature=2.0)
    hours = {(group.source, group.language): group.drawn_hours for group in mixture.groups}
    en, zh = (sum(found for (_, code), found in hours.items() if code == language) for language in ("en", "zh"))
    assert en / zh == pytest.approx(3)  # the square root of nine
    assert en + zh == pytest.approx((60 + 2 * 30) * (9 + 1) / 3600)
    for language in ("en", "zh"):
        assert hours["source 0", language] == pytest.approx(hours["source 1", language])  # 60 clips once, 30 twice


@pytest.mark.parametrize("share", [0.1, 0.25, 0.55, 0.9])
def test_replay_has_its_share_of_the_clips(share: float) -> None:
    languages = ["en", "zh"] * 500
    sources = [0] * 600 + [1] * 300 + [2] * 100
    mixture = _build(languages, sources, weights=(1.0, 1.0, 2.0), num_replay=2, replay_share=share)
    for epoch in range(3):
        drawn = mixture.draw(epoch)
        of_sources = Counter(sources[clip] for clip in drawn)
        assert of_sources[0] == 600
        assert (of_sources[1] + of_sources[2]) / len(drawn) == pytest.approx(share, abs=0.003)
        assert of_sources[1] / of_sources[2] == pytest.approx(300 / 200, rel=0.1)


@pytest.mark.parametrize(
    ("num_replay", "share", "weights"), [(0, 0.1, (1.0, 1.0)), (1, 0.0, (1.0, 1.0)), (2, 0.1, (1.0, 1.0))]
)
def test_replay_and_its_share_go_together(num_replay: int, share: float, weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"dataset\.replay= and dataset\.replay_share= go together"):
        _build(["en", "en"], [0, 1], weights=weights, num_replay=num_replay, replay_share=share)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.05, 5), (0.2, 23), (0.9, 40)])
def test_silence_has_at_most_its_share(share: float, expected: int) -> None:
    """95 clips with speech and 40 without: x of 95 + x are to be the share, as far as there are so many."""
    no_speech = [i % 27 < 8 for i in range(135)]
    assert sum(no_speech) == 40
    mixture = _build(["en"] * 135, no_speech=no_speech, no_speech_share=share)
    for epoch in range(3):
        drawn = mixture.draw(epoch).tolist()
        assert sum(not no_speech[clip] for clip in drawn) == 95
        assert abs(sum(no_speech[clip] for clip in drawn) - expected) <= 1


def test_bad_settings_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"dataset\.temperature=0\.9 must be 1 or more"):
        MixtureSettings(temperature=0.9)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"dataset\.replay_share="):
            MixtureSettings(replay_share=share)


def test_a_share_that_is_whole_but_for_rounding_loses_no_clip() -> None:
    """A tenth of nine tenths and their like: every epoch must take the same ten clips."""
    for count in range(1, 200):
        mixture = _build(["en"] * count, weights=(0.1 * 3 / 0.3,))
        assert len(mixture.draw(0)) == len(mixture.draw(7)) == count


def test_the_description_shows_what_is_taken() -> None:
    group = Group("s" * 50, "en", np.arange(1200), 2.0, 600.0, is_replay=True)
    header, line = describe_groups([group])
    assert header.split()[:4] == ["an", "epoch", "takes", "lang"]
    assert line.startswith("...sss")
    assert line.split()[-6:] == ["en", "1,200", "2.00", "600", "1.00", "100.0%"]
