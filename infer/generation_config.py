"""What a model folder says of generation: ids and lists, and nothing of what a caller asks for."""

from __future__ import annotations

import copy

from transformers import GenerationConfig

KEPT_GENERATION_FIELDS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "max_length", "transformers_version", "_from_model_config"),
)
"""Of the fields that every `GenerationConfig` has; fields of Whisper's own, such as `lang_to_id`, are all kept."""


def clean_generation_config(generation_config: GenerationConfig) -> GenerationConfig:
    """Return a copy that knows ids and suppress lists, and nothing of what a caller asks for.

    Forced ids, language and task go, and so do settings of the search, such as a repetition penalty: `generate` fills
    in from here whatever it was not told, and a number would then not mean what stands beside it.
    """
    cleaned = copy.deepcopy(generation_config)
    for name, value in vars(GenerationConfig()).items():
        if name not in KEPT_GENERATION_FIELDS:
            setattr(cleaned, name, copy.deepcopy(value))
    for name in ("forced_decoder_ids", "language", "task"):
        if getattr(cleaned, name, None) is not None:
            setattr(cleaned, name, None)
    return cleaned
