"""A repaired copy of a folder: what can be read off the weights and the tokenizer is written anew, the rest is kept.

The given folder is never touched. The copy is written beside its place and moved there whole.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from infer.artefact import RECORD_NAME
from infer.doctor.examination import Examination
from infer.doctor.folder import INDEX_NAME, PICKLED_NAMES, ModelFolder
from infer.doctor.identities import CONFIG_IDS, GENERATION_IDS, TASKS, is_multilingual
from infer.half import TIED_NAMES
from infer.listening import later_half
from infer.weights import WEIGHTS_NAME, file_sha256

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "normalizer.json"),
)


@dataclass(frozen=True)
class _Work:
    """What a repair works on."""

    copy: Path
    base: Path | None
    masters: Mapping[str, Tensor] | None

    @property
    def folder(self) -> ModelFolder:
        """The copy as it is now."""
        return ModelFolder(self.copy)

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a JSON file of the copy."""
        file = self.copy / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        change(content)
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def repair(
    examination: Examination,
    target: Path,
    *,
    base: Path | None = None,
    masters: Mapping[str, Tensor] | None = None,
) -> tuple[str, ...]:
    """Write a repaired copy of an examined folder.

    Args:
        examination: of the folder.
        target: where the copy goes; it must not be there yet.
        base: the model that was fine-tuned, for what only it can know: tokenizer, suppress lists, alignment heads.
        masters: FP32 weights; where the stored ones are not them cast once, the copy is.

    Returns:
        Codes that were mended, in the order of the mending.

    Raises:
        ValueError: if nothing can be mended, the copy would lie inside the folder, or a place is taken.
        RuntimeError: if the copy cannot be written.
    """
    source = examination.path
    if target.exists():
        raise ValueError(f"{target} is there already; give another place, repaired=PATH")
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} lies in {source}, which stays as it is; give another place, repaired=PATH")
    codes = [finding.code for finding in examination.findings if finding.can_repair and finding.code in REPAIRS]
    codes = sorted(codes, key=list(REPAIRS).index)
    if not codes:
        raise ValueError(f"{source}: nothing that was found can be mended by writing files anew")
    temporary = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    mended = []
    try:
        # A pickle would travel on under a clean verdict; nothing of ours reads one.
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(*PICKLED_NAMES, ".*"))
        work = _Work(temporary, base, masters)
        for code in codes:
            if REPAIRS[code](work):
                mended.append(code)
        _renew_record(work, source, mended)
        os.replace(temporary, target)
    except OSError as e:
        raise RuntimeError(f"cannot write {target}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tuple(mended)


def _mend_tokenizer(work: _Work) -> bool:
    if work.folder.vocabulary is not None and not work.folder.has("tokenizer.json"):
        WhisperTokenizer.from_pretrained(str(work.copy), local_files_only=True).save_pretrained(str(work.copy))
        return True
    return _take_tokenizer_of_base(work)


def _take_tokenizer_of_base(work: _Work) -> bool:
    if work.base is None or not (work.base / "tokenizer.json").is_file():
        return False
    for name in TOKENIZER_FILES:
        (work.copy / name).unlink(missing_ok=True)
        if (work.base / name).is_file():
            shutil.copyfile(work.base / name, work.copy / name)
    return True


def _mend_remote_code(work: _Work) -> bool:
    work.edit("config.json", lambda config: config.pop("auto_map"))
    return True


def _mend_mel_bins(work: _Work) -> bool:
    bins = work.folder.num_mel_bins
    if bins is None:
        return False
    work.edit("config.json", lambda config: config.update(num_mel_bins=bins))
    return _write_processor(work, bins)


def _mend_preprocessor(work: _Work) -> bool:
    bins = work.folder.num_mel_bins or (work.folder.config or {}).get("num_mel_bins")
    return bins is not None and _write_processor(work, int(bins))


def _write_processor(work: _Work, bins: int) -> bool:
    extractor = WhisperFeatureExtractor(feature_size=bins)
    extractor.save_pretrained(str(work.copy))
    values = json.loads((work.copy / "preprocessor_config.json").read_text(encoding="utf-8"))
    work.edit("processor_config.json", lambda content: content.update(feature_extractor=values))
    work.edit("processor_config.json", lambda content: content.setdefault("processor_class", "WhisperProcessor"))
    return True


def _mend_config_ids(work: _Work) -> bool:
    folder = work.folder
    work.edit("config.json", lambda config: config.update(_ids(folder, CONFIG_IDS)))
    return True


def _mend_generation(work: _Work) -> bool:
    if work.folder.generation is None:
        found = {} if work.base is None else ModelFolder(work.base).generation or {}
        work.edit("generation_config.json", lambda content: content.update(copy.deepcopy(found)))
    _mend_generation_ids(work)
    return _mend_alignment_heads(work) if not (work.folder.generation or {}).get("alignment_heads") else True


def _mend_generation_ids(work: _Work) -> bool:
    folder = work.folder
    if folder.vocabulary is None:
        return False
    facts: dict[str, Any] = _ids(folder, GENERATION_IDS)
    multilingual = is_multilingual(folder)
    facts["is_multilingual"] = multilingual
    if multilingual:
        from data.languages import LANGUAGE_CODES

        codes = [code for code in LANGUAGE_CODES if folder.token_id(f"<|{code}|>") is not None]
        facts["lang_to_id"] = {f"<|{code}|>": folder.token_id(f"<|{code}|>") for code in codes}
        facts["task_to_id"] = {task: folder.token_id(f"<|{task}|>") for task in TASKS}
    work.edit("generation_config.json", lambda content: content.update(facts))
    return True


def _ids(folder: ModelFolder, names: Mapping[str, str]) -> dict[str, Any]:
    return {name: folder.token_id(token) for name, token in names.items() if folder.token_id(token) is not None}


def _mend_forced_ids(work: _Work) -> bool:
    for file in ("generation_config.json", "config.json"):
        if work.folder.has(file):
            work.edit(file, lambda c: [c.pop(name, None) for name in ("forced_decoder_ids", "language", "task")])
    return True


def _mend_suppressed(work: _Work) -> bool:
    size, end = (work.folder.config or {}).get("vocab_size", 0), work.folder.token_id("<|endoftext|>")

    def change(content: dict[str, Any]) -> None:
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            if content.get(name):
                is_end = end if name == "suppress_tokens" else None
                content[name] = [i for i in content[name] if i == -1 or (0 <= i < size and i != is_end)]

    for file in ("generation_config.json", "config.json"):
        if work.folder.has(file):
            work.edit(file, change)
    return True


def _mend_alignment_heads(work: _Work) -> bool:
    config = work.folder.config or {}
    layers, heads = config.get("decoder_layers", 0), config.get("decoder_attention_heads", 0)
    known = [] if work.base is None else (ModelFolder(work.base).generation or {}).get("alignment_heads") or []
    taken = known or later_half(layers, heads)
    work.edit("generation_config.json", lambda content: content.update(alignment_heads=taken))
    return True


def _mend_tie(work: _Work) -> bool:
    weights = work.folder.weights
    work.edit("config.json", lambda config: config.update(tie_word_embeddings=True))
    if weights is not None and set(TIED_NAMES) & set(weights):
        _rewrite(work, {name: weights[name] for name in weights if name not in TIED_NAMES})
    return True


def _mend_dtype(work: _Work) -> bool:
    weights = work.folder.weights
    assert weights is not None, "the check has read them"
    dtype = str(weights[next(iter(weights))].dtype).removeprefix("torch.")
    work.edit("config.json", lambda config: (config.pop("torch_dtype", None), config.update(dtype=dtype)))
    return True


def _mend_cast(work: _Work) -> bool:
    weights, masters = work.folder.weights, work.masters
    if weights is None or masters is None:
        return False
    _rewrite(
        work,
        {
            name: masters[name].detach().cpu().to(weights[name].dtype) if name in masters else weights[name]
            for name in weights
        },
    )
    return True


def _rewrite(work: _Work, tensors: Mapping[str, Tensor]) -> None:
    """Put new weights in place of all shards."""
    fresh = work.copy / f".new-{WEIGHTS_NAME}"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(fresh), metadata={"format": "pt"})
    for shard in work.copy.glob("model*.safetensors"):
        shard.unlink()
    (work.copy / INDEX_NAME).unlink(missing_ok=True)
    os.replace(fresh, work.copy / WEIGHTS_NAME)
    umask = os.umask(0)
    os.umask(umask)
    (work.copy / WEIGHTS_NAME).chmod(0o666 & ~umask)  # safetensors leaves its files readable by the owner alone


