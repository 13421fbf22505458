"""All checks on one folder, in order: a check that builds on what another one found broken is not asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from infer.doctor import identities, parts, weights
from infer.doctor.findings import Finding, Verdict, judge
from infer.doctor.folder import ModelFolder
from infer.doctor.weights import WeightFigures, measure_weights

FolderCheck = Callable[[ModelFolder], Finding | None]
WeightCheck = Callable[[ModelFolder, WeightFigures], Finding | None]


@dataclass(frozen=True)
class Check:
    """One row of the table of checks."""

    code: str
    of_folder: FolderCheck | None = None
    of_weights: WeightCheck | None = None
    after: tuple[str, ...] = ()
    """Codes without which this one would only repeat what they say."""


CHECKS = (
    Check("config", parts.check_config),
    Check("remote-code", parts.check_remote_code, after=("config",)),
    Check("weights-missing", parts.check_weights_file),
    Check("tokenizer-missing", parts.check_tokenizer),
    Check("preprocessor-missing", parts.check_preprocessor),
    Check("generation-missing", parts.check_generation_file),
    Check("hashes", parts.check_hashes),
    Check("mel-bins", parts.check_mel_bins, after=("weights-missing",)),
    Check("vocabulary", identities.check_vocabulary, after=("config", "tokenizer-missing")),
    Check("special-ids", identities.check_special_ids, after=("config", "tokenizer-missing")),
    Check(
        "generation-ids",
        identities.check_generation_ids,
        after=("generation-missing", "tokenizer-missing", "vocabulary"),
    ),
    Check("forced-ids", identities.check_forced_ids, after=("config",)),
    Check("suppress-lists", identities.check_suppressed, after=("config",)),
    Check("alignment-heads", identities.check_alignment_heads, after=("config", "generation-missing")),
    Check("shapes", of_weights=weights.check_shapes, after=("config",)),
    Check("nonfinite", of_weights=weights.check_finite),
    Check("fp16-reach", of_weights=weights.check_reach),
    Check("fp16-flush", of_weights=weights.check_flush),
    Check("fp16-subnormal", of_weights=weights.check_subnormal),
    Check("tie", of_weights=weights.check_tie),
    Check("dtype", of_weights=weights.check_dtype),
    Check("cast", of_weights=weights.check_masters, after=("hashes",)),
)
"""Every check, by its code."""


@dataclass(frozen=True)
class Examination:
    """What was found in one folder."""

    path: Path
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    """Codes of checks that could not be asked."""
    has_masters: bool
    figures: WeightFigures = field(repr=False, compare=False, default_factory=WeightFigures)

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the findings."""
        return tuple(finding.code for finding in self.findings)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One a runtime."""
        return judge(self.findings)

    @property
    def is_broken(self) -> bool:
        """Whether a runtime cannot use the folder."""
        return any(verdict.level == "broken" for verdict in self.verdicts)

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "path": str(self.path),
            "findings": [vars(finding) for finding in self.findings],
            "verdicts": {v.runtime: {"level": v.level, "codes": list(v.codes)} for v in self.verdicts},
            "not_asked": list(self.skipped),
            "masters": self.has_masters,
            "weights": {
                name: self.figures.total(name)
                for name in ("num_values", "num_nonfinite", "num_nonzero", "num_flushed", "num_subnormal")
            },
        }


def examine(path: Path, *, masters: Mapping[str, Tensor] | None = None) -> Examination:
    """Run every check on a folder.

    Args:
        path: a Whisper folder in Hugging Face's format, ours or not.
        masters: the FP32 weights that it was made of, adapters merged in FP32; without them a wrong cast cannot be
            seen.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder; artefact= takes a model folder such as runs/demo/export")
    folder = ModelFolder(path)
    findings: list[Finding] = []
    skipped: list[str] = []
    failed: set[str] = set()
    figures = WeightFigures() if folder.weights is None else measure_weights(folder.weights, masters)
    for check in CHECKS:
        if failed & set(check.after) or (check.of_weights is not None and folder.weights is None):
            skipped.append(check.code)
            failed.add(check.code)
            continue
        found = check.of_folder(folder) if check.of_folder is not None else None
        if check.of_weights is not None:
            found = check.of_weights(folder, figures)
        if found is not None:
            findings.append(found)
            failed.add(check.code)
    if masters is None:
        skipped.append("cast")
    return Examination(path, tuple(findings), tuple(skipped), masters is not None, figures)
