"""Lines that a training would leave out, and those that keep it from starting."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.lengths import find_lost_s
from data.preflight.columns import CorpusScan, SplitScan, reason_of
from data.preflight.findings import NUM_EXAMPLES, Example, Finding, where
from data.reasons import Reason, Rejected
from data.rows import LostClip, RowTable

_AGAIN = "Fetch the file again, or convert it: ffmpeg -i IN -ar 16000 -ac 1 OUT.flac"
FIXES: dict[Reason, str] = {
    Reason.AUDIO_MISSING: "Correct the path: it is relative to the folder of the manifest.",
    Reason.AUDIO_EMPTY: "Fetch the file again, or take the line out.",
    Reason.AUDIO_TRUNCATED: "Fetch the file again; or correct duration_s, where the text fits what is there.",
    Reason.AUDIO_CORRUPT: _AGAIN,
    Reason.AUDIO_NOT_FINITE: _AGAIN,
    Reason.AUDIO_SAMPLING_RATE: _AGAIN,
    Reason.AUDIO_CHANNELS: _AGAIN,
    Reason.AUDIO_TOO_LONG: "Cut the clip at pauses, each part with its own text; a training window has 30 s.",
    Reason.AUDIO_TOO_SHORT: "Take the line out; there is hardly a sound in it.",
    Reason.AUDIO_DURATION: "Correct duration_s, or leave it away.",
    Reason.TEXT_EMPTY: 'Write the text, or mark the line "no_speech": true where nobody speaks.',
    Reason.TEXT_TOO_LONG: "Cut the clip, so that its text is shorter; labels are never cut in silence.",
    Reason.TEXT_SPECIAL_TOKEN: "Take tokens such as <|en|> out of the text.",
    Reason.TEXT_LANGUAGE: "Write one of Whisper's codes, such as en or de, into the field language.",
    Reason.LINE_DUPLICATE_ID: "Give each line an id of its own, or leave the field away.",
    Reason.LINE_URL: "Download the file, and name it by its path.",
}
DEFAULT_FIX = "Mend the line, or take it out."
NUM_PEEKED = 1000  # lines that are read again, to see whether they have a text at all


def find_unusable(scan: CorpusScan, *, on_bad: str, max_bad_share: float) -> Iterator[Finding]:
    """Yield what keeps a training or an evaluation from starting, then each reason why lines cannot be used.

    Args:
        scan: the corpus.
        on_bad: what a training does with bad lines; see `data.ingest.admit`.
        max_bad_share: largest share of bad lines or hours that a training tolerates in a source, 0 to 1.
    """
    by_code: dict[str, list[tuple[SplitScan, Rejected]]] = defaultdict(list)
    for split in scan.splits:
        faults = list(split.faults())
        for record in faults:
            by_code[record.code].append((split, record))
        if not split.usable.any():
            yield _nothing_usable(split, faults)
        elif faults and (why := _refusal(split, faults, on_bad, max_bad_share)):
            yield _refused(split, faults, why)
    total = sum(split.split.num_lines for split in scan.splits)
    for code, found in sorted(by_code.items(), key=lambda item: -len(item[1])):
        yield _unusable(code, found, total)


def _refusal(split: SplitScan, faults: Sequence[Rejected], on_bad: str, max_bad_share: float) -> str:
    """Say why a split is refused as it is, or nothing."""
    if split.name != "train":
        return "a held-out set must be whole, or a missing clip would improve its score"
    if on_bad == "strict":
        return "dataset.on_bad=strict stops at the first bad line"
    if on_bad == "report":
        return ""
    rows = split.split.rows
    tables = rows.table_of(np.arange(len(rows)))
    for place, table in enumerate(rows.tables):
        usable = split.usable[tables == place]
        num_lines = len(table) + len(table.rejected)
        by_lines = 1 - float(usable.sum()) / num_lines
        by_time = 0.0 if by_lines > max_bad_share else _share_of_hours(split, tables == place, table)
        for share, kind in ((by_lines, "lines"), (by_time, "hours")):
            if share > max_bad_share:
                return (
                    f"{100 * share:.1f} % of the {kind} of {table.path.name} are bad, "
                    f"more than dataset.max_bad_share={max_bad_share:g}"
                )
    return ""


def _share_of_hours(split: SplitScan, is_here: npt.NDArray[np.bool_], table: RowTable) -> float:
    """Return the share of a source's seconds that is lost: as stated, as measured, or as a look at the file finds."""
    usable, stated_s = split.usable[is_here], table.durations_s
    known_s = np.where(np.isnan(stated_s), split.figures["duration_s"][is_here], stated_s)
    unknown = [table[int(i)] for i in np.flatnonzero(~usable & (known_s == 0.0))]
    lost_s = float(known_s[~usable].sum()) + find_lost_s(
        [*table.lost, *(LostClip(row.line, row.audio, row.offset_s, None) for row in unknown)]
    )
    return lost_s / max(1e-9, lost_s + float(known_s[usable].sum()))


