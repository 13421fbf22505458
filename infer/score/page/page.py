"""The report as one HTML file: no script, no network, light and dark, for a screen, a phone and paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from transformers.models.whisper.tokenization_whisper import LANGUAGES

import data.preflight.page
from data.preflight.page import format_hours
from data.preflight.report import write_lines
from data.preflight.writing import show_invisible
from data.rows import Row
from infer.compare.tables import absences, lay_out_costs
from infer.score.contest import Duel, Entry, Forgetting, format_p
from infer.score.page.charts import TITLES, draw_error_by, lay_out_bars
from infer.score.page.clips import Player, embed_clips
from infer.score.page.differences import Difference, find_difference
from infer.score.page.summary import answer_all, find_precision
from infer.score.statistics import Comparison
from infer.score.utterances import Utterance

FOLDER = Path(__file__).parent
MAX_WORST = 30  # utterances that are shown
MAX_LISTED = 600  # characters of a text that are shown
SIGNS = {
    "insertion_burst": "a burst of words that nobody said",
    "repetition": "the same again and again",
    "compression": "text that repeats itself",
    "text_on_no_speech": "text on a clip without speech",
    "cut": "cut off at the token limit",
    "empty": "nothing heard though something was said",
}


@dataclass(frozen=True)
class PageSettings:
    """What goes into the page."""

    max_clips: int = 20
    """Clips that can be heard."""
    max_mib: float = 4.0
    """Of all of them together."""


@dataclass(frozen=True)
class WorstUtterance:
    """An utterance with its texts side by side."""

    utterance: Utterance
    difference: Difference
    player: Player
    before: Difference | None
    """What the first artefact heard; None where there is but one."""


def write_page(
    folder: Path,
    entries: Sequence[Entry],
    duels: Sequence[Duel],
    forgetting: Sequence[Forgetting],
    *,
    rows: Mapping[str, Row],
    settings: PageSettings,
) -> Path:
    """Write `report.html` and return its path.

    Whatever comes from the corpus or the model is escaped by the template engine: a text is shown, never run.

    Args:
        folder: of the report.
        entries: what was scored; the page is about the last, beside the others.
        duels: the first against each other one.
        forgetting: of each other one; empty where it was not asked for.
        rows: by id, where the audio of the worst utterances is.
        settings: caps.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["shown"] = _shown
    environment.filters["percent"] = _percent
    environment.filters["points"] = lambda fraction: f"{100 * fraction:+.2f}"
    environment.filters["hours"] = lambda seconds: format_hours(seconds / 3600)
    environment.filters["language"] = lambda code: LANGUAGES.get(code, code).title()
    environment.filters["p"] = format_p
    last = entries[-1]
    precision = find_precision(folder, last)
    text = environment.get_template("report.html").render(
        style=Markup(_style()),
        title=" against ".join(entry.name for entry in reversed(entries)),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        answers=answer_all(entries, duels, forgetting, precision=precision),
        entries=entries,
        last=last,
        bars=_bars(entries),
        changes=[(duel, _changes(duel)) for duel in duels],
        forgetting=forgetting,
        confusion=_confusion(last),
        panels=[(TITLES[field], chart) for field in TITLES if (chart := draw_error_by(entries, field)) is not None],
        signs=SIGNS,
        worst=_worst(entries, rows, settings),
        precision=None
        if precision is None
        else (*lay_out_costs(precision), {**precision, "absences": absences(precision)}),
    )
    path = folder / "report.html"
    write_lines(path, iter([text]))
    return path


def _style() -> str:
    """The style of the report on a corpus, so that both look alike, and what this page needs besides."""
    shared = Path(data.preflight.page.__file__).with_name("page.css")
    return shared.read_text(encoding="utf-8") + (FOLDER / "report.css").read_text(encoding="utf-8")


def _shown(text: str) -> str:
    return show_invisible(text if len(text) <= MAX_LISTED else f"{text[:MAX_LISTED]} …")


def _percent(fraction: float | None, num_decimals: int = 2) -> str:
    return "–" if fraction is None else f"{100 * fraction:.{num_decimals}f}"


def _bars(entries: Sequence[Entry]) -> list[tuple[str | None, Any]]:
    """Return the bars of each set, or of the only one, under its name."""
    names = list(entries[0].sets)
    return [
        (
            name if len(names) > 1 else None,
            lay_out_bars([(i, entry.name, entry.sets[name].languages) for i, entry in enumerate(entries)]),
        )
        for name in names
    ]


def _changes(duel: Duel) -> list[tuple[str, Comparison]]:
    """Return every language of every set, the mean of each set, and the mean of all, with what changed."""
    rows: list[tuple[str, Comparison]] = []
    for name, paired in duel.sets.items():
        prefix = f"{name}/" if len(duel.sets) > 1 else ""
        rows += [(f"{prefix}{code}", found) for code, found in paired.languages.items()]
        if len(duel.sets) > 1 and paired.overall is not None:
            rows.append((f"{name}, mean", paired.overall))
    if duel.overall.overall is not None:
        rows.append(("all, mean", duel.overall.overall))
    return rows


def _confusion(entry: Entry) -> dict[str, Any] | None:
    """Return the languages spoken and detected, with the share of each cell in its row."""
    counts = entry.score.confusion
    if not counts:
        return None
    detected = sorted(
        {code for found in counts.values() for code in found}, key=lambda code: (code not in counts, code)
    )
    return {
        "detected": detected,
        "rows": [
            (
                spoken,
                [(found.get(code, 0), found.get(code, 0) / sum(found.values()), code == spoken) for code in detected],
            )
            for spoken, found in counts.items()
        ],
    }


def _worst(entries: Sequence[Entry], rows: Mapping[str, Row], settings: PageSettings) -> list[WorstUtterance]:
    by_id = {u.prediction.id: u for u in entries[-1].score.utterances}
    first = {u.prediction.id: u for u in entries[0].score.utterances} if len(entries) > 1 else {}
    ids = [row["id"] for row in entries[-1].score.worst[:MAX_WORST]]
    players = embed_clips(
        [rows.get(id_) for id_ in ids], max_clips=settings.max_clips, max_bytes=int(settings.max_mib * 2**20)
    )
    return [
        WorstUtterance(
            utterance=by_id[id_],
            difference=_difference(by_id[id_]),
            player=player,
            before=_difference(first[id_]) if id_ in first else None,
        )
        for id_, player in zip(ids, players, strict=True)
    ]


def _difference(utterance: Utterance) -> Difference:
    return find_difference(utterance.reference_norm, utterance.hypothesis_norm, unit=utterance.unit)
