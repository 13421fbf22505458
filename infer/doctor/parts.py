"""Checks on what a folder holds: the files, the number of mel bins, and hashes.

Each check is a function from the folder to a finding, or to None.
"""

from __future__ import annotations

from infer.artefact import RECORD_NAME
from infer.doctor.findings import FASTER_WHISPER, ONNX, OURS, RUNTIMES, TRANSFORMERS, WHISPER_CPP, Finding
from infer.doctor.folder import ModelFolder
from infer.weights import WEIGHTS_NAME, file_sha256

EXPORTED = tuple(runtime for runtime in RUNTIMES if runtime not in (TRANSFORMERS, OURS))
"""Runtimes that a converter has to write for."""
DEFAULT_MEL_BINS = 80  # what faster-whisper assumes where no file says it


def check_config(folder: ModelFolder) -> Finding | None:
    """`config.json` is there and describes a Whisper."""
    config = folder.config
    if config is not None and config.get("model_type") == "whisper":
        return None
    found = "config.json is missing or no JSON" if config is None else f"model_type is {config.get('model_type')!r}"
    return Finding("config", found, "copy config.json from the model that was fine-tuned", breaks=RUNTIMES)


def check_remote_code(folder: ModelFolder) -> Finding | None:
    """A model folder is data, never code."""
    if "auto_map" not in (folder.config or {}):
        return None
    return Finding(
        "remote-code",
        "config.json asks for code of its own (auto_map)",
        "fix=true leaves it out",
        breaks=(OURS,),
        troubles=(TRANSFORMERS,),
        can_repair=True,
    )


def check_weights_file(folder: ModelFolder) -> Finding | None:
    """There are weights in safetensors, and their headers can be read."""
    if folder.weights_fault is None:
        return None
    is_pickled = "pickled" in folder.weights_fault
    return Finding(
        "weights-missing",
        folder.weights_fault,
        "pickled weights are never loaded: save the model again with save_pretrained(..., safe_serialization=True)"
        if is_pickled
        else "copy the whole folder again",
        breaks=(*EXPORTED, OURS) if is_pickled else RUNTIMES,
        troubles=(TRANSFORMERS,) if is_pickled else (),
    )


def check_tokenizer(folder: ModelFolder) -> Finding | None:
    """`tokenizer.json` is there: faster-whisper otherwise takes the tokenizer of another model."""
    if folder.vocabulary is None:
        return Finding(
            "tokenizer-missing",
            "no tokenizer.json",
            "base=FOLDER fix=true copies it from the model that was fine-tuned",
            breaks=RUNTIMES,
            can_repair=True,
        )
    if folder.has("tokenizer.json"):
        return None
    return Finding(
        "tokenizer-missing",
        "vocab.json alone, no tokenizer.json",
        "fix=true writes tokenizer.json from vocab.json and merges.txt",
        breaks=(FASTER_WHISPER, OURS, ONNX),
        can_repair=True,
    )


def check_mel_bins(folder: ModelFolder) -> Finding | None:
    """The mel bins of both configurations are those that the first convolution takes."""
    true = folder.num_mel_bins
    if true is None:
        return None
    named = {
        "config.json": (folder.config or {}).get("num_mel_bins"),
        "preprocessor_config.json": (folder.preprocessor or {}).get("feature_size"),
        "processor_config.json": (folder.processor or {}).get("feature_size"),
    }
    wrong = {name: value for name, value in named.items() if value not in (None, true)}
    if not wrong:
        return None
    listed = ", ".join(f"{value} in {name}" for name, value in wrong.items())
    hits = {"config.json": RUNTIMES, "processor_config.json": (TRANSFORMERS,)}
    hit = {runtime for name in wrong for runtime in hits.get(name, (TRANSFORMERS, FASTER_WHISPER, ONNX))}
    return Finding(
        "mel-bins",
        f"{listed}, but the first convolution takes {true}",
        "fix=true writes the number that the weights have",
        breaks=tuple(runtime for runtime in RUNTIMES if runtime in hit),
        can_repair=True,
    )


def check_preprocessor(folder: ModelFolder) -> Finding | None:
    """`preprocessor_config.json` is there: transformers 5 no longer writes it, all others look for it."""
    if folder.has("preprocessor_config.json"):
        return None
    bins = folder.num_mel_bins or (folder.config or {}).get("num_mel_bins")
    is_default = bins == DEFAULT_MEL_BINS
    broken = () if is_default else (FASTER_WHISPER,)
    if folder.processor is None:
        broken = (TRANSFORMERS, *broken)
    return Finding(
        "preprocessor-missing",
        f"no preprocessor_config.json; faster-whisper then assumes {DEFAULT_MEL_BINS} mel bins, this model has {bins}",
        "fix=true writes it",
        breaks=broken,
        troubles=(FASTER_WHISPER, ONNX) if is_default else (ONNX,),
        can_repair=True,
    )


def check_generation_file(folder: ModelFolder) -> Finding | None:
    """`generation_config.json` is there: without it nobody knows the ids of languages and the alignment heads."""
    if folder.generation is not None:
        return None
    return Finding(
        "generation-missing",
        "no generation_config.json, or it is no JSON",
        "fix=true writes it from the tokenizer; base=FOLDER gives the suppress lists and alignment heads of the model "
        "that was fine-tuned",
        breaks=(TRANSFORMERS, FASTER_WHISPER),
        troubles=(OURS, ONNX, WHISPER_CPP),
        can_repair=True,
    )


def check_hashes(folder: ModelFolder) -> Finding | None:
    """Files are those whose hashes `mezzavoce.json` lists; a missing one is the business of its own check."""
    changed = [
        name
        for name, expected in folder.record.get("files", {}).items()
        if folder.has(name) and file_sha256(folder.path / name) != expected
    ]
    if not changed:
        return None
    what = "the weights changed" if WEIGHTS_NAME in changed else "files changed"
    return Finding(
        "hashes",
        f"{what} after the export: {', '.join(changed)} are not what {RECORD_NAME} lists",
        "copy the whole folder again; a folder that was changed on purpose is no longer the one that was scored",
        breaks=(OURS,),
        troubles=tuple(runtime for runtime in RUNTIMES if runtime != OURS),
    )
