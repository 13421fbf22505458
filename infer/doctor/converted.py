"""Models that were converted for one runtime: what a folder or file is, and what can be checked without loading it.

A CTranslate2 folder is read by its header: names and shapes of its tensors. OpenAI's `.pt` is opened without running
code of its own. Of a ggml file the sizes at its head are read.

Source: OpenNMT/CTranslate2 `python/ctranslate2/specs/model_spec.py`; ggml-org/whisper.cpp `src/whisper.cpp`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import uuid
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from transformers import WhisperFeatureExtractor

from infer.doctor.findings import FASTER_WHISPER, OPENAI, WHISPER_CPP, Finding, Verdict
from infer.export.ggml import MAGIC, SIZES

DEFAULT_MEL_BINS = 80  # what faster-whisper assumes where no file says it
KINDS = {"ctranslate2": FASTER_WHISPER, "openai": OPENAI, "ggml": WHISPER_CPP}
"""What a model was converted to, and the runtime that takes it."""
WHISPER_SPEC = "WhisperSpec"


@dataclass(frozen=True)
class ConvertedModel:
    """What was found in one converted model."""

    path: Path
    kind: str
    """A name in `KINDS`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Sizes, as the weights have them."""
    findings: tuple[Finding, ...] = ()

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of the one runtime that it was made for."""
        level = "broken" if self.is_broken else "trouble" if self.findings else "works"
        return (Verdict(KINDS[self.kind], level, tuple(finding.code for finding in self.findings)),)

    @property
    def is_broken(self) -> bool:
        """Whether its runtime cannot use it."""
        return any(finding.breaks for finding in self.findings)

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "facts": self.facts,
            "findings": [vars(finding) for finding in self.findings],
            "verdicts": {v.runtime: {"level": v.level, "codes": list(v.codes)} for v in self.verdicts},
        }


def recognise(path: Path) -> str | None:
    """Return what a path was converted to, a name in `KINDS`; None for anything else."""
    if path.is_dir():
        is_stock = (path / "model.safetensors").is_file() or (path / "model.safetensors.index.json").is_file()
        return "ctranslate2" if (path / "model.bin").is_file() and not is_stock else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(4) == struct.pack("<I", MAGIC):
            return "ggml"
    return "openai" if zipfile.is_zipfile(path) or path.suffix == ".pt" else None


def examine_converted(path: Path, kind: str) -> ConvertedModel:
    """Check a converted model.

    Args:
        path: the folder or the file.
        kind: from `recognise`.
    """
    return {"ctranslate2": _examine_ctranslate2, "openai": _examine_openai, "ggml": _examine_ggml}[kind](path)


