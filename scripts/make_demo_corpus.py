"""Make the demo corpus: sentences from data/demo/lexicon/, spoken by espeak-ng.

python scripts/make_demo_corpus.py --check         # lexicons only, writes nothing
python scripts/make_demo_corpus.py --part shipped  # data/demo/corpus/, part of the repository
python scripts/make_demo_corpus.py --part base     # data/demo/build/, to train the base model of the demo
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

if not __package__:  # run by path: scripts/ would hide the package `train` and the library `evaluate`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.progress import track
from rich.table import Table

from data.demo.sentences import LANGUAGES, Lexicon, Splits, build_splits, load_lexicon
from data.demo.synthesis import VARIANTS, ClipJob, compute_phonemes, find_tool, read_espeak_version, render_clip

NUM_CLINIC = {"num_train": 150, "num_validation": 16, "num_test": 40}
NUM_HOME = {"num_train": 2200, "num_validation": 8, "num_test": 40}
NUM_REHEARSAL = {"zh": 220, "en": 350, "ja": 235, "ar": 215, "ru": 355}
"""Sentences of home/train that are shipped, of those that the base model is trained on.

More where more is forgotten: English words are spelt as no rule tells, Chinese ones have a character for each sound.
"""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Clip:
    """One sentence with its place in a manifest."""

    lexicon: Lexicon
    domain: str
    split: str
    index: int
    """Place of the sentence within language, domain and split, from 0."""
    words: tuple[str, ...]

    @property
    def clip_id(self) -> str:
        """Id in the manifest, for example `en-clinic-train-0001`."""
        return f"{self.lexicon.language}-{self.domain}-{self.split}-{self.index + 1:04d}"

    @property
    def variant(self) -> str:
        """Voice variant; the four take turns."""
        return VARIANTS[self.index % len(VARIANTS)]

    def to_job(self, domain_dir: Path, seed: int) -> ClipJob:
        """Describe the synthesis of this clip below `domain_dir`."""
        return ClipJob(
            clip_id=self.clip_id,
            spoken=self.lexicon.spoken(self.words),
            espeak_voice=self.lexicon.espeak_voice,
            variant=self.variant,
            speed_wpm=self.lexicon.speed_wpm,
            path=domain_dir / "audio" / f"{self.clip_id}.ogg",
            seed=seed,
        )

    def to_row(self, duration_s: float) -> dict[str, str | float]:
        """Build the manifest line."""
        return {
            "id": self.clip_id,
            "audio": f"audio/{self.clip_id}.ogg",
            "text": self.lexicon.transcript(self.words),
            "language": self.lexicon.language,
            "duration_s": duration_s,
            "speaker": f"{self.lexicon.language}+{self.variant}",
            "domain": self.domain,
        }


def main() -> None:
    """Parse the command line and make the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    demo_dir = Path(__file__).resolve().parents[1] / "data" / "demo"
    parser.add_argument("--out", type=Path, default=demo_dir, help="gets corpus/ and build/ (default: data/demo)")
    parser.add_argument("--part", choices=("shipped", "base", "all"), default="all", help="what to make (default: all)")
    parser.add_argument("--check", action="store_true", help="check that espeak-ng pronounces every word, make nothing")
    parser.add_argument("--seed", type=int, default=0, help="same seed and espeak-ng version, same corpus (default: 0)")
    options = parser.parse_args()
    console = Console()
    try:
        if options.check:
            problems = [problem for language in LANGUAGES for problem in check_lexicon(load_lexicon(language))]
            for problem in problems:
                console.print(problem, markup=False, style="red")
            console.print(f"{len(problems)} problems in {len(LANGUAGES)} lexicons")
            sys.exit(1 if problems else 0)
        find_tool("opusenc", "opus-tools")
        console.print(f"espeak-ng {read_espeak_version()}, seed {options.seed}")
        clips = build_clips(options.seed)
        if options.part in ("shipped", "all"):
            shipped = [clip for clip in clips if not _is_home_train(clip)] + choose_rehearsal(clips)
            make_part(shipped, options.out / "corpus", options.seed, console)
        if options.part in ("base", "all"):
            base = [clip for clip in clips if clip.domain == "home" and clip.split != "test"]
            make_part(base, options.out / "build", options.seed, console)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        sys.exit(f"make_demo_corpus: {error}")


def build_clips(seed: int) -> list[Clip]:
    """Write all sentences of the corpus; within a split, the languages take turns.

    Args:
        seed: same seed, same sentences.

    Returns:
        Clips of all languages, domains and splits.

    Raises:
        ValueError: if a sentence occurs twice in one language.
    """
    clips: list[Clip] = []
    for language in LANGUAGES:
        lexicon = load_lexicon(language)
        for domain, counts in (("clinic", NUM_CLINIC), ("home", NUM_HOME)):
            splits: Splits = build_splits(lexicon, domain, seed=seed, **counts)
            for split in ("train", "validation", "test"):
                sentences = enumerate(getattr(splits, split))
                clips += [Clip(lexicon, domain, split, index, words) for index, words in sentences]
    seen: dict[tuple[str, str], str] = {}
    for clip in clips:
        first = seen.setdefault((clip.lexicon.language, clip.lexicon.transcript(clip.words)), clip.clip_id)
        if first != clip.clip_id:
            raise ValueError(f"{first} and {clip.clip_id} say the same; change {clip.lexicon.language}.yaml")
    # A stable sort by place puts the languages of one place next to each other, in the order of LANGUAGES.
    return sorted(clips, key=lambda clip: (clip.domain, clip.split, clip.index))


