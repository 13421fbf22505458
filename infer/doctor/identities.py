"""Checks on numbers that must agree: ids of the tokenizer, of the configuration, and of what generation is told."""

from __future__ import annotations

from typing import Any

from infer.doctor.findings import (
    FASTER_WHISPER,
    ONNX,
    OPENAI,
    OURS,
    RUNTIMES,
    TRANSFORMERS,
    WHISPER_CPP,
    Finding,
)
from infer.doctor.folder import ModelFolder

CONFIG_IDS = {"decoder_start_token_id": "<|startoftranscript|>", "eos_token_id": "<|endoftext|>"}
GENERATION_IDS = {**CONFIG_IDS, "no_timestamps_token_id": "<|notimestamps|>", "prev_sot_token_id": "<|startofprev|>"}
TASKS = ("transcribe", "translate")


def check_vocabulary(folder: ModelFolder) -> Finding | None:
    """The model has the rows that the tokenizer asks for; large-v3 has one language more than its predecessors."""
    needed, size = folder.num_tokens_needed, (folder.config or {}).get("vocab_size")
    if needed is None or size is None or needed == size:
        return None
    is_off_by_one = abs(needed - size) == 1
    if needed < size and not is_off_by_one:
        return Finding(
            "vocabulary",
            f"the model has {size} tokens, the tokenizer uses {needed}; the rest was padded",
            "nothing to do for transformers; other runtimes count the languages by this number",
            troubles=(OPENAI, WHISPER_CPP),
        )
    has_yue = folder.token_id("<|yue|>") is not None
    why = (
        f"; the tokenizer is that of {'large-v3' if has_yue else 'a model before large-v3'}, so every id behind the "
        "languages is off by one"
        if is_off_by_one
        else ""
    )
    return Finding(
        "vocabulary",
        f"the model has {size} tokens, the tokenizer needs {needed}{why}",
        "base=FOLDER fix=true takes the tokenizer of the model that was fine-tuned",
        breaks=RUNTIMES,
        can_repair=True,
    )


def check_special_ids(folder: ModelFolder) -> Finding | None:
    """Start and end in `config.json` are those of the tokenizer."""
    wrong = _wrong_ids(folder, folder.config or {}, CONFIG_IDS)
    if not wrong:
        return None
    return Finding(
        "special-ids",
        f"config.json: {'; '.join(wrong)}",
        "fix=true takes the ids of the tokenizer",
        breaks=(TRANSFORMERS, ONNX, OURS),
        can_repair=True,
    )


def check_generation_ids(folder: ModelFolder) -> Finding | None:
    """Ids in `generation_config.json` are those of the tokenizer, and none of a language is missing."""
    generation = folder.generation
    if generation is None:
        return None
    wrong = _wrong_ids(folder, generation, GENERATION_IDS)
    languages = generation.get("lang_to_id") or {}
    tasks = generation.get("task_to_id") or {}
    wrong += [f"{token} is {found}, not {folder.token_id(token)}" for token, found in _unlike(folder, languages)]
    wrong += [
        f"{task} is {tasks[task]}, not {folder.token_id(f'<|{task}|>')}"
        for task in TASKS
        if task in tasks and tasks[task] != folder.token_id(f"<|{task}|>")
    ]
    if is_multilingual(folder):
        wrong += [
            f"no {name}"
            for name, value in (("lang_to_id", languages), ("task_to_id", tasks), *_single(generation))
            if not value
        ]
    if not wrong:
        return None
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return Finding(
        "generation-ids",
        f"generation_config.json: {'; '.join(wrong[:3])}{more}",
        "fix=true takes the ids of the tokenizer",
        breaks=(TRANSFORMERS, FASTER_WHISPER),
        troubles=(ONNX,),
        can_repair=True,
    )


def check_forced_ids(folder: ModelFolder) -> Finding | None:
    """Nothing forces a language or a task that the caller did not ask for."""
    forced = [
        f"{name} in {file}"
        for file, content in (("generation_config.json", folder.generation), ("config.json", folder.config))
        for name in ("forced_decoder_ids", "language", "task")
        if (content or {}).get(name)
    ]
    if not forced:
        return None
    return Finding(
        "forced-ids",
        f"{', '.join(forced)}: every clip is then decoded in one language, whatever is spoken",
        "fix=true leaves them out",
        breaks=(TRANSFORMERS,),
        troubles=(FASTER_WHISPER,),
        can_repair=True,
    )


def check_suppressed(folder: ModelFolder) -> Finding | None:
    """Suppressed tokens exist, and the end of the text is not among them."""
    size, end = (folder.config or {}).get("vocab_size"), folder.token_id("<|endoftext|>")
    wrong: list[str] = []
    for file, content in (("generation_config.json", folder.generation), ("config.json", folder.config)):
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            ids = [i for i in (content or {}).get(name) or [] if i != -1]
            outside = [i for i in ids if size is not None and not 0 <= i < size]
            if outside:
                wrong.append(f"{name} in {file} names {outside[0]}, the vocabulary has {size}")
            if name == "suppress_tokens" and end in ids:
                wrong.append(f"{name} in {file} holds {end}, <|endoftext|>: no text would ever end")
    if not wrong:
        return None
    return Finding(
        "suppress-lists",
        "; ".join(wrong),
        "fix=true leaves these ids out",
        breaks=(TRANSFORMERS, FASTER_WHISPER, ONNX, OURS),
        can_repair=True,
    )


def check_alignment_heads(folder: ModelFolder) -> Finding | None:
    """The heads that word times are read from are named, and the decoder has them."""
    generation, config = folder.generation, folder.config
    if generation is None or config is None:
        return None
    heads = generation.get("alignment_heads")
    num_layers, num_heads = config.get("decoder_layers", 0), config.get("decoder_attention_heads", 0)
    if heads:
        outside = [pair for pair in heads if not (0 <= pair[0] < num_layers and 0 <= pair[1] < num_heads)]
        if not outside:
            return None
        found = f"alignment_heads names {outside[0]}, the decoder has {num_layers} layers of {num_heads} heads"
    else:
        found = "no alignment_heads: word times are read from all heads of the later half, or not at all"
    return Finding(
        "alignment-heads",
        found,
        "base=FOLDER fix=true takes those of the model that was fine-tuned; without one, all heads of the later half",
        breaks=(FASTER_WHISPER, TRANSFORMERS) if heads else (),
        troubles=() if heads else (FASTER_WHISPER, TRANSFORMERS, OPENAI),
        can_repair=True,
    )


def is_multilingual(folder: ModelFolder) -> bool:
    """Whether the model knows several languages: its own word for it, or more than one language token."""
    said = (folder.generation or {}).get("is_multilingual")
    return bool(said) if said is not None else folder.token_id("<|de|>") is not None


def _wrong_ids(folder: ModelFolder, content: dict[str, Any], names: dict[str, str]) -> list[str]:
    wrong = []
    for name, token in names.items():
        found, true = content.get(name), folder.token_id(token)
        if isinstance(found, list):
            found = found[0] if len(found) == 1 else found
        if found is not None and true is not None and found != true:
            wrong.append(f"{name} is {found}, but {token} is {true}")
    return wrong


def _unlike(folder: ModelFolder, ids: dict[str, int]) -> list[tuple[str, int]]:
    return [(token, found) for token, found in ids.items() if folder.token_id(token) != found]


def _single(generation: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, generation.get(name)) for name in ("no_timestamps_token_id",)]
