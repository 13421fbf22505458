"""The four answers at the top of a report: is it better, for whom is it worse, is FP16 safe, how fast is it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.score.contest import Duel, Entry, Forgetting, format_p, losers
from infer.score.evaluation import Score

LEVELS = {"better": "good", "worse": "bad", "no difference shown": "look"}
SAFETY = {"safe": "good", "unsafe": "bad", "undecided": "look", "unknown": "plain"}
MAX_NAMED = 6  # groups in a sentence


@dataclass(frozen=True)
class Answer:
    """One question of the reader, answered."""

    question: str
    level: str
    """`good`, `look`, `bad` or `plain`."""
    headline: str
    detail: str


def answer_all(
    entries: Sequence[Entry],
    duels: Sequence[Duel],
    forgetting: Sequence[Forgetting],
    *,
    precision: Mapping[str, Any] | None,
) -> list[Answer]:
    """Return the four answers, about the last artefact."""
    duel = duels[-1] if duels else None
    lost = forgetting[-1] if forgetting else None
    return [
        _is_it_better(entries[-1], duel),
        _for_whom_is_it_worse(entries[-1].score, duel, lost),
        _is_half_safe(entries[-1], precision),
        _how_fast(entries[-1], precision),
    ]


def find_precision(folder: Path, entry: Entry) -> dict[str, Any] | None:
    """Return what `scripts/compare_precision.py` found for the same weights, where it writes by itself, or None."""
    artefact = Path(str(entry.artefact["path"]))
    places = (
        folder,
        folder.parent,
        artefact.absolute().parent / "precision",
        Path("runs") / f"precision-{artefact.name}",
    )
    for place in places:
        file = place / "precision.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if found["artefact"]["sha256"] == entry.artefact["sha256"]:
                return found
    return None


def _is_it_better(entry: Entry, duel: Duel | None) -> Answer:
    question = "Is it better?"
    if duel is None or duel.overall.overall is None:
        rate, ends = entry.score.overall["headline"], entry.score.overall["intervals"]["headline"]
        unit = "BLEU" if entry.score.overall.get("higher_is_better") else "% error"
        shown = "no rate" if rate is None else f"{100 * rate:.2f} {unit}"
        detail = "" if ends is None else f"95 % interval {100 * ends[0]:.2f} to {100 * ends[1]:.2f} %. "
        return Answer(question, "plain", shown, f"{detail}Nothing to compare with: type artefact=[BEFORE,AFTER].")
    found = duel.overall.overall
    words = {"better": "Yes", "worse": "No, worse", "no difference shown": "Not shown"}[found.verdict]
    return Answer(
        question,
        LEVELS[found.verdict],
        f"{words}: {100 * found.before:.2f} → {100 * found.after:.2f} %",
        f"{100 * found.difference:+.2f} points ({100 * found.interval.low:+.2f} to {100 * found.interval.high:+.2f}), "
        f"{format_p(found.p)}, {duel.after} against {duel.before} on the same "
        f"{entry.score.overall['utterances']:,} clips.",
    )


def _for_whom_is_it_worse(score: Score, duel: Duel | None, lost: Forgetting | None) -> Answer:
    question = "For whom is it worse?"
    if duel is None:
        rates = {c: f["headline"] for c, f in score.languages.items() if f["headline"] is not None}
        if not rates:
            return Answer(question, "plain", "no rate", "There is no reference to divide by.")
        ranked = sorted(rates, key=lambda code: rates[code], reverse=bool(score.overall.get("higher_is_better")))
        worst = ranked[-1]
        spread = f"Best: {ranked[0]} with {100 * rates[ranked[0]]:.2f} %."
        return Answer(
            question, "plain", f"{worst}: {100 * rates[worst]:.2f} %", f"The language with most errors. {spread}"
        )
    worse = losers(duel)
    remark = f" Forgetting: {lost.figure_sentence}." if lost is not None else ""
    if worse:
        more = f" and {len(worse) - MAX_NAMED} more" if len(worse) > MAX_NAMED else ""
        names = ", ".join(name.split(" ", 1)[0] for name in worse[:MAX_NAMED])
        return Answer(question, "bad", f"{names}{more}", f"{'; '.join(worse[:MAX_NAMED])}.{remark}")
    level = "bad" if lost is not None and lost.is_too_much else "good"
    return Answer(question, level, "Nobody that shows", f"No language got worse by more than chance.{remark}")


def _is_half_safe(entry: Entry, precision: Mapping[str, Any] | None) -> Answer:
    question = "Is FP16 safe?"
    if precision is None:
        command = f"python scripts/compare_precision.py artefact={entry.artefact['path']} dataset.test=..."
        return Answer(question, "plain", "Not measured", f"Type {command}, then this again.")
    verdict = precision["verdict"]
    words = {"safe": "Yes", "unsafe": "No", "undecided": "Not shown", "unknown": "Not measured"}[verdict["level"]]
    detail = f"{verdict['sentence']} Measured on {precision['utterances']:,} clips, {precision['device']['name']}."
    return Answer(question, SAFETY[verdict["level"]], words, detail)


def _how_fast(entry: Entry, precision: Mapping[str, Any] | None) -> Answer:
    rtfx = entry.score.overall["rtfx"]
    shown = "not measured" if rtfx is None else f"{rtfx:.1f} × real time"
    artefact = entry.artefact
    where = f"In batches on {artefact['device']}, from samples to text, computing in {artefact['compute']}."
    if precision is not None:
        measured = [row for row in precision["rows"] if "absent" not in row]
        quickest = min(measured, key=lambda row: row["latency_p50_s"])
        where += (
            f" One clip alone: {1000 * quickest['latency_p50_s']:.0f} ms at best ({quickest['title']}, "
            f"p95 {1000 * quickest['latency_p95_s']:.0f} ms)."
        )
    return Answer("How fast is it?", "plain", shown, where)
