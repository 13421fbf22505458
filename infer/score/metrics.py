"""Further metrics of the Hugging Face `evaluate` library, by the name that a user gives."""

import inspect
import logging
import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infer.score.evaluation import Prediction
from infer.score.normalise import normalise

logger = logging.getLogger(__name__)

PROJECT_ROOT = Path(__file__).resolve().parents[2]

_WHAT_TO_TYPE = (
    "give a folder such as infer/metrics/wer; a name on the hub needs a network and the packages of that metric"
)


def compute_named_metrics(names: Sequence[str], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Compute metrics of the `evaluate` library on normalised texts.

    A metric that takes `languages`, as ours in `infer/metrics` do, normalises by itself: it gets the raw texts.

    Args:
        names: a path of a metric's folder or script (with a slash, relative to the project root), or a name on the hub.
            A name on the hub downloads and runs the code published there.
        predictions: what to compare, in any order that the metric allows.

    Returns:
        Every number that a metric returns, under its own key (`wer`), or under `name/key` where the key is not the
        metric's name; what is no finite number is left out, with a warning.

    Raises:
        FileNotFoundError: if a path has no metric.
        ValueError: if a metric cannot be loaded, cannot take these texts, or gives a key that another one gave.
    """
    values: dict[str, float] = {}
    for name in names:
        for key, value in _compute_one(name, predictions).items():
            label = key if key == Path(name).stem else f"{Path(name).stem}/{key}"
            if label in values:
                raise ValueError(f"{label} comes from two metrics of {list(names)}; name each metric once")
            if isinstance(value, numbers.Real) and math.isfinite(value):
                values[label] = float(value)
            else:
                logger.warning("metric %s: %s is %r, no finite number; left out", name, key, value)
    return values


def _compute_one(name: str, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Load one metric and feed it."""
    path = _resolve(name)
    # imported here: it pulls in datasets and pandas, seconds that a plain evaluation need not spend
    import evaluate  # type: ignore[import-untyped,unused-ignore]

    try:
        metric = evaluate.load(path, keep_in_memory=True)
    except Exception as e:  # the library lets errors of the network, the hub and the script itself through
        raise ValueError(f"metric {name!r} cannot be loaded: {_first_line(e)}; {_WHAT_TO_TYPE}") from e

    references = [p.reference for p in predictions]
    hypotheses = [p.hypothesis for p in predictions]
    languages = [p.text_language for p in predictions]
    options: dict[str, Any] = {}
    if "languages" in inspect.signature(metric._compute).parameters:
        options["languages"] = languages
    else:
        references = [normalise(text, language) for text, language in zip(references, languages, strict=True)]
        hypotheses = [normalise(text, language) for text, language in zip(hypotheses, languages, strict=True)]
    try:
        result = metric.compute(predictions=hypotheses, references=references, **options)
    except Exception as e:  # a stranger's code: any error of it is a metric that does not fit
        raise ValueError(
            f"metric {name!r} cannot be computed on these texts: {_first_line(e)}; leave it out of the list"
        ) from e
    return dict(result)


def _resolve(name: str) -> str:
    """Make a path absolute, against the project root; leave a name on the hub as it is."""
    if not name.strip():
        raise ValueError(f"a metric has an empty name; {_WHAT_TO_TYPE}")
    path = PROJECT_ROOT / name
    if path.is_file() or (path / f"{path.name}.py").is_file():
        return str(path)
    # one slash alone may still be an owner and a name on the hub
    is_hub_name = name.count("/") <= 1 and name[0] not in "./~" and not name.endswith((".py", "/"))
    if is_hub_name:
        return name
    raise FileNotFoundError(
        f"metric {name!r}: found neither a script {path} nor a {path.name}.py in it; {_WHAT_TO_TYPE}"
    )


def _first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
