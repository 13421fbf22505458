"""Profiles cover Whisper's languages once each, give their reasons, and are refused where they are wrong."""

import hashlib
from pathlib import Path

import pytest
import yaml

from data.languages import LANGUAGE_CODES
from infer.score import spelling
from infer.score.normalise import NORMALISER_VERSION, UNDETERMINED, describe_scoring
from infer.score.profile import PROFILES_DIR, load_profiles, profile_of, read_profile
from infer.score.spelling import SPELLING_SHA256, STEPS

PATHS = sorted(PROFILES_DIR.glob("*.yaml"))


def test_every_language_of_whisper_has_one_profile_and_no_other_has():
    listed = [code for path in PATHS for code in yaml.safe_load(path.read_text(encoding="utf-8"))["languages"]]
    assert sorted(listed) == sorted([*LANGUAGE_CODES, UNDETERMINED])
    assert set(load_profiles()) == set(listed)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_step_has_a_reason_of_its_own(path):
    profile = read_profile(path)
    reasons = [reason for _, reason in profile.reasons]
    assert len(set(reasons)) == len(reasons) == len(profile.steps)
    assert all(len(reason.split()) >= 4 and reason.endswith(".") for reason in [*reasons, profile.why])


def test_every_step_is_used():
    used = {name for path in PATHS for name, _ in read_profile(path).reasons}
    assert used == {*STEPS, "replace", "delete"}


def _write(folder: Path, **changes: object) -> Path:
    step = {"do": "lower", "why": "Capitals are not heard."}
    content = {"languages": ["xx"], "metric": "wer", "why": "Words are written apart.", "steps": [step], **changes}
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"why": None}, "must have languages, metric, steps, why"),
        ({"extra": 1}, "must have"),
        ({"metric": "bleu"}, "metric='bleu' must be wer or cer"),
        ({"languages": [False]}, "False is no language code; write it in quotes"),
        ({"languages": ["English"]}, "'English' is no language code"),
        ({"steps": [{"do": "lower"}]}, "step 'lower' has no reason"),
        ({"steps": [{"do": "lowr", "why": "x"}]}, "unknown step 'lowr'; steps are nfkc"),
        ({"steps": [{"do": "delete", "why": "x", "characters": ["0640"]}]}, "'0640' is no code point"),
        ({"steps": [{"do": "replace", "why": "x"}]}, "pairs"),
        ({"steps": [{"do": "replace", "why": "x", "pairs": {"ab": "c"}}]}, "ord"),
    ],
)
def test_a_file_that_is_no_profile_says_why(tmp_path, changes, message):
    with pytest.raises(ValueError, match=r"test\.yaml is no scoring profile: ") as caught:
        read_profile(_write(tmp_path, **changes))
    assert message in str(caught.value)


def test_a_language_in_two_files_is_refused(tmp_path, monkeypatch):
    _write(tmp_path).rename(tmp_path / "one.yaml")
    _write(tmp_path).rename(tmp_path / "two.yaml")
    monkeypatch.setattr("infer.score.profile.PROFILES_DIR", tmp_path)
    load_profiles.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"'xx' stands in one\.yaml and two\.yaml"):
            profile_of("xx")
    finally:
        load_profiles.cache_clear()


def test_a_range_is_deleted_with_both_its_ends(tmp_path):
    step = {"do": "delete", "characters": ["U+0061-U+0063", "U+0078"], "why": "x"}
    assert read_profile(_write(tmp_path, steps=[step])).apply("abcdxyz") == "dyz"


def test_what_a_score_was_made_with_stands_beside_it():
    facts = describe_scoring(["zh", "de", "zh"])
    assert facts["normaliser_version"] == NORMALISER_VERSION
    assert list(facts["profiles"]) == ["de", "zh"]
    digest = hashlib.sha256((PROFILES_DIR / "chinese.yaml").read_bytes()).hexdigest()
    assert facts["profiles"]["zh"] == {"name": "chinese", "sha256": digest[:12]}
    assert set(facts["packages"]) == {"opencc", "rapidfuzz", "sacrebleu", "transformers", "whisper-normalizer"}


def test_another_map_of_spellings_is_refused(monkeypatch):
    monkeypatch.setattr(spelling, "SPELLING_SHA256", SPELLING_SHA256[::-1])
    spelling._english.cache_clear()
    with pytest.raises(RuntimeError, match=r"pip install -c constraints\.txt whisper-normalizer"):
        spelling.whisper_english("colour")
    monkeypatch.undo()
    assert spelling.whisper_english("colour") == "color"
