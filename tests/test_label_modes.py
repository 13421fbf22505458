"""How a clip is labelled is a function of (seed, epoch, clip), at the shares that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from data.augment import clip_rng
from data.label_modes import LabelMode, LabelSettings, draw_label_mode


def _draw(settings: LabelSettings, *, seed: int = 0, epoch: int = 0, num_clips: int = 4000) -> list[LabelMode]:
    return [draw_label_mode(settings, seed=seed, epoch=epoch, index=i) for i in range(num_clips)]


def test_shares_are_kept_and_drawn_apart() -> None:
    modes = _draw(LabelSettings(timestamp_share=0.5, prompt_share=0.2))
    timed = np.array([mode.with_timestamps for mode in modes])
    prompted = np.array([mode.with_prompt for mode in modes])
    assert timed.mean() == pytest.approx(0.5, abs=0.03)  # 4 standard deviations
    assert prompted.mean() == pytest.approx(0.2, abs=0.026)
    assert (timed & prompted).mean() == pytest.approx(0.1, abs=0.02)


def test_none_and_all() -> None:
    assert set(_draw(LabelSettings(), num_clips=300)) == {LabelMode(False, False)}
    assert set(_draw(LabelSettings(1.0, 1.0), num_clips=300)) == {LabelMode(True, True)}


def test_a_draw_depends_on_seed_epoch_and_clip_alone() -> None:
    settings = LabelSettings(0.5, 0.5)
    drawn = _draw(settings, num_clips=200)
    assert list(reversed([draw_label_mode(settings, seed=0, epoch=0, index=i) for i in reversed(range(200))])) == drawn
    assert _draw(settings, epoch=1, num_clips=200) != drawn
    assert _draw(settings, seed=1, num_clips=200) != drawn
    # One share leaves the draws of the other as they were.
    other = _draw(LabelSettings(0.5, 0.9), num_clips=200)
    assert [mode.with_timestamps for mode in other] == [mode.with_timestamps for mode in drawn]


def test_modes_do_not_follow_the_augmentation() -> None:
    """Clips that are drawn for timestamps must not be those that are drawn to be loud."""
    timed = [mode.with_timestamps for mode in _draw(LabelSettings(0.5, 0.5))]
    gains = [clip_rng(0, 0, i).uniform() for i in range(4000)]
    assert abs(np.corrcoef(timed, gains)[0, 1]) < 0.07  # 4 standard deviations


@pytest.mark.parametrize("name", ["timestamp_share", "prompt_share", "no_speech_share"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares_outside_0_to_1_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"labels.{name}="):
        LabelSettings(**{name: value})


def test_a_corpus_of_silence_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no clip with speech"):
        LabelSettings(no_speech_share=1.0)