def choose_rehearsal(clips: Sequence[Clip]) -> list[Clip]:
    """Choose the home sentences against forgetting: few, and yet with as many of the domain's words as can be.

    Returns:
        NUM_REHEARSAL clips of each language; the languages take turns as long as they have any.
    """
    chosen: list[list[Clip]] = []
    for language in LANGUAGES:
        picked: list[Clip] = []
        left = [clip for clip in clips if _is_home_train(clip) and clip.lexicon.language == language]
        counts: Counter[str] = Counter()
        for _ in range(NUM_REHEARSAL[language]):
            # The sentence whose words are rarest among those chosen; of several, the first.
            best = max(left, key=lambda clip: (sum(4.0 ** -counts[word] for word in set(clip.words)), -clip.index))
            left.remove(best)
            counts.update(set(best.words))
            picked.append(best)
        chosen.append(sorted(picked, key=lambda clip: clip.index))
    return [clip for turn in itertools.zip_longest(*chosen) for clip in turn if clip is not None]


def make_part(clips: list[Clip], out_dir: Path, seed: int, console: Console) -> None:
    """Synthesise clips and write their manifests.

    Args:
        clips: in the order of the manifests.
        out_dir: gets `<domain>/<split>.jsonl` and `<domain>/audio/`; clips there that no manifest names are removed.
        seed: for voices and noise.
        console: for progress and summary.
    """
    for domain in sorted({clip.domain for clip in clips}):
        (out_dir / domain / "audio").mkdir(parents=True, exist_ok=True)
    jobs = [clip.to_job(out_dir / clip.domain, seed) for clip in clips]
    durations_s = _map_parallel(render_clip, jobs, f"{out_dir.name}: {len(jobs)} clips")
    lines: dict[Path, list[str]] = defaultdict(list)
    for clip, duration_s in zip(clips, durations_s, strict=True):
        manifest_path = out_dir / clip.domain / f"{clip.split}.jsonl"
        lines[manifest_path].append(json.dumps(clip.to_row(duration_s), ensure_ascii=False))
    for manifest_path, manifest_lines in lines.items():
        manifest_path.write_text("\n".join(manifest_lines) + "\n", encoding="utf-8")
    for stale in set(out_dir.glob("*/audio/*.ogg")) - {job.path for job in jobs}:
        stale.unlink()
    _print_summary(clips, durations_s, jobs, out_dir, console)


def check_lexicon(lexicon: Lexicon) -> list[str]:
    """Check that espeak-ng pronounces every word, and no two words alike.

    Args:
        lexicon: one language.

    Returns:
        One line per problem; empty if there is none.
    """
    words = sorted(lexicon.domains["home"].words() | lexicon.domains["clinic"].words())
    jobs = [(word, lexicon.espeak_voice) for word in words]
    problems = []
    by_sound: dict[str, list[str]] = defaultdict(list)
    for word, phonemes in zip(words, _map_parallel(_phonemes_of, jobs, f"check {lexicon.language}"), strict=True):
        by_sound[phonemes].append(word)
        # Every Mandarin character gives one syllable, and every syllable ends in its tone, a group of digits.
        num_syllables = len(re.findall(r"\d+", phonemes))
        if not phonemes or "(" in phonemes or (lexicon.language == "zh" and num_syllables != len(word)):
            problems.append(f"{lexicon.language}: espeak-ng reads {word!r} as {phonemes!r}; use another word")
    for phonemes, alike in by_sound.items():
        if len(alike) > 1:
            problems.append(f"{lexicon.language}: {alike} all sound like {phonemes!r}; keep one of them")
    return problems


def _phonemes_of(job: tuple[str, str]) -> str:
    """Unpack the arguments, which a process pool passes as one."""
    return compute_phonemes(*job)


def _is_home_train(clip: Clip) -> bool:
    """Tell the split that is large in the base part and small in the shipped one."""
    return clip.domain == "home" and clip.split == "train"


def _map_parallel(function: Callable[[Item], Result], items: list[Item], description: str) -> list[Result]:
    """Apply a function on all cores, in order, with a progress bar."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results: Iterable[Result] = pool.map(function, items, chunksize=8)
        return list(track(results, description=description, total=len(items)))


def _print_summary(
    clips: list[Clip], durations_s: list[float], jobs: list[ClipJob], out_dir: Path, console: Console
) -> None:
    """Print clips, minutes and bytes per domain and split."""
    groups: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for clip, duration_s, job in zip(clips, durations_s, jobs, strict=True):
        groups[(clip.domain, clip.split)].append((duration_s, job.path.stat().st_size))
    table = Table("domain", "split", "clips", "minutes", "mean s", "audio MB", title=str(out_dir.name))
    for (domain, split), sizes in groups.items():
        total_s, total_bytes = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
        cells = (f"{len(sizes)}", f"{total_s / 60:.1f}", f"{total_s / len(sizes):.2f}", f"{total_bytes / 1e6:.2f}")
        table.add_row(domain, split, *cells)
    console.print(table)
    total_bytes = sum(path.stat().st_size for path in out_dir.rglob("*") if path.is_file())
    console.print(f"{len(clips)} clips, {sum(durations_s) / 3600:.2f} h, {total_bytes / 1e6:.2f} MB with manifests")


if __name__ == "__main__":
    main()
