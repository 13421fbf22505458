"""Write a score to disk and show it as tables."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from infer.score.evaluation import Score
from infer.score.normalise import describe_scoring
from infer.score.utterances import Prediction, Utterance, count_utterance

_ABSENT = "–"
_HEADINGS = {"wer": "WER", "cer": "CER", "bleu": "BLEU", "chrf": "chrF"}
_COMPARISON_CAPTION = "change in points, {} is better; found: language detected; all: mean over languages"


def write_report(
    report_dir: Path,
    score: Score,
    predictions: Sequence[Prediction],
    *,
    artefact: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Write `predictions.jsonl` and `report.json` into a folder and return the path of `report.json`.

    Both are composed before either is written, each replaces its predecessor in one move, and the report comes last:
    a reader never sees half a file, and a new `report.json` always has its predictions beside it.

    Args:
        report_dir: made if missing.
        score: from `score_predictions` on the same predictions.
        predictions: every utterance, written one a line with both texts raw and normalised, its edits and signs.
        artefact: what was scored: name, hashes, precision.
        settings: how it was decoded; what it was scored with is added here: `normaliser_version`, `profiles`,
            `packages`.

    Raises:
        ValueError: if `artefact` or `settings` holds what JSON cannot, such as NaN.
        RuntimeError: if the folder cannot be made or written.
    """
    report = {
        "artefact": dict(artefact),
        "overall": score.overall,
        "languages": score.languages,
        "confusion": score.confusion,
        "error_by": score.error_by,
        "worst": score.worst,
        "settings": {**settings, **describe_scoring(p.text_language for p in predictions)},
    }
    utterances = score.utterances or tuple(map(count_utterance, predictions))
    lines = "".join(_json(_utterance_row(utterance)) + "\n" for utterance in utterances)
    report_path = report_dir / "report.json"
    try:
        document = _json(report, indent=2) + "\n"
    except (TypeError, ValueError) as e:
        raise ValueError(f"the report cannot be written as JSON: {e}; artefact and settings take finite values") from e
    try:
        report_dir.mkdir(parents=True, exist_ok=True)
        _write_atomically(report_dir / "predictions.jsonl", lines)
        _write_atomically(report_path, document)
    except OSError as e:
        reason = e.strerror or str(e)
        raise RuntimeError(
            f"the report cannot be written to {report_dir}: {reason}; give another folder, report.dir=PATH"
        ) from e
    return report_path


def render_table(score: Score, *, title: str = "Score of the artefact") -> Table:
    """Lay out one row per language and one overall, rates in per cent.

    Each language's headline has a star, and the interval is of that; the mean of the headlines stands in the caption.
    """
    names = ("bleu", "chrf") if "bleu" in score.overall else ("wer", "cer")
    table = Table(title=Text(title), caption=Text(_caption(score.overall)))
    table.add_column("language")
    headings = [f"{_HEADINGS[name]} %" for name in names]
    for heading in (*headings, "95 % interval", "language found %", "utterances", "audio"):
        table.add_column(heading, justify="right")
    for language, figures in score.languages.items():
        rates = [_rate_cell(figures[name], is_headline=figures["headline_metric"] == name) for name in names]
        table.add_row(Text(language), *rates, _interval_cell(figures), *_other_cells(figures))
    table.add_section()
    rates = [_rate_cell(score.overall[name], is_headline=False) for name in names]
    table.add_row(Text("all"), *rates, Text(), *_other_cells(score.overall))
    return table


def render_before_after(
    before: Score | Mapping[str, Any], after: Score | Mapping[str, Any], *, title: str = "Before and after"
) -> Table:
    """Lay out the headline rates of two scores side by side, per language, with the change in percentage points.

    Args:
        before: a score, or a mapping with `overall` and `languages` such as a `report.json` read back.
        after: the same; a language that only one of the two has is shown with a dash.
        title: above the table.
    """
    overall_before, languages_before = _parts(before)
    overall_after, languages_after = _parts(after)
    better = "more" if overall_after.get("higher_is_better") else "less"
    table = Table(title=Text(title), caption=Text(_COMPARISON_CAPTION.format(better)))
    table.add_column("language")
    table.add_column("rate")
    for heading in ("before %", "after %", "change", "found before %", "found after %"):
        table.add_column(heading, justify="right")
    for language in sorted({*languages_before, *languages_after}):
        old, new = languages_before.get(language, {}), languages_after.get(language, {})
        metric = str(new.get("headline_metric") or old.get("headline_metric")).upper()
        table.add_row(Text(language), Text(metric), *_change_cells(old, new))
    table.add_section()
    table.add_row(Text("all"), Text("headline"), *_change_cells(overall_before, overall_after))
    return table


