"""Sentences of the demo corpus: read a language's lexicon, draw balanced sentences from it and split them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LANGUAGES = ("zh", "en", "ja", "ar", "ru")
LEXICON_DIR = Path(__file__).parent / "lexicon"

# Below this, the fine-tuning hears a word too seldom to learn it in two minutes.
MIN_CLINIC_WORD_COUNT = 10
_MAX_DRAWS = 400  # draws for one sentence; when all of them are old, the templates count as exhausted

_NUM_CANDIDATES = 16  # candidates compared for one sentence; more means more even counts of words


@dataclass(frozen=True)
class Domain:
    """Templates and slot entries of one text domain, split into words."""

    name: str
    slots: Mapping[str, tuple[tuple[str, ...], ...]]
    """Entries per slot, each a tuple of words."""
    templates: tuple[tuple[str, ...], ...]
    """Words and `{slot}` references in spoken order."""

    def words(self) -> frozenset[str]:
        """Collect every word that a sentence of this domain can hold."""
        entries = {word for slot in self.slots.values() for entry in slot for word in entry}
        literals = {piece for template in self.templates for piece in template if not piece.startswith("{")}
        return frozenset(entries | literals)


@dataclass(frozen=True)
class Lexicon:
    """Everything needed to write and to speak the sentences of one language."""

    language: str
    espeak_voice: str
    """espeak-ng voice without its variant, for example `en-us`."""
    speed_wpm: tuple[int, int]
    """Slowest and fastest speech; espeak-ng's words per minute, which are not comparable between languages."""
    joined: bool
    """Whether transcripts have no spaces between words."""
    particles: frozenset[str]
    """Words spoken as one group with the word before them."""
    glue: frozenset[str]
    """Words that `clinic` may share with `home`."""
    domains: Mapping[str, Domain]

    def content_words(self) -> frozenset[str]:
        """Collect the words of `clinic` that `home` never holds."""
        return self.domains["clinic"].words() - self.glue

    def transcript(self, words: Iterable[str]) -> str:
        """Join words as the manifest writes them."""
        return ("" if self.joined else " ").join(words)

    def spoken(self, words: Iterable[str]) -> str:
        """Join words as espeak-ng should read them: particles are tied to the word before."""
        if not self.particles:
            return self.transcript(words)
        groups: list[str] = []
        for word in words:
            if groups and word in self.particles:
                groups[-1] += word
            else:
                groups.append(word)
        return " ".join(groups)


@dataclass(frozen=True)
class Splits:
    """Sentences of one domain as word tuples; no sentence stands in two splits."""

    train: tuple[tuple[str, ...], ...]
    validation: tuple[tuple[str, ...], ...]
    test: tuple[tuple[str, ...], ...]


def load_lexicon(language: str, lexicon_dir: Path = LEXICON_DIR) -> Lexicon:
    """Load and verify the lexicon of one language.

    Args:
        language: ISO code, one of `LANGUAGES`.
        lexicon_dir: folder with one `<language>.yaml` per language.

    Returns:
        The lexicon with all templates split into words.

    Raises:
        FileNotFoundError: if there is no lexicon for `language`.
        ValueError: if a slot is missing or unused, or `clinic` shares a content word (zh: a character) with `home`.
    """
    path = lexicon_dir / f"{language}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"no lexicon {path}; languages are {', '.join(LANGUAGES)}")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    lexicon = Lexicon(
        language=raw["language"],
        espeak_voice=raw["espeak_voice"],
        speed_wpm=(raw["speed_wpm"][0], raw["speed_wpm"][1]),
        joined=raw["joined"],
        particles=frozenset(raw["particles"]),
        glue=frozenset(raw["glue"]),
        domains={name: _parse_domain(name, raw[name], path) for name in ("home", "clinic")},
    )
    _verify_disjoint(lexicon, path)
    return lexicon


