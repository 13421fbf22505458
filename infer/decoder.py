"""Whisper's decoder over a whole text at once, as training and scoring run it: no cache, and no wait for the device.

transformers asks the device whether positions are packed, once in each forward, so the host stands still until the
encoder has run. Here the positions are those of one text and the mask is causal, so nothing has to be asked.

Shapes: `B` clips, `T` label positions, `S` encoder positions, `D` width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.whisper.modeling_whisper import WhisperDecoder


class WholeDecoder(WhisperDecoder):
    """Whisper's decoder; same weights, same names. With a cache, as in generation, it is stock Whisper's."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return (B, T, D) hidden states.

        Args:
            input_ids: (B, T) int64.
            attention_mask: of the tokens; with one, or with any of the following, this is Whisper's own forward.
            encoder_hidden_states: (B, S, D).
            past_key_values: of generation.
            inputs_embeds: in place of tokens.
            position_ids: other than 0, 1, 2, ...
            use_cache: False is asked for by training.
            options: of Whisper, such as `output_hidden_states`.
        """
        is_whole = (
            use_cache is False
            and input_ids is not None
            and encoder_hidden_states is not None
            and all(value is None for value in (attention_mask, past_key_values, inputs_embeds, position_ids))
            and not any(options.values())
            and not (self.training and self.layerdrop > 0.0)
            and self.config._attn_implementation == "sdpa"
        )
        if not is_whole:
            outputs: BaseModelOutputWithPastAndCrossAttentions = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                use_cache=use_cache,
                **options,
            )
            return outputs
        assert input_ids is not None
        hidden = self.embed_tokens(input_ids) + self.embed_positions.weight[: input_ids.shape[1]]
        hidden = nn.functional.dropout(hidden, p=self.dropout, training=self.training)
        for layer in self.layers:
            hidden = layer(hidden, None, encoder_hidden_states, use_cache=False)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.layer_norm(hidden))