def _utterance_row(utterance: Utterance) -> dict[str, Any]:
    """One line of `predictions.jsonl`, keys in the order of reading."""
    prediction = utterance.prediction
    return {
        "id": prediction.id,
        "language": prediction.language,
        "detected_language": prediction.detected_language,
        "reference": prediction.reference,
        "hypothesis": prediction.hypothesis,
        "reference_norm": utterance.reference_norm,
        "hypothesis_norm": utterance.hypothesis_norm,
        "duration_s": prediction.duration_s,
        "task": prediction.task,
        "speaker": prediction.speaker,
        "test_set": prediction.test_set,
        "no_speech": prediction.no_speech,
        "loudness_dbfs": prediction.loudness_dbfs,
        "snr_db": prediction.snr_db,
        "is_cut": prediction.is_cut,
        "metric": utterance.metric,
        "edits": utterance.num_edits,
        "units": utterance.counts.num_units,
        "signs": utterance.signs,
    }


def read_predictions(path: Path) -> list[Prediction]:
    """Read a `predictions.jsonl` back, also one of an older version, so that it can be scored or compared again.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no prediction.
    """
    names = {field.name for field in dataclasses.fields(Prediction)}
    predictions = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                predictions.append(Prediction(**{name: row[name] for name in names & row.keys()}))
            except (ValueError, TypeError, AttributeError) as e:
                raise ValueError(f"{path}:{number} is no prediction: {e}; write the report again") from e
    return predictions


def _json(value: Any, *, indent: int | None = None) -> str:
    """Serialise without escapes and without NaN; paths and dataclasses are taken as settings often hold them."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> Any:
    """Turn a path into its string and a dataclass into a dict."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _write_atomically(path: Path, text: str) -> None:
    """Write beside the target, flush to the disk, then rename; a failure leaves the old file and no litter."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            # a lone surrogate from a broken manifest becomes \udxxx, which is its JSON escape
            file.write(text.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parts(score: Score | Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Take a score or a report read back apart into overall and languages."""
    if isinstance(score, Score):
        return score.overall, score.languages
    return score["overall"], score["languages"]


def _change_cells(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Text]:
    """Headline before, after and change, then the language accuracies."""
    old, new = before.get("headline"), after.get("headline")
    if old is None or new is None:
        change = Text(_ABSENT)
    else:
        points = round(100 * (new - old), 2) + 0.0  # + 0.0: no "-0.00"
        worse = -points if after.get("higher_is_better") else points
        change = Text(f"{points:+.2f}", style="green" if worse < 0 else "red" if worse > 0 else "")
    found = [Text(_percent(figures.get("language_accuracy"), 1)) for figures in (before, after)]
    return [Text(_percent(old, 2)), Text(_percent(new, 2), style="bold"), change, *found]


def _other_cells(figures: Mapping[str, Any]) -> list[Text]:
    """Language accuracy, utterances and audio of one row."""
    return [
        Text(_percent(figures["language_accuracy"], 1)),
        Text(f"{figures['utterances']:,}"),
        Text(_audio_time(figures["audio_s"])),
    ]


def _caption(overall: Mapping[str, Any]) -> str:
    """Say what the star is, the headline over languages, and the speed."""
    rtfx = _ABSENT if overall["rtfx"] is None else f"{overall['rtfx']:.1f}"
    headline = f"{_percent(overall['headline'], 2)} %"
    ends = overall.get("intervals", {}).get("headline")
    if ends is not None:
        headline += f" ({_percent(ends[0], 2)} to {_percent(ends[1], 2)})"
    return f"* headline rate; mean over languages {headline}, RTFx {rtfx}"


def _interval_cell(figures: Mapping[str, Any]) -> Text:
    """The ends of the headline's interval in per cent."""
    ends = figures.get("intervals", {}).get("headline")
    return Text(_ABSENT if ends is None else f"{_percent(ends[0], 2)} to {_percent(ends[1], 2)}")


def _rate_cell(rate: float | None, *, is_headline: bool) -> Text:
    """A rate in per cent, bold and starred where it is the one to read."""
    return Text(f"* {_percent(rate, 2)}", style="bold") if is_headline else Text(_percent(rate, 2))


def _percent(fraction: float | None, num_decimals: int) -> str:
    """A fraction as per cent without the sign, or a dash."""
    return _ABSENT if fraction is None else f"{100 * fraction:.{num_decimals}f}"


def _audio_time(seconds: float) -> str:
    """Seconds in the unit a reader would choose."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
