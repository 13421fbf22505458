"""Whisper as OpenAI lays it out: the names of its tensors, its sizes, and where its tokens stand.

OpenAI's package and whisper.cpp find the special tokens by the size of the vocabulary alone: 50,257 tokens of text,
then `<|endoftext|>` and the others in a fixed order, 51,865 in all, or 51,866 with Cantonese. A model with a
vocabulary of its own is moved there: each token by its name, text where it stands. Between the text and the special
tokens a gap is left, and every place in it holds the row of `<|startoflm|>`, a token that is in no label: so a place
in the gap is the likeliest only where that token would be, and greedy text is the same as before. It costs memory: a
vocabulary of 2,448 tokens becomes one of 51,866. Beams and thresholds see the gap's share of probability, which is
small but not none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase, WhisperConfig

from data.labels import special_id
from data.languages import LANGUAGE_CODES
from infer.export.widening import num_copies, widened
from infer.half import TIED_NAMES
from infer.weights import WEIGHTS_NAME

NUM_TEXT = 50_257
"""Tokens of text in a multilingual Whisper; `<|endoftext|>` has this id."""
NUM_ENGLISH = 51_864
"""Tokens of an English-only Whisper, the largest that OpenAI's code takes for one."""
NUM_TIMES = 1501
"""Of `<|0.00|>` to `<|30.00|>`."""
FILLER = "<|startoflm|>"
CONTROLS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
NAMES = (
    ("model.", ""),
    (".layers.", ".blocks."),
    (".self_attn_layer_norm.", ".attn_ln."),
    (".encoder_attn_layer_norm.", ".cross_attn_ln."),
    (".final_layer_norm.", ".mlp_ln."),
    (".self_attn.", ".attn."),
    (".encoder_attn.", ".cross_attn."),
    (".q_proj.", ".query."),
    (".k_proj.", ".key."),
    (".v_proj.", ".value."),
    (".out_proj.", ".out."),
    (".fc1.", ".mlp.0."),
    (".fc2.", ".mlp.2."),
    ("encoder.layer_norm.", "encoder.ln_post."),
    ("decoder.layer_norm.", "decoder.ln."),
    (".embed_tokens.weight", ".token_embedding.weight"),
    (".embed_positions.weight", ".positional_embedding"),
)
"""From Hugging Face's spelling to OpenAI's, one after the other."""
EMBEDDING = "decoder.token_embedding.weight"


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a model come to stand."""

    rows: tuple[int, ...]
    """For each id of OpenAI's layout, the id that it has in the model."""
    num_text: int
    """Tokens of text; the ids below are the same in both."""

    @property
    def is_moved(self) -> bool:
        """Whether any token changes its id."""
        return self.rows != tuple(range(len(self.rows)))


def openai_name(name: str) -> str:
    """Return OpenAI's name of a tensor that Hugging Face's Whisper calls `name`."""
    for theirs, ours in NAMES:
        name = name.removeprefix(theirs) if theirs == "model." else name.replace(theirs, ours)
    return name


def openai_sizes(config: WhisperConfig, layout: Layout) -> dict[str, int]:
    """Return the fields of OpenAI's `ModelDimensions`, in their order."""
    copies = num_copies(config)
    return {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model * copies,
        "n_audio_head": config.encoder_attention_heads * copies,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": len(layout.rows),
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model * copies,
        "n_text_head": config.decoder_attention_heads * copies,
        "n_text_layer": config.decoder_layers,
    }


def openai_layout(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Layout:
    """Return where the tokens go.

    Args:
        tokenizer: of the model.
        vocab_size: rows of the model's embedding.

    Raises:
        ValueError: if there are more tokens of text than OpenAI's layout has room for, or a control token is missing.
    """
    end_id = special_id(tokenizer, "<|endoftext|>")
    added = tokenizer.get_added_vocab()
    if vocab_size == NUM_ENGLISH and end_id == NUM_TEXT - 1:
        return Layout(tuple(range(vocab_size)), end_id)
    num_text = min([end_id, *added.values()])
    if num_text > NUM_TEXT:
        raise ValueError(
            f"the tokenizer has {num_text} tokens of text, OpenAI's layout has room for {NUM_TEXT}; "
            "export formats=[hf] or formats=[onnx] instead"
        )
    if "<|nospeech|>" not in added and "<|nocaptions|>" in added:  # as tokenizers before large-v3 call it
        added = {**added, "<|nospeech|>": added["<|nocaptions|>"]}
    missing = [token for token in ("<|startoftranscript|>", *CONTROLS) if token not in added]
    if missing:
        raise ValueError(f"the tokenizer has no {', '.join(missing)}; OpenAI's code and whisper.cpp need them")
    filler = added[FILLER]
    languages = LANGUAGE_CODES if f"<|{LANGUAGE_CODES[-1]}|>" in added else LANGUAGE_CODES[:-1]
    times_id = added["<|notimestamps|>"] + 1
    rows = [
        *range(num_text),
        *[filler] * (NUM_TEXT - num_text),
        end_id,
        added["<|startoftranscript|>"],
        *(added.get(f"<|{code}|>", filler) for code in languages),
        *(added[token] for token in CONTROLS),
        *range(times_id, times_id + NUM_TIMES),
    ]
    if max(rows) >= vocab_size:
        raise ValueError(f"the tokenizer has ids up to {max(rows)}, the model {vocab_size} rows; they do not match")
    return Layout(tuple(rows), num_text)


def token_bytes(tokenizer: PreTrainedTokenizerBase, num_text: int) -> list[bytes]:
    """Return what each token of text stands for, in the order of the ids; an id without a token is empty."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    table = _byte_of_character()
    return [bytes(table[character] for character in by_id.get(i, "")) for i in range(num_text)]


def read_tensors(artefact_dir: Path, config: WhisperConfig, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor under OpenAI's name and in its shape, one in memory at a time, the embedding's rows moved."""
    copies = num_copies(config)
    index = artefact_dir / f"{WEIGHTS_NAME}.index.json"
    files = [artefact_dir / WEIGHTS_NAME]
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [artefact_dir / name for name in sorted(set(shards))]
    for file in files:
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a mapping)
                if name in TIED_NAMES:
                    continue
                tensor, theirs = opened.get_tensor(name), openai_name(name)
                if theirs == EMBEDDING and layout.is_moved:
                    tensor = tensor[torch.tensor(layout.rows)]
                yield theirs, widened(theirs, tensor, width=config.d_model, copies=copies)


@cache
def _byte_of_character() -> dict[str, int]:
    """Return the byte behind each character of a byte-level vocabulary.

    Source: openai/gpt-2 `encoder.py`, `bytes_to_unicode`.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
