"""The model card, `README.md` of the artefact: data, recipe, precision, results, decode settings, limits, runtimes.

It says what the manifest, a report and the gate know, and nothing else. Paths of this machine are never in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infer.artefact import RECORD_NAME

CARD_NAME = "README.md"
ABSENT = "–"
TRAINING_FACTS = {  # key of a run's configuration to words
    "finetune.name": "weights that learnt",
    "finetune.rank": "rank of the adapters",
    "precision.name": "precision",
    "optimizer.name": "optimiser",
    "optimizer.lr": "learning rate",
    "schedule.name": "schedule",
    "trainer.max_steps": "updates, at most",
    "trainer.micro_batch_size": "clips a micro-batch",
    "trainer.accumulation_steps": "micro-batches an update",
    "window.name": "windows",
    "window.full_share": "share of updates at 30 s",
    "trainer.seed": "seed",
}


def write_card(
    folder: Path,
    *,
    title: str | None = None,
    training: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    gate: Mapping[str, Any] | None = None,
    license_name: str | None = None,
) -> Path:
    """Write the card of an artefact into its folder.

    Args:
        folder: the artefact; its manifest says what it is.
        title: name of the model; None takes the run's, or the folder's.
        training: configuration of the run, if known.
        report: a `report.json`; None takes the evaluation in the manifest, if there is one.
        gate: record of the gate, if it ran.
        license_name: as the hub knows it, such as `apache-2.0`; None leaves it to the reader.

    Returns:
        The file.
    """
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    scores = report or record.get("evaluation") or {}
    name = title or str(record.get("run") or folder.resolve().name)
    parts = [
        _front_matter(name, record, scores, license_name),
        f"# {name}\n\n{_opening(record)}",
        _use(record),
        _results(scores),
        _data(training),
        _recipe(record, training),
        _precision(record, gate),
        _decoding(record),
        _limits(record, gate),
        _runtimes(gate),
    ]
    file = folder / CARD_NAME
    file.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return file


def _front_matter(name: str, record: Mapping[str, Any], scores: Mapping[str, Any], license_name: str | None) -> str:
    """YAML for the hub; JSON strings are YAML strings."""
    languages = sorted(scores.get("languages", {}))
    lines = ["---", "library_name: transformers", "pipeline_tag: automatic-speech-recognition"]
    lines += ["tags: [whisper, mezzavoce]"]
    lines += [f"language: [{', '.join(json.dumps(code) for code in languages)}]"] if languages else []
    lines += [f"license: {license_name}"] if license_name else []
    source = record.get("source") or {}
    if _is_hub_id(source.get("path")):
        lines.append(f"base_model: {source['path']}")
    metrics = [
        (code, figures["headline_metric"], figures["headline"])
        for code, figures in sorted(scores.get("languages", {}).items())
        if figures.get("headline") is not None
    ]
    if metrics:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        for code, metric, value in metrics:
            lines += [
                "  - task: {type: automatic-speech-recognition}",
                f'    dataset: {{name: "held-out clips, {code}", type: private}}',
                f"    metrics: [{{type: {metric}, value: {100 * value:.2f}, name: {metric.upper()} %}}]",
            ]
    return "\n".join([*lines, "---"])


def _is_hub_id(path: object) -> bool:
    return isinstance(path, str) and path.count("/") == 1 and not path.startswith(("/", ".", "~"))


def _opening(record: Mapping[str, Any]) -> str:
    source = record.get("source") or {}
    origin = source["path"] if _is_hub_id(source.get("path")) else source.get("name") or "random weights"
    revision = f" at revision {source['revision']}" if source.get("revision") else ""
    return (
        f"Whisper, fine-tuned with Mezzavoce from {origin}{revision}, stored in {record.get('stored', 'float16')}. "
        "The figures below were measured on this very file, not on a training forward."
    )


def _use(record: Mapping[str, Any]) -> str:
    language = (record.get("decoding") or {}).get("language", "auto")
    options = "" if language == "auto" else f', generate_kwargs={{"language": "{language}"}}'
    return (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        'recogniser = pipeline("automatic-speech-recognition", "PATH")\n'
        f'print(recogniser("clip.wav"{options})["text"])\n'
        "```\n\nWith Mezzavoce: `python scripts/transcribe.py artefact=PATH audio=clip.wav`."
    )


def _results(scores: Mapping[str, Any]) -> str:
    if not scores.get("languages"):
        return "## Results\n\nNot measured yet: `python scripts/evaluate.py artefact=PATH dataset.test=test.jsonl`."
    rows = ["| language | rate | % | 95 % interval | clips |", "|---|---|---|---|---|"]
    for code, figures in sorted(scores["languages"].items()):
        rows.append(_result_row(code, figures["headline_metric"].upper(), figures))
    rows.append(_result_row("mean", "", scores["overall"]))
    return "## Results\n\nOn held-out clips, after normalisation, corpus level.\n\n" + "\n".join(rows)


def _result_row(name: str, metric: str, figures: Mapping[str, Any]) -> str:
    ends = (figures.get("intervals") or {}).get("headline")
    interval = f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}" if ends else ABSENT
    value = figures.get("headline")
    cells = [name, metric, ABSENT if value is None else f"{100 * value:.2f}", interval, f"{figures['utterances']:,}"]
    return f"| {' | '.join(cells)} |"


def _data(training: Mapping[str, Any] | None) -> str:
    dataset = (training or {}).get("dataset") or {}
    lines = []
    for split in ("train", "replay", "validation"):
        names = [_short(entry) for entry in dataset.get(split) or []]
        lines += [f"- {split}: {', '.join(names)}"] if names else []
    hub = dataset.get("hub") or {}
    lines += [f"- from the hub: {hub['path']}"] if hub.get("path") else []
    return "## Data\n\n" + ("\n".join(lines) if lines else "Not recorded.")


def _short(entry: Any) -> str:
    """The last two parts of a path: which set, and nothing of the machine."""
    path = entry.get("path", "") if isinstance(entry, Mapping) else str(entry)
    return "/".join(Path(str(path)).parts[-2:]).lstrip("/")


def _recipe(record: Mapping[str, Any], training: Mapping[str, Any] | None) -> str:
    facts = [("step of these weights", record.get("trained_steps"))]
    for key, words in TRAINING_FACTS.items():
        group, _, name = key.partition(".")
        facts.append((words, ((training or {}).get(group) or {}).get(name)))
    rows = [f"| {words} | {value} |" for words, value in facts if value is not None]
    return "## Recipe\n\n| what | value |\n|---|---|\n" + "\n".join(rows) if rows else ""


def _precision(record: Mapping[str, Any], gate: Mapping[str, Any] | None) -> str:
    lines = [f"Stored in {record.get('stored')}, cast once from FP32, adapters merged in FP32 before."]
    parity = (gate or {}).get("parity") or {}
    if "P3" in parity:
        forced, texts = parity["P3"]["forced"], parity["P3"]["texts"]
        lines.append(
            f"FP16 against strict FP32 on {parity['P3']['clips']} held-out clips: the same token in "
            f"{100 * forced['top1']:.2f} % of {forced['tokens']:,}, {forced['kl']:.1e} nats a token apart, "
            f"{100 * texts['identical']:.1f} % of the texts identical."
        )
    return "## Precision\n\n" + " ".join(lines)


def _decoding(record: Mapping[str, Any]) -> str:
    decoding = record.get("decoding") or {}
    if not decoding:
        return ""
    told = ", ".join(f"{key} {value}" for key, value in decoding.items() if value is not None)
    return f"## Decode settings\n\nThe figures hold for: {told}."


def _limits(record: Mapping[str, Any], gate: Mapping[str, Any] | None) -> str:
    lines = []
    edges = record.get("windows_s") or []
    if len(edges) > 1:
        lines.append(f"- Trained on windows of {edges[0]:g} to {edges[-1]:g} s; stock runtimes pad every clip to 30 s.")
    long_form = (gate or {}).get("long_form") or {}
    if long_form.get("sentence"):
        lines.append(f"- {long_form['sentence']}")
    lines.append("- Speech unlike that of the held-out clips was not measured.")
    if (gate or {}).get("forced"):
        lines.append("- **Published by force**: it misses tolerances, which stand in the manifest.")
    return "## Limits\n\n" + "\n".join(lines)


def _runtimes(gate: Mapping[str, Any] | None) -> str:
    from infer.gate.tables import runtimes_markdown

    if not (gate or {}).get("runtimes"):
        return ""
    assert gate is not None
    return "## Runtimes\n\n" + runtimes_markdown(gate)
