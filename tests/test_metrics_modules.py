"""Our `evaluate` modules load with no network, from the project root and by absolute path, and give our own rates.

One fresh process does all of it, with both offline variables set, an empty cache and every socket refused, since the
library reads its environment on import (and takes seconds for it).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infer.score.evaluation import Prediction, score_predictions
from infer.score.metrics import PROJECT_ROOT, compute_named_metrics
from infer.score.rates import compute_rates

REFERENCES = ["The cat sat.", "", "ещё мой", "你好世界", "Ja."]
HYPOTHESES = ["the cat sad", "thank you", "еще мои", "你号 世界", "ja"]
LANGUAGES = ["en", "de", "ru", "zh", "de"]
PREDICTIONS = [
    Prediction(str(i), language, None, reference, hypothesis, 1.0, no_speech=not reference)
    for i, (language, reference, hypothesis) in enumerate(zip(LANGUAGES, REFERENCES, HYPOTHESES, strict=True))
]

PROGRAM = """
import json, os, socket, sys, dataclasses

def refuse(*args, **kwargs):
    raise AssertionError("a network connection was tried")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
case = json.load(sys.stdin)
references, hypotheses, languages = case["references"], case["hypotheses"], case["languages"]

import evaluate
from infer.score.evaluation import Prediction
from infer.score.metrics import compute_named_metrics

found = {}
for name in ("wer", "cer"):
    metric = evaluate.load(f"infer/metrics/{name}")
    found[name] = metric.compute(predictions=hypotheses, references=references, languages=languages)
    found[name + "_basic"] = metric.compute(predictions=hypotheses, references=references)
    found[name + "_empty"] = metric.compute(predictions=["a"], references=[""])
    metric.add_batch(predictions=hypotheses[:2], references=references[:2])
    metric.add_batch(predictions=hypotheses[2:], references=references[2:])
    found[name + "_batches"] = metric.compute(languages=languages)
try:
    metric.compute(predictions=["a"], references=["b"], languages=["en", "de"])
except ValueError as e:
    found["wrong_length"] = str(e)

predictions = [Prediction(**row) for row in case["predictions"]]
os.chdir("/")  # from here on, a relative path can only mean the project root
found["named"] = compute_named_metrics(["infer/metrics/wer", "infer/metrics/cer/cer.py"], predictions)
found["exact"] = compute_named_metrics([case["exact_match"]], predictions)
for label, name in (("hub", "chrf"), ("broken", case["broken"]), ("raises", case["raises"])):
    try:
        compute_named_metrics([name], predictions)
    except ValueError as e:
        found[label] = str(e)
print("\\n" + json.dumps(found, allow_nan=False))
"""

# a metric as others write it: no languages, several results, one of them no number
EXACT_MATCH = """
import datasets
import evaluate

class ExactMatch(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references))
        return {"exact": sum(p == r for p, r in pairs), "seen": "|".join(references), "nan": float("nan")}
"""


def _script(folder: Path, name: str, source: str) -> str:
    path = folder / name / f"{name}.py"
    path.parent.mkdir()
    path.write_text(source, encoding="utf-8")
    return str(path.parent)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("metrics")
    case = {
        "references": REFERENCES,
        "hypotheses": HYPOTHESES,
        "languages": LANGUAGES,
        "predictions": [vars(prediction) for prediction in PREDICTIONS],
        "exact_match": _script(folder, "exact_match", EXACT_MATCH),
        "broken": _script(folder, "broken", "import a_package_that_is_not_there\n"),
        "raises": _script(folder, "raises", EXACT_MATCH.replace("pairs = ", "raise KeyError('inner')  # ")),
    }
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
        "PYTHONPATH": str(PROJECT_ROOT),
    }
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(case),
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        env=environment,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["wer", "cer"])
def test_a_module_gives_the_rate_of_the_report(found: dict[str, Any], name: str) -> None:
    score = score_predictions(PREDICTIONS, processing_s=1)
    assert 0 < score.overall[name] < 2
    assert found[name] == {name: score.overall[name]}
    assert found[f"{name}_batches"] == found[name]
    assert found["named"][name] == score.overall[name]


@pytest.mark.parametrize("name", ["wer", "cer"])
def test_without_languages_the_basic_rule_holds(found: dict[str, Any], name: str) -> None:
    basic = getattr(compute_rates(REFERENCES, HYPOTHESES, ["und"] * 5), name)
    assert found[f"{name}_basic"] == {name: basic}
    assert basic != found[name][name]


def test_no_reference_unit_is_none(found: dict[str, Any]) -> None:
    assert (found["wer_empty"], found["cer_empty"]) == ({"wer": None}, {"cer": None})


def test_languages_of_another_length_are_refused(found: dict[str, Any]) -> None:
    assert "2 languages" in found["wrong_length"]


def test_a_foreign_metric_gets_normalised_texts_and_only_its_numbers_are_kept(found: dict[str, Any]) -> None:
    assert found["exact"] == {"exact_match/exact": 1.0}  # "Ja." and "ja"; without the normaliser it would be 0


def test_a_metric_that_cannot_be_loaded_says_what_to_type(found: dict[str, Any]) -> None:
    assert "'chrf' cannot be loaded" in found["hub"] and "infer/metrics/wer" in found["hub"]
    assert "a_package_that_is_not_there" in found["broken"] and "infer/metrics/wer" in found["broken"]
    assert "cannot be computed" in found["raises"] and "inner" in found["raises"]


@pytest.mark.parametrize("name", ["infer/metrics/nothing", "./wer", "wer.py", "/no/such/place"])
def test_a_path_without_a_metric_is_an_error_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="infer/metrics/wer"):
        compute_named_metrics([name], PREDICTIONS)
