"""Clips that sound odd and texts that read odd: training takes them, and yet somebody should look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.audio import SAMPLING_RATE
from data.preflight.clip import SILENCE_DBFS
from data.preflight.columns import UNKNOWN, CorpusScan, SplitScan
from data.preflight.findings import Finding, Level, build_finding, num_usable, places_where
from data.preflight.writing import TextFault, main_script, scripts_of, show_invisible

MAX_CLIPPED_SHARE = 0.01
MAX_SILENCE_SHARE = 0.75
MAX_DC = 0.02  # of full scale
MAX_CHARACTERS_PER_S, MIN_CHARACTERS_PER_S = 25.0, 0.5
MIN_CHARACTERS = 10  # of a text that can be called too fast: "three" in 0.19 s is 26 a second, and a short word

Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Check:
    """A condition on rows, and what to say of those that meet it."""

    name: str
    code: str
    level: Level
    title: str
    why: str
    fix: str
    select: Callable[[SplitScan], Rows]
    detail: Callable[[SplitScan, int], str]


def characters_per_s(scan: SplitScan) -> npt.NDArray[np.float64]:
    """Return characters of text a second of clip, (num_rows,); 0 where a clip cannot be used."""
    duration_s = np.where(scan.usable, scan.figures["duration_s"], np.inf)
    rates: npt.NDArray[np.float64] = scan.columns["num_characters"] / np.maximum(duration_s, 0.01)
    return rates


def _spoken(scan: SplitScan) -> Rows:
    spoken: Rows = scan.usable & ~scan.columns["no_speech"]
    return spoken


def _is_silent(scan: SplitScan) -> Rows:
    silent: Rows = _spoken(scan) & (scan.figures["rms_dbfs"] < SILENCE_DBFS) & ~scan.figures["is_anti_phase"]
    return silent


def _is_heard(scan: SplitScan) -> Rows:
    """Return which rows are neither silent nor silenced by their own channels; those have a finding of their own."""
    heard: Rows = scan.usable & (scan.figures["rms_dbfs"] >= SILENCE_DBFS) & ~scan.figures["is_anti_phase"]
    return heard


def _is_rate_odd(scan: SplitScan) -> Rows:
    rates = characters_per_s(scan)
    is_fast = (rates > MAX_CHARACTERS_PER_S) & (scan.columns["num_characters"] >= MIN_CHARACTERS)
    odd: Rows = _spoken(scan) & (is_fast | (rates < MIN_CHARACTERS_PER_S))
    return odd


def _has(fault: TextFault) -> Callable[[SplitScan], Rows]:
    return lambda scan: scan.usable & ((scan.columns["text_faults"] & int(fault)) != 0)


def _above(name: str, limit: float) -> Callable[[SplitScan], Rows]:
    return lambda scan: _is_heard(scan) & (np.abs(scan.figures[name]) > limit)


def _script_detail(scan: SplitScan, index: int) -> str:
    row = scan.split.rows[index]
    expected = " or ".join(sorted(scripts_of(row.language))).title()
    return f"{main_script(row.text).title()} letters; {row.language} is written in {expected}"


CHECKS: tuple[Check, ...] = (
    Check(
        "silent",
        "A06",
        "warning",
        "Silent clips that have a text",
        f"They lie under {SILENCE_DBFS:g} dBFS. A model learns from such clips to invent words where nobody speaks.",
        'Take them out, or mark them "no_speech": true with an empty text.',
        _is_silent,
        lambda scan, index: f"{scan.figures['rms_dbfs'][index]:.0f} dBFS",
    ),
    Check(
        "wrong_script",
        "T09",
        "warning",
        "Texts in a script that their language is not written in",
        "The language is wrong, or the text is romanised; the model learns one language in the letters of another.",
        "Correct the field language, or the text.",
        _has(TextFault.WRONG_SCRIPT),
        _script_detail,
    ),
    Check(
        "mojibake",
        "T02",
        "warning",
        "Texts that were read in the wrong encoding",
        "Letters such as Ã and Ð stand where one accented or Cyrillic letter was; they would be learnt as spelling.",
        "Read the source of these texts as UTF-8 again.",
        _has(TextFault.MOJIBAKE),
        lambda scan, index: "two letters where there was one",
    ),
    Check(
        "mixed_word",
        "T09",
        "warning",
        "Texts with a word of mixed alphabets",
        "A Latin letter stands for a Cyrillic or Greek one of the same shape. It looks right and becomes other tokens.",
        "Replace the letters; most come from a keyboard left in the other layout.",
        _has(TextFault.MIXED_WORD),
        lambda scan, index: "Latin letters inside a word of another alphabet",
    ),
    Check(
        "speech_rate",
        "T06",
        "warning",
        "Texts that do not fit the length of their clip",
        f"More than {MAX_CHARACTERS_PER_S:g} or fewer than {MIN_CHARACTERS_PER_S:g} characters a second: "
        "the clip is cut off, or the text belongs to another.",
        "Listen to the examples; mend the cut or the text.",
        _is_rate_odd,
        lambda scan, index: (
            f"{characters_per_s(scan)[index]:.1f} characters a second in {scan.figures['duration_s'][index]:.2f} s"
        ),
    ),
    Check(
        "segments",
        "T11",
        "warning",
        "Recordings with segments that no window of 30 s can take",
        "They are too long, have too much text or no length, or lie outside the recording. Training leaves them out.",
        "Correct the times of the segments; quarantine.jsonl of a run names each.",
        lambda scan: scan.usable & scan.columns["loses_segments"],
        lambda scan, index: f"{len(scan.split.rows[index].segments)} segments",
    ),
    Check(
        "clipped",
        "A07",
        "warning",
        "Overdriven clips",
        f"More than {100 * MAX_CLIPPED_SHARE:g} % of their samples are at full scale; the recording was too loud.",
        "Record or convert again with less gain; a few such clips do no harm.",
        _above("clipped_share", MAX_CLIPPED_SHARE),
        lambda scan, index: f"{100 * scan.figures['clipped_share'][index]:.1f} % at full scale",
    ),
    Check(
        "anti_phase",
        "A09",
        "warning",
        "Stereo clips that cancel when mixed to mono",
        "Left and right are opposite in sign; their mean loses the voice.",
        "Take one channel: ffmpeg -i IN -af pan=mono|c0=c0 OUT.flac",
        lambda scan: scan.usable & scan.figures["is_anti_phase"],
        lambda scan, index: "left and right are opposite",
    ),
    Check(
        "pauses",
        "A06",
        "note",
        f"Clips that are more than {100 * MAX_SILENCE_SHARE:g} % pause",
        "Every second is paid for in training, speech or not.",
        "Cut the silence at both ends, if there is much of it.",
        _above("silence_share", MAX_SILENCE_SHARE),
        lambda scan, index: f"{100 * scan.figures['silence_share'][index]:.0f} % pause",
    ),
    Check(
        "offset",
        "A06",
        "note",
        "Clips with a constant offset",
        f"The mean of the samples lies more than {100 * MAX_DC:g} % of full scale off zero. Whisper hardly minds.",
        "Nothing; or a high-pass: ffmpeg -i IN -af highpass=f=20 OUT.flac",
        _above("dc", MAX_DC),
        lambda scan, index: f"{100 * scan.figures['dc'][index]:.1f} % of full scale",
    ),
    Check(
        "narrow_band",
        "A08",
        "note",
        "Clips recorded below 16 kHz",
        "They are resampled to 16 kHz, and have nothing in the upper bands, as telephone speech.",
        "Nothing, if the model is meant for telephone speech as well.",
        lambda scan: (
            scan.usable & (scan.figures["sampling_rate"] > 0) & (scan.figures["sampling_rate"] < SAMPLING_RATE)
        ),
        lambda scan, index: f"{scan.figures['sampling_rate'][index]} Hz",
    ),
    Check(
        "misnamed",
        "A17",
        "warning",
        "Files whose name promises another format",
        "They are read by their content, here and in training. Other programs go by the name, and fail.",
        "Rename them, or convert them: ffmpeg -i IN OUT.flac",
        lambda scan: scan.usable & scan.figures["is_misnamed"],
        lambda scan, index: str(scan.split.rows[index].audio),
    ),
    Check(
        "invisible",
        "T02",
        "note",
        "Texts with characters that nobody sees",
        "They become label tokens of their own.",
        "Take them out, unless the spelling asks for them.",
        _has(TextFault.INVISIBLE),
        lambda scan, index: show_invisible(scan.split.rows[index].text),
    ),
    Check(
        "not_portable",
        "M06",
        "note",
        "Clips outside the folder of their manifest",
        "Their paths are absolute, or lead upwards: the corpus cannot be moved or shared as one folder.",
        "Nothing on this machine; for another, write paths relative to the manifest.",
        lambda scan: scan.columns["is_outside"],
        lambda scan, index: str(scan.split.rows[index].audio),
    ),
)


def find_oddities(scan: CorpusScan) -> Iterator[Finding]:
    """Yield what is odd in clips and texts, and what the corpus does not say."""
    total = num_usable(scan.splits)
    for check in CHECKS:
        if places := places_where(scan.splits, check.select):
            yield build_finding(
                check.name,
                code=check.code,
                level=check.level,
                title=check.title,
                why=check.why,
                fix=check.fix,
                places=places,
                total=total,
                detail=check.detail,
            )
    yield from _unheard_languages(scan)
    without_speaker = places_where(scan.splits, lambda split: split.usable & (split.columns["speaker"] == UNKNOWN))
    if len(scan.splits) > 1 and without_speaker:
        yield build_finding(
            "no_speaker",
            code="M04",
            level="note",
            title="Clips without the name of a speaker",
            why="Whether a voice is in training and in a held-out set cannot be told for them.",
            fix="Give the field speaker, if it is known.",
            places=without_speaker,
            total=total,
        )


def _unheard_languages(scan: CorpusScan) -> Iterator[Finding]:
    train = next((split for split in scan.splits if split.name == "train"), None)
    if train is None:
        return
    known = np.unique(train.columns["language"][train.usable])
    held_out = [split for split in scan.splits if split is not train]
    places = places_where(held_out, lambda split: split.usable & ~np.isin(split.columns["language"], known))
    if places:
        yield build_finding(
            "unheard_language",
            code="T09",
            level="warning",
            title="Held-out clips in a language that train has none of",
            why="Their score tells what the model knew before, or what training made it forget.",
            fix="Nothing, if that is meant; else correct the field language.",
            places=places,
            total=num_usable(held_out),
            detail=lambda split, index: f"language {split.split.rows[index].language}",
        )
