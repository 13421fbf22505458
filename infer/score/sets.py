"""Several held-out sets by name: read whole, none twice, each scored by itself and all of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.rows import Row
from data.sources import Source
from infer.score.held_out import read_held_out


@dataclass(frozen=True)
class HeldOutSet:
    """A held-out set under a short name."""

    name: str
    rows: tuple[Row, ...]


def read_sets(sources: Sequence[Source]) -> tuple[HeldOutSet, ...]:
    """Read held-out sets whole.

    Raises:
        ValueError: if a line cannot be used, a set has no clip, or an id stands in two sets.
        FileNotFoundError: if a source does not exist.
    """
    rows = iter(read_held_out(sources))  # all at once: an id that stands in two sets is found
    counts = [len(read_held_out([source])) for source in sources]
    names = name_sets(sources)
    for name, count in zip(names, counts, strict=True):
        if not count:
            raise ValueError(f"the held-out set {name} has no clip; take it out of dataset.test")
    return tuple(
        HeldOutSet(name, tuple(next(rows) for _ in range(count))) for name, count in zip(names, counts, strict=True)
    )


def verify_targets(targets: Collection[str], sets: Sequence[HeldOutSet]) -> None:
    """Stop before anything is decoded where a target is no language, set, or language of a set.

    Raises:
        ValueError: with the names that there are.
    """
    languages = {f"{held_out.name}/{row.language}" for held_out in sets for row in held_out.rows}
    known = {*languages, *(name.rpartition("/")[2] for name in languages), *(held_out.name for held_out in sets)}
    for target in sorted(targets):
        if target not in known:
            raise ValueError(
                f"retention.targets={target} is neither a language nor a set; known are {', '.join(sorted(known))}"
            )


def name_sets(sources: Sequence[Source]) -> list[str]:
    """Return a short name for each set: what its path says and no other's does.

    `clinic/test.jsonl` and `home/test.jsonl` are `clinic` and `home`; `a.jsonl` and `b.jsonl` are `a` and `b`.
    """
    paths = [Path(source.path) for source in sources]
    stems = [
        f"{path.name}-{source.config or source.split}" if source.format == "hub" else path.stem
        for path, source in zip(paths, sources, strict=True)
    ]
    folders = [path.absolute().parent.name for path in paths]
    both = [f"{folder}-{stem}" for folder, stem in zip(folders, stems, strict=True)]
    for candidates in (stems, folders, both):
        if len(set(candidates)) == len(candidates) and all(candidates):
            return candidates
    return number_names(both)


def name_artefacts(paths: Sequence[str]) -> list[str]:
    """Return a short name for each artefact; an `export` folder goes by the name of its run."""
    names = []
    for path in paths:
        folder = Path(path).expanduser().absolute()
        is_export = folder.name.startswith("export")
        parts = [folder.parent.name] if is_export else []
        names.append("-".join([*parts, *([] if folder.name == "export" else [folder.name])]))
    return number_names(names)


def number_names(names: Sequence[str]) -> list[str]:
    """Return the names with a number behind those that come again."""
    counts: Counter[str] = Counter()
    numbered = []
    for name in names:
        counts[name] += 1
        numbered.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return numbered
