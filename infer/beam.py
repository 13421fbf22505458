"""Beam search, through transformers' `generate`.

Shapes: `B` clips, `S` encoder positions, `D` width, `T` positions of the prefix.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

from infer.encoder import WindowedWhisper
from infer.search import Said
from infer.token_rules import MAX_INITIAL_TIMESTAMP


def beam_search(
    model: WindowedWhisper,
    hidden: Tensor,
    prefix: Tensor,
    *,
    num_beams: int,
    limit: int,
    end_id: int,
    no_timestamps_id: int,
    timestamps: bool,
    padding: Tensor | None = None,
) -> list[Said]:
    """Search with several hypotheses side by side; with one it is transformers' greedy search.

    Args:
        model: in evaluation mode; its generation config gives the suppress lists.
        hidden: (B, S, D) from the encoder.
        prefix: (B, T) ids that are given.
        num_beams: hypotheses.
        limit: most tokens.
        end_id: of the token that ends a text.
        no_timestamps_id: of `<|notimestamps|>`.
        timestamps: whether the rules for times hold.
        padding: (B,) positions at the beginning of each prefix that are no tokens; None if there are none.

    Returns:
        One result a clip, in order.
    """
    config = _config(model.generation_config, end_id)
    config.num_beams = num_beams
    config.max_length = prefix.shape[1] + limit
    further = {}
    if padding is not None:
        further["decoder_attention_mask"] = torch.arange(prefix.shape[1], device=prefix.device) >= padding[:, None]
    # The generate of Whisper pads every window to 30 s again; the one below it does not.
    output = GenerationMixin.generate(
        model,
        generation_config=config,
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        attention_mask=torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device),
        decoder_input_ids=prefix,
        logits_processor=_processors(model, prefix.shape[1], no_timestamps_id, timestamps=timestamps),
        **further,
    )
    rows = output.sequences[:, prefix.shape[1] :].tolist()
    if num_beams > 1:
        means = output.sequences_scores.tolist()
    else:
        steps = torch.stack(output.scores, dim=1).float().log_softmax(-1)
        chosen = output.sequences[:, prefix.shape[1] :, None]
        means = [
            float(total) / (_num_said(row, end_id))
            for total, row in zip(_sums(steps.gather(2, chosen)[..., 0], rows, end_id), rows, strict=True)
        ]
    return [_said(row, mean, end_id) for row, mean in zip(rows, means, strict=True)]


def _num_said(row: list[int], end_id: int) -> int:
    """Tokens that were chosen, the end among them."""
    return row.index(end_id) + 1 if end_id in row else len(row)


def _sums(logprobs: Tensor, rows: list[list[int]], end_id: int) -> list[float]:
    return [float(line[: _num_said(row, end_id)].sum()) for line, row in zip(logprobs, rows, strict=True)]


def _said(row: list[int], mean_logprob: float, end_id: int) -> Said:
    num_said = _num_said(row, end_id)
    is_cut = end_id not in row
    tokens = row if is_cut else row[: num_said - 1]
    return Said(tuple(tokens), mean_logprob * num_said, is_cut)


def _processors(
    model: WindowedWhisper, begin_index: int, no_timestamps_id: int, *, timestamps: bool
) -> LogitsProcessorList:
    config = model.generation_config
    device = model.device
    processors = LogitsProcessorList()
    if config.suppress_tokens:
        processors.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    if config.begin_suppress_tokens:
        processors.append(
            SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin_index, device=device)
        )
    if timestamps:
        timed = copy.deepcopy(config)
        timed.no_timestamps_token_id = no_timestamps_id
        timed.max_initial_timestamp_index = MAX_INITIAL_TIMESTAMP
        processors.append(WhisperTimeStampLogitsProcessor(timed, begin_index=begin_index))
    return processors


def _config(base: GenerationConfig | None, end_id: int) -> GenerationConfig:
    """Keep the ids, drop what would steer the search twice: we give prefix and processors ourselves."""
    config = GenerationConfig()
    if base is not None:
        config.pad_token_id = base.pad_token_id
        config.bos_token_id = base.bos_token_id
        config.decoder_start_token_id = base.decoder_start_token_id
    config.eos_token_id = end_id
    config.do_sample = False
    config.use_cache = True
    config.return_dict_in_generate = True
    config.output_scores = True
    return config