def repair_converted(found: ConvertedModel, target: Path) -> tuple[str, ...]:
    """Write a copy of a CTranslate2 folder with the `preprocessor_config.json` that its weights ask for.

    Args:
        found: of the folder.
        target: where the copy goes; it must not be there yet.

    Returns:
        Codes that were mended.

    Raises:
        ValueError: if nothing can be mended, the place is taken, or it lies in the folder.
        RuntimeError: if the copy cannot be written.
    """
    codes = tuple(finding.code for finding in found.findings if finding.can_repair)
    if not codes:
        raise ValueError(f"{found.path}: nothing that was found can be mended; export it again with scripts/export.py")
    if target.exists() or target.resolve().is_relative_to(found.path.resolve()):
        raise ValueError(f"{target} is there already, or lies in {found.path}; give another place, repaired=PATH")
    temporary = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        shutil.copytree(found.path, temporary, ignore=shutil.ignore_patterns(".*"))
        WhisperFeatureExtractor(feature_size=found.facts["mel_bins"]).save_pretrained(str(temporary))
        os.replace(temporary, target)
    except OSError as e:
        raise RuntimeError(f"cannot write {target}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return codes


def _examine_ctranslate2(folder: Path) -> ConvertedModel:
    runtime = (FASTER_WHISPER,)
    again = "convert it again: scripts/export.py formats=[ctranslate2]"
    try:
        shapes = ctranslate2_shapes(folder / "model.bin")
        mel_bins, tokens = shapes["encoder/conv1/weight"][1], shapes["decoder/embeddings/weight"][0]
    except (ValueError, KeyError, struct.error, UnicodeDecodeError) as e:
        fault = Finding("weights-missing", f"model.bin is no Whisper of CTranslate2: {e}", again, breaks=runtime)
        return ConvertedModel(folder, "ctranslate2", {}, (fault,))
    findings = []
    preprocessor, config = _json(folder / "preprocessor_config.json"), _json(folder / "config.json")
    named = (preprocessor or {}).get("feature_size", DEFAULT_MEL_BINS)
    if named != mel_bins or preprocessor is None:
        code = "preprocessor-missing" if preprocessor is None else "mel-bins"
        what = "no preprocessor_config.json; faster-whisper then assumes" if preprocessor is None else "it names"
        is_wrong = named != mel_bins
        findings.append(
            Finding(
                code,
                f"{what} {named} mel bins, the first convolution takes {mel_bins}",
                "fix=true writes preprocessor_config.json",
                breaks=runtime if is_wrong else (),
                troubles=() if is_wrong else runtime,
                can_repair=True,
            )
        )
    if not (folder / "tokenizer.json").is_file():
        found = "no tokenizer.json: faster-whisper fetches that of another model, or fails without a network"
        findings.append(Finding("tokenizer-missing", found, "copy it from that model's folder", breaks=runtime))
    try:
        words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        words = None
    if words is None or len(words) != tokens:
        found = f"the model has {tokens} tokens, vocabulary.json {'is missing' if words is None else len(words)}"
        findings.append(Finding("vocabulary", found, again, breaks=runtime))
    if not (config or {}).get("alignment_heads"):
        found = "config.json names no alignment heads: no word times"
        findings.append(Finding("alignment-heads", found, again, troubles=runtime))
    return ConvertedModel(folder, "ctranslate2", {"mel_bins": mel_bins, "tokens": tokens}, tuple(findings))


def ctranslate2_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a `model.bin`, read from its headers.

    Raises:
        ValueError: if it is not a Whisper, or damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        _unpack(opened, "<I")
        name = _string(opened)
        if name != WHISPER_SPEC:
            raise ValueError(f"it holds {name!r}")
        _, count = _unpack(opened, "<II")
        shapes = {}
        for _ in range(count):
            variable = _string(opened)
            (rank,) = _unpack(opened, "<B")
            shapes[variable] = _unpack(opened, f"<{rank}I")
            _, num_bytes = _unpack(opened, "<BI")
            opened.seek(num_bytes, os.SEEK_CUR)
            if opened.tell() > size:
                raise ValueError(f"it ends within {variable}")
    return shapes


def _examine_openai(file: Path) -> ConvertedModel:
    again = "write it again: scripts/export.py formats=[openai]"
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        sizes, state = dict(content["dims"]), content["model_state_dict"]
        true = {"n_mels": state["encoder.conv1.weight"].shape[1]}
        true["n_vocab"] = state["decoder.token_embedding.weight"].shape[0]
    except (KeyError, TypeError, AttributeError, RuntimeError, OSError, pickle.UnpicklingError) as e:
        words = (str(e).splitlines() or [type(e).__name__])[0]
        fault = Finding("weights-missing", f"no checkpoint of openai-whisper: {words}", again, breaks=(OPENAI,))
        return ConvertedModel(file, "openai", {}, (fault,))
    wrong = [
        f"{key} is {sizes.get(key)}, the weights have {value}" for key, value in true.items() if sizes.get(key) != value
    ]
    findings = [Finding("shapes", "; ".join(wrong), again, breaks=(OPENAI,))] if wrong else []
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        found = f"{len(broken)} tensors hold NaN or infinity, such as {broken[0]}"
        findings.append(Finding("nonfinite", found, "take another checkpoint", breaks=(OPENAI,)))
    return ConvertedModel(file, "openai", {"mel_bins": true["n_mels"], "tokens": true["n_vocab"]}, tuple(findings))


def _examine_ggml(file: Path) -> ConvertedModel:
    again = "write it again: scripts/export.py formats=[ggml]"
    try:
        with file.open("rb") as opened:
            _unpack(opened, "<I")
            sizes = dict(zip((*SIZES, "type"), _unpack(opened, f"<{len(SIZES) + 1}i"), strict=True))
            filters = _unpack(opened, "<2i")
    except (struct.error, ValueError) as e:
        fault = Finding("weights-missing", f"it ends within its head: {e}", again, breaks=(WHISPER_CPP,))
        return ConvertedModel(file, "ggml", {}, (fault,))
    findings = []
    if filters[0] != sizes["n_mels"]:
        found = f"the head names {sizes['n_mels']} mel bins, the filters are {filters[0]}"
        findings.append(Finding("mel-bins", found, again, breaks=(WHISPER_CPP,)))
    return ConvertedModel(file, "ggml", {"mel_bins": sizes["n_mels"], "tokens": sizes["n_vocab"]}, tuple(findings))


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<H")
    return file.read(length).rstrip(b"\0").decode()