def _renew_record(work: _Work, source: Path, mended: list[str]) -> None:
    """List the hashes of the copy, and say that it is one; figures of the original are not those of the copy."""
    if not work.folder.has(RECORD_NAME):
        return
    files = {file.name: file_sha256(file) for file in sorted(work.copy.iterdir()) if file.name != RECORD_NAME}

    def change(record: dict[str, Any]) -> None:
        changed = record.get("files", {}).get(WEIGHTS_NAME) != files.get(WEIGHTS_NAME)
        for name in ("evaluation", "gate", *(("validation",) if changed else ())):
            record.pop(name, None)
        record.update(files=files, repaired={"from": source.name, "codes": mended})

    work.edit(RECORD_NAME, change)


REPAIRS: dict[str, Callable[[_Work], bool]] = {
    "tokenizer-missing": _mend_tokenizer,
    "vocabulary": _take_tokenizer_of_base,
    "remote-code": _mend_remote_code,
    "mel-bins": _mend_mel_bins,
    "preprocessor-missing": _mend_preprocessor,
    "special-ids": _mend_config_ids,
    "generation-missing": _mend_generation,
    "generation-ids": _mend_generation_ids,
    "forced-ids": _mend_forced_ids,
    "suppress-lists": _mend_suppressed,
    "alignment-heads": _mend_alignment_heads,
    "cast": _mend_cast,
    "tie": _mend_tie,
    "dtype": _mend_dtype,
}
"""In the order of the mending: ids are read off a tokenizer that is right by then."""
