"""The half copy: what would ship if training stopped now, built from the FP32 masters and scored through `infer`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.windows import Windows
from infer.artefact import Artefact, resolve_compute
from infer.encoder import WindowedWhisper
from infer.half import cast_to_half


class HalfCopy:
    """A Whisper whose weights passed through FP16, refreshed in place before each validation."""

    def __init__(
        self, whisper: WindowedWhisper, tokenizer: PreTrainedTokenizerBase, windows: Windows, *, device: torch.device
    ) -> None:
        """Remember the shape of the model; memory is taken at the first refresh."""
        self.config = copy.deepcopy(whisper.config)
        self.config.use_cache = True
        self.generation_config = copy.deepcopy(whisper.generation_config)
        self.tokenizer = tokenizer
        self.windows = windows
        self.device = device
        self._model: WindowedWhisper | None = None

    def refresh(self, state: Mapping[str, Tensor]) -> Artefact:
        """Cast FP32 weights to FP16 and return them as an artefact in memory, with the arithmetic of the real one.

        Args:
            state: name to FP32 tensor, adapters merged.

        Raises:
            RejectedError: if they do not fit FP16.
        """
        dtype, reason = resolve_compute("auto", self.device)
        if self._model is None:
            self._model = WindowedWhisper(copy.deepcopy(self.config))
            self._model.generation_config = self.generation_config
            self._model.to(self.device, dtype).eval()
        self._model.to(self.device)
        self._model.load_state_dict(cast_to_half(state), strict=False)
        self._model.tie_weights()
        return Artefact(
            path=Path("half copy"),
            model=self._model,
            tokenizer=self.tokenizer,
            windows=self.windows,
            sha256="",
            stored="float16",
            compute=str(dtype).removeprefix("torch."),
            reason=reason,
        )

    def park(self) -> None:
        """Leave the device to the training until the next refresh; the copy of large-v3 takes 2.9 GiB."""
        if self._model is not None and self.device.type != "cpu":
            self._model.to("cpu")
