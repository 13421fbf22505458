"""Every exported format through its own client, on the same clips, with the same decode profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from infer.clients.client import CLIENTS, ClientRequest, run_client_in_process
from infer.decode_settings import DecodeSettings
from infer.gate.clips import GateClips
from infer.gate.settings import GateSettings
from infer.gate.texts import TextDifference, compare_texts, predictions_of
from infer.gate.verdict import Miss, percent
from infer.plain_search import lacked_lists
from infer.score.normalise import headline_metric
from infer.score.rates import tally
from infer.score.utterances import Prediction

OURS = "mezzavoce"
FIGURES = ("latency_p50_s", "latency_p95_s", "rtfx", "peak_bytes", "weights_bytes", "version")


@dataclass(frozen=True)
class Candidate:
    """One exported format that waits for its verdict."""

    name: str
    """Of its row and its folder, such as `ctranslate2-int8`."""
    format: str
    """As `CLIENTS` names it."""
    stored: str
    """What the weights are stored in, such as `float16`."""
    path: Path
    """A folder, or a file where the format is one."""

    @property
    def is_quantised(self) -> bool:
        """Whether its weights have fewer bits than FP16, so that its texts may differ."""
        return "int8" in self.stored or self.stored.startswith("q")


def compare_runtimes(
    artefact: Path,
    candidates: Sequence[Candidate],
    clips: GateClips,
    decoding: DecodeSettings,
    settings: GateSettings,
    *,
    scratch: Path,
) -> tuple[list[dict[str, Any]], list[Miss], dict[str, Any] | None]:
    """Run ours in both window rules, then every candidate in each client of its format.

    Args:
        artefact: in Hugging Face's format, that ours runs.
        candidates: what was exported.
        clips: held out.
        decoding: the profile.
        settings: what passes.
        scratch: for questions and answers.

    Returns:
        Rows for the table, what missed, and what 30 s cost against the trained windows (None for a stock model).
    """
    ask = _Asker(clips, decoding, settings, scratch)
    trained = ask(OURS, artefact, "trained")
    full = ask(OURS, artefact, "full")
    rows = [_row(OURS, "hf", "trained", trained, None), _row(OURS, "hf", "30 s", full, None)]
    rows[0]["verdict"] = rows[1]["verdict"] = "reference"
    misses: list[Miss] = []
    for found, windows in ((trained, "trained"), (full, "30 s")):
        if found.predictions is None:
            misses.append(Miss("runtime", f"ours cannot run it in {windows} windows: {found.reason}"))
    windows_cost = None
    if trained.predictions is not None and full.predictions is not None:
        windows_cost, missed = _judge_windows(trained, full, settings)
        misses += missed
    for candidate in candidates:
        for kind in CLIENTS.values():
            if kind.format != candidate.format or kind.name == OURS:
                continue
            found = ask(kind.name, candidate.path, "full")
            row = _row(kind.title, candidate.name, "30 s", found, full)
            own = _judge_client(kind.title, candidate, found, row, settings)
            row["lacks"] = list(lacked_lists(kind.name, artefact))
            row["verdict"] = "not run" if found.is_absent else "missed" if own else "passed"
            rows.append(row)
            misses += own
    return rows, misses, windows_cost


@dataclass(frozen=True)
class _Answer:
    """What one client said, or why it did not."""

    figures: Mapping[str, Any]
    predictions: tuple[Prediction, ...] | None
    reason: str | None
    is_absent: bool = False


class _Asker:
    """Ask clients about the same clips."""

    def __init__(self, clips: GateClips, decoding: DecodeSettings, settings: GateSettings, scratch: Path) -> None:
        self._clips, self._decoding, self._settings, self._scratch = clips, decoding, settings, scratch

    def __call__(self, client: str, path: Path, windows: str) -> _Answer:
        request = ClientRequest(
            client=client,
            folder=str(path),
            sources=(asdict(self._clips.source),),
            decoding=asdict(self._decoding),
            windows=windows,
            num_threads=torch.get_num_threads(),
            latency_clips=self._settings.latency_clips,
        )
        found = run_client_in_process(request, self._scratch / f"{path.name}-{windows}")
        if "texts" not in found:
            return _Answer({}, None, found.get("absent") or found.get("failed"), "absent" in found)
        predictions = predictions_of(self._clips.rows, found["texts"], found["languages"])
        return _Answer({key: found.get(key) for key in FIGURES}, tuple(predictions), None)


def _row(client: str, name: str, windows: str, found: _Answer, reference: _Answer | None) -> dict[str, Any]:
    row: dict[str, Any] = {"client": client, "format": name, "windows": windows, "verdict": "failed"}
    if found.predictions is None:
        return {**row, "reason": found.reason}
    row |= {**found.figures, **score_plainly(found.predictions), "identical": None, "difference": None}
    if reference is not None and reference.predictions is not None:
        difference = compare_texts(reference.predictions, found.predictions)
        row |= {"identical": difference.identical, "difference": difference.describe()}
    return row


def score_plainly(predictions: Sequence[Prediction]) -> dict[str, float | None]:
    """Return `wer` over languages that are judged by words, `cer` over all, and `language_accuracy`."""
    words = [p for p in predictions if headline_metric(p.text_language) == "wer"]
    detected = [p for p in predictions if p.detected_language is not None]
    right = sum(p.detected_language == p.language for p in detected)
    return {
        "wer": _rates(words).wer,
        "cer": _rates(predictions).cer,
        "language_accuracy": right / len(detected) if detected else None,
    }


def _rates(predictions: Sequence[Prediction]) -> Any:
    return tally(
        [p.reference for p in predictions],
        [p.hypothesis for p in predictions],
        [p.text_language for p in predictions],
    ).rates


def _judge_windows(trained: _Answer, full: _Answer, settings: GateSettings) -> tuple[dict[str, Any], list[Miss]]:
    """Judge what 30 s cost: stock runtimes know no other window."""
    assert trained.predictions is not None and full.predictions is not None
    difference = compare_texts(trained.predictions, full.predictions)
    allowed = settings.tolerance.full_window_wer
    cost = max(difference.wer, difference.cer)
    points = f"WER is {100 * difference.wer:+.2f} and CER {100 * difference.cer:+.2f} points"
    sentence = f"at 30 s {points} from the trained windows"
    misses = []
    if cost > allowed:
        misses.append(
            Miss(
                "windows",
                f"{sentence}, allowed {100 * allowed:g} (gate.tolerance.full_window_wer); stock runtimes know only "
                "30 s: train with window.full_share=0.1",
            )
        )
    return {"sentence": sentence, **difference.describe()}, misses


def _judge_client(
    title: str, candidate: Candidate, found: _Answer, row: Mapping[str, Any], settings: GateSettings
) -> list[Miss]:
    if found.is_absent:
        return []
    if found.predictions is None:
        return [Miss("runtime", f"{title} cannot run {candidate.name}: {found.reason}", (candidate.name,))]
    if row["difference"] is None:
        return []
    fields = {key: value for key, value in row["difference"].items() if key != "identical"}
    difference = TextDifference(**{**fields, "new_faults": tuple(fields["new_faults"])})
    key = "int8_wer" if candidate.is_quantised else "runtime_wer"
    allowed = getattr(settings.tolerance, key)
    sentences = []
    for name, value, is_loss in (
        ("WER", difference.wer, difference.loss_of_words(allowed)),
        ("CER", difference.cer, difference.loss_of_characters(allowed)),
    ):
        if is_loss:
            sentences.append(
                f"{title} on {candidate.name}: {name} is {100 * value:+.2f} points from ours, allowed "
                f"{100 * allowed:g} (gate.tolerance.{key})"
            )
    least = settings.tolerance.runtime_identical
    if (
        not candidate.is_quantised
        and difference.identical < least
        and difference.num_clips - difference.num_identical > 1
    ):
        sentences.append(
            f"{title} on {candidate.name}: {percent(difference.identical, 1)} % of the texts are identical to ours, "
            f"allowed {percent(least, 1)} % or more (gate.tolerance.runtime_identical)"
        )
    return [Miss("runtime", sentence, (candidate.name,)) for sentence in sentences]
