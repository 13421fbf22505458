"""The word error rate of this project as a Hugging Face `evaluate` module, normalised per language, corpus level.

`evaluate.load` copies this file into its cache and imports it there, and its scanner wants every import that begins a
line to be installed. So our package is imported inside a `try`, where the scanner does not look, and the library as a
module: of the metric classes that stand here by name, `evaluate.load` would take the first, even its own base class.
"""

from collections.abc import Sequence

import datasets  # type: ignore[import-untyped,unused-ignore]
import evaluate  # type: ignore[import-untyped,unused-ignore]

try:
    from infer.score.normalise import UNDETERMINED
    from infer.score.rates import compute_rates
except ImportError as e:
    raise ImportError(
        f"the metric wer needs the packages of this project ({e}); run from its root folder, or put that on PYTHONPATH"
    ) from e

_DESCRIPTION = "Corpus-level word error rate after the normaliser of each language: all edits / all reference words."

_USAGE = """
Args:
    predictions: hypotheses, one string per utterance.
    references: reference texts in the same order; empty ones are allowed.
    languages: ISO code of each utterance; without it the basic rule of the normaliser is used for all.

Returns:
    {"wer": fraction, or None where no reference has a word}.
"""


class Wer(evaluate.Metric):  # type: ignore[misc,unused-ignore]
    """Take predictions, references and languages, give {"wer": fraction}."""

    def _info(self) -> evaluate.MetricInfo:
        """Describe the inputs; languages is no feature here, because `evaluate` cannot leave a feature out."""
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_USAGE,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: Sequence[str] | None = None
    ) -> dict[str, float | None]:
        """Compute the rate with the function that the report uses."""
        codes = languages if languages is not None else [UNDETERMINED] * len(references)
        return {"wer": compute_rates(references, predictions, codes).wer}
