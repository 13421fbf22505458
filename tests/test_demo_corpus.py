"""The shipped demo corpus is as the demo assumes: complete, decodable, small, and `clinic` new to a model of `home`."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
import yaml

DEMO_DIR = Path(__file__).resolve().parents[1] / "data" / "demo"
CORPUS_DIR = DEMO_DIR / "corpus"
LANGUAGES = ("zh", "en", "ja", "ar", "ru")
CLIPS_PER_LANGUAGE: dict[str, int | dict[str, int]] = {
    "clinic/train": 150,
    "clinic/validation": 16,
    "clinic/test": 40,
    "home/train": {"zh": 220, "en": 350, "ja": 235, "ar": 215, "ru": 355},
    "home/validation": 8,
    "home/test": 40,
}
HOME_SPLITS = ("home/train", "home/validation", "home/test")
MAX_BYTES = 7_250_000  # with the base model, 16 MB

Row = dict[str, Any]


def read_manifest(name: str) -> list[Row]:
    """Read one manifest, for example `clinic/train`."""
    lines = (CORPUS_DIR / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def manifests() -> dict[str, list[Row]]:
    """All six manifests by name."""
    return {name: read_manifest(name) for name in CLIPS_PER_LANGUAGE}


def texts_of(rows: list[Row], language: str) -> list[str]:
    """Transcripts of one language."""
    return [row["text"] for row in rows if row["language"] == language]


def units_of(texts: list[str], language: str) -> set[str]:
    """Distinct words, or characters where the transcript has no spaces."""
    if language in ("zh", "ja"):
        return set("".join(texts))
    return {word for text in texts for word in text.split()}


def clinic_words_of(language: str) -> tuple[set[str], set[str]]:
    """Words of the `clinic` templates and slots, and the function words that `home` may share."""
    lexicon = yaml.safe_load((DEMO_DIR / "lexicon" / f"{language}.yaml").read_text(encoding="utf-8"))
    entries = [entry for slot in lexicon["clinic"]["slots"].values() for entry in slot]
    pieces = {piece for text in entries + lexicon["clinic"]["templates"] for piece in text.split()}
    return {piece for piece in pieces if not piece.startswith("{")}, set(lexicon["glue"])


@pytest.mark.parametrize("name", CLIPS_PER_LANGUAGE)
def test_counts_and_fields(manifests: dict[str, list[Row]], name: str) -> None:
    rows = manifests[name]
    expected = CLIPS_PER_LANGUAGE[name]
    each = expected if isinstance(expected, dict) else dict.fromkeys(LANGUAGES, expected)
    assert Counter(row["language"] for row in rows) == each
    assert {row["domain"] for row in rows} == {name.split("/")[0]}
    assert [row["language"] for row in rows[:10]] == list(LANGUAGES) * 2, "languages must take turns"
    speakers = Counter(row["speaker"] for row in rows)
    assert len(speakers) == 4 * len(LANGUAGES), "all four voices of all languages must occur"
    assert all(row["speaker"].startswith(row["language"] + "+") for row in rows)


def test_ids_and_audio_are_unique(manifests: dict[str, list[Row]]) -> None:
    rows = [(name, row) for name, manifest in manifests.items() for row in manifest]
    assert len({row["id"] for _, row in rows}) == len(rows)
    assert len({(name.split("/")[0], row["audio"]) for name, row in rows}) == len(rows)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_in_two_splits(manifests: dict[str, list[Row]], language: str) -> None:
    texts = {name: texts_of(rows, language) for name, rows in manifests.items()}
    assert all(len(set(sentences)) == len(sentences) for sentences in texts.values()), "a sentence twice in one split"
    shared = {(a, b): set(texts[a]) & set(texts[b]) for a, b in combinations(texts, 2)}
    assert not any(shared.values()), shared


@pytest.mark.parametrize("language", LANGUAGES)
def test_clinic_test_has_no_new_unit(manifests: dict[str, list[Row]], language: str) -> None:
    in_train = units_of(texts_of(manifests["clinic/train"], language), language)
    for name in ("clinic/test", "clinic/validation"):
        assert units_of(texts_of(manifests[name], language), language) <= in_train


@pytest.mark.parametrize("language", LANGUAGES)
def test_clinic_words_are_frequent_in_train(manifests: dict[str, list[Row]], language: str) -> None:
    words, glue = clinic_words_of(language)
    assert 25 <= len(words - glue) <= 35
    separator = "" if language in ("zh", "ja") else " "
    texts = [separator + text + separator for text in texts_of(manifests["clinic/train"], language)]
    counts = {word: sum(separator + word + separator in text for text in texts) for word in words - glue}
    assert min(counts.values()) >= 10, counts


@pytest.mark.parametrize("language", LANGUAGES)
def test_home_has_no_clinic_word(manifests: dict[str, list[Row]], language: str) -> None:
    words, glue = clinic_words_of(language)
    home = [text for name in HOME_SPLITS for text in texts_of(manifests[name], language)]
    clinic = texts_of(manifests["clinic/test"], language)
    if language == "ja":  # kana are shared by nature, so whole words are sought anywhere in the text
        assert not [(word, text) for word in words - glue for text in home if word in text]
        return
    home_units, allowed = units_of(home, language), set() if language == "zh" else glue
    running_units = [unit for text in clinic for unit in (text if language == "zh" else text.split())]
    known = Counter(unit for unit in running_units if unit in home_units)
    assert set(known) <= allowed, known
    # Even the shared function words are few, or a model of `home` would not fail on `clinic`.
    assert sum(known.values()) / len(running_units) < 0.1


@pytest.mark.parametrize(
    ("language", "pattern_characters"),
    [
        ("en", "abcdefghijklmnopqrstuvwxyz"),
        ("ru", "абвгдежзийклмнопрстуфхцчшщъыьэюяё"),
    ],
)
def test_alphabet_is_closed(manifests: dict[str, list[Row]], language: str, pattern_characters: str) -> None:
    characters = set("".join(text for rows in manifests.values() for text in texts_of(rows, language)))
    assert characters - {" "} <= set(pattern_characters)


def test_scripts(manifests: dict[str, list[Row]]) -> None:
    ranges = {"zh": [("一", "鿿")], "ja": [("ぁ", "ん"), ("ァ", "ヶ"), ("ー", "ー")], "ar": [("ء", "ي"), (" ", " ")]}
    for language, allowed in ranges.items():
        characters = set("".join(text for rows in manifests.values() for text in texts_of(rows, language)))
        assert all(any(low <= character <= high for low, high in allowed) for character in characters), language


def test_audio_decodes_to_its_duration(manifests: dict[str, list[Row]]) -> None:
    for name, rows in manifests.items():
        for row in rows:
            waveform, sampling_rate = sf.read(CORPUS_DIR / name.split("/")[0] / row["audio"], dtype="float32")
            assert sampling_rate == 16_000 and waveform.ndim == 1, row["id"]
            assert abs(len(waveform) / sampling_rate - row["duration_s"]) <= 0.02, row["id"]
            assert 0.8 <= row["duration_s"] <= 4.0, row["id"]
            assert 0.01 < float((waveform**2).mean()) ** 0.5 < 0.2, f"{row['id']} is silent or far too loud"


def test_corpus_is_small_and_has_no_stray_file(manifests: dict[str, list[Row]]) -> None:
    files = [path for path in CORPUS_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    audio = {CORPUS_DIR / name.split("/")[0] / row["audio"] for name, rows in manifests.items() for row in rows}
    manifest_paths = {CORPUS_DIR / f"{name}.jsonl" for name in manifests}
    assert set(files) == audio | manifest_paths | {CORPUS_DIR / "README.md"}