def draw_sentences(domain: Domain, num_sentences: int, rng: random.Random) -> list[tuple[str, ...]]:
    """Draw distinct sentences whose words are used as evenly as the templates allow.

    Of a few random candidates, the one with the rarest words so far is taken. Plain random draws would leave the words
    of small templates with a handful of examples.

    Args:
        domain: templates and slots to draw from.
        num_sentences: how many to draw.
        rng: source of randomness; the same state gives the same sentences.

    Returns:
        Sentences as word tuples in random order.

    Raises:
        ValueError: if the templates cannot give that many distinct sentences.
    """
    drawn: dict[tuple[str, ...], None] = {}
    counts: Counter[str] = Counter()
    while len(drawn) < num_sentences:
        candidates: list[tuple[str, ...]] = []
        for _ in range(_MAX_DRAWS):
            words = _fill(domain, rng)
            if words not in drawn:
                candidates.append(words)
            if len(candidates) == _NUM_CANDIDATES:
                break
        if not candidates:
            raise ValueError(
                f"domain {domain.name} gives about {len(drawn)} distinct sentences, {num_sentences} are wanted; "
                f"add slot entries or templates in {LEXICON_DIR.name}/"
            )
        best = max(candidates, key=lambda words: sum(1 / (1 + counts[word]) for word in words) / len(words))
        drawn[best] = None
        counts.update(set(best))
    sentences = list(drawn)
    rng.shuffle(sentences)
    return sentences


def build_splits(
    lexicon: Lexicon, domain_name: str, *, num_train: int, num_validation: int, num_test: int, seed: int
) -> Splits:
    """Build the three splits of one language and domain.

    Args:
        lexicon: the language.
        domain_name: `home` or `clinic`.
        num_train: sentences in train.
        num_validation: sentences in validation.
        num_test: sentences in test.
        seed: same seed, same sentences.

    Returns:
        Splits without a common sentence.

    Raises:
        ValueError: if the templates are too few, or a content word of `clinic` is too rare in train.
    """
    rng = random.Random(f"{seed}-{lexicon.language}-{domain_name}")
    sentences = draw_sentences(lexicon.domains[domain_name], num_train + num_validation + num_test, rng)
    held_out = num_test + num_validation
    splits = Splits(
        test=tuple(sentences[:num_test]),
        validation=tuple(sentences[num_test:held_out]),
        train=tuple(sentences[held_out:]),
    )
    counts = Counter(word for words in splits.train for word in set(words))
    required = lexicon.content_words() if domain_name == "clinic" else {w for words in splits.test for w in words}
    min_count = MIN_CLINIC_WORD_COUNT if domain_name == "clinic" else 1
    rare = {word: counts[word] for word in sorted(required) if counts[word] < min_count}
    if rare:
        raise ValueError(
            f"{lexicon.language} {domain_name}: words in fewer than {min_count} training sentences: {rare}; "
            "use them in more templates or remove entries from their slot"
        )
    return splits


def _parse_domain(name: str, raw: Any, path: Path) -> Domain:
    """Split slot entries and templates into words."""
    for slot, entries in raw["slots"].items():
        for entry in entries:
            if not isinstance(entry, str):
                raise ValueError(f"{path}: {name}.slots.{slot} holds {entry!r}, which is not text for YAML; quote it")
    slots = {slot: tuple(tuple(entry.split()) for entry in entries) for slot, entries in raw["slots"].items()}
    templates = tuple(tuple(template.split()) for template in raw["templates"])
    referenced = {piece.strip("{}") for template in templates for piece in template if piece.startswith("{")}
    if referenced != set(slots):
        raise ValueError(f"{path}: {name} slots missing or unused: {sorted(referenced ^ set(slots))}")
    return Domain(name=name, slots=slots, templates=templates)


def _verify_disjoint(lexicon: Lexicon, path: Path) -> None:
    """Raise if a content word of `clinic` can occur in `home`."""
    home_words = lexicon.domains["home"].words()
    shared = lexicon.content_words() & home_words
    if shared:
        raise ValueError(f"{path}: clinic shares {sorted(shared)} with home; replace them, or list them in `glue`")
    if lexicon.language == "zh":
        shared_characters = set("".join(lexicon.content_words())) & set("".join(home_words))
        if shared_characters:
            raise ValueError(f"{path}: clinic shares the characters {sorted(shared_characters)} with home")


def _fill(domain: Domain, rng: random.Random) -> tuple[str, ...]:
    """Fill the slots of a random template with random entries."""
    words: list[str] = []
    for piece in rng.choice(domain.templates):
        words.extend(rng.choice(domain.slots[piece.strip("{}")]) if piece.startswith("{") else (piece,))
    return tuple(words)