def _refused(split: SplitScan, faults: Sequence[Rejected], why: str) -> Finding:
    counts = Counter(record.code for record in faults).most_common()
    reasons = ", ".join(f"{count:,} × {reason_of(code).message} ({code})" for code, count in counts[:4])
    user = "evaluation" if split.name == "test" else "training"
    fix = f"Mend these lines, or take them out: {reasons}{' and others' if len(counts) > 4 else ''}."
    if split.name == "train":
        share = math.ceil(1000 * len(faults) / split.split.num_lines) / 1000
        fix += f" To train without them, type dataset.on_bad=quarantine dataset.max_bad_share={share:g}"
    return Finding(
        name=f"refused_{split.name}",
        code=counts[0][0],
        level="error",
        title=f"Lines for which {user} refuses {split.name} as it is: {len(faults):,}",
        why=f"{why[0].upper()}{why[1:]}.",
        fix=fix,
        count=len(faults),
        total=split.split.num_lines,
        examples=_examples(faults),
    )


def _unusable(code: str, found: Sequence[tuple[SplitScan, Rejected]], total: int) -> Finding:
    reason = reason_of(code)
    names = [name for name in ("train", "validation", "test") if any(split.name == name for split, _ in found)]
    records = [record for _, record in found]
    hint = _found_elsewhere(records[0]) if reason is Reason.AUDIO_MISSING else ""
    return Finding(
        name=f"unusable_{code}",
        code=code,
        level="warning",
        title=f"Lines of {' and '.join(names)} left out, {reason.message}: {len(found):,}",
        why="A training leaves such lines out, and lists them in quarantine.jsonl; a held-out set has to be whole.",
        fix=hint or FIXES.get(reason, DEFAULT_FIX),
        count=len(found),
        total=total,
        examples=_examples(records),
    )


def _examples(records: Sequence[Rejected]) -> tuple[Example, ...]:
    return tuple(Example(where(record), _text_of(record), record.message) for record in records[:NUM_EXAMPLES])


def _nothing_usable(split: SplitScan, faults: Sequence[Rejected]) -> Finding:
    num_lines = split.split.num_lines
    title = f"{split.name} has no line that can be used, of {num_lines:,}"
    code = Counter(record.code for record in faults).most_common(1)[0][0]
    why, fix = "There is nothing to learn from, or to score.", "See the reasons below; the first lines show each."
    peeked = [_fields_of(record) for record in faults[:NUM_PEEKED]]
    if peeked and all(not str(fields.get("text") or "").strip() for fields in peeked if fields is not None):
        title = f"{split.name} has no transcripts: the text of all {num_lines:,} lines is empty"
        why = "Whisper learns from speech with its text. Noises and room responses have none."
        fix = (
            "Use such a folder for augmentation instead of as a data set; "
            'or, to teach that nobody speaks, give each line a language and "no_speech": true.'
        )
    return Finding(f"empty_{split.name}", code, "error", title, why, fix, len(faults), num_lines, _examples(faults))


def _fields_of(record: Rejected) -> dict[str, object] | None:
    """Read a refused line of a plain manifest again; None where it is no object or lies elsewhere."""
    if record.byte_offset is None or record.manifest.endswith(".gz"):
        return None
    try:
        with Path(record.manifest).open("rb") as file:
            file.seek(record.byte_offset)
            fields = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def _text_of(record: Rejected) -> str:
    return str((_fields_of(record) or {}).get("text") or "")


def _found_elsewhere(record: Rejected) -> str:
    """Look for a missing file nearby, and say where it is."""
    folder = Path(record.manifest).parent
    parts = Path(record.audio).parts
    bases = (folder, folder.parent, folder / "audio", folder / "clips")
    for start, base in itertools.product(range(len(parts)), bases):
        candidate = base.joinpath(*parts[start:])
        try:
            if candidate.is_file():
                return f"{candidate} exists; paths are relative to the folder of the manifest, {folder}."
        except OSError:
            return ""
    return ""
