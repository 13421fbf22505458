"""An artefact under ONNX Runtime, decoded with the same settings and the same search as in torch.

The graphs take the windows that the model was trained with. Shapes: `B` clips, `M` mel bins, `F` mel frames, `S`
encoder positions, `T` positions given, `V` vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, WhisperConfig

from data.labels import LabelBuilder
from data.languages import LANGUAGE_CODES
from data.windows import Windows, build_windows, full_windows
from infer.artefact import RECORD_NAME, load_tokenizer
from infer.backends.ctranslate2 import Shape
from infer.decoder_steps import DecoderSteps
from infer.decoding import EXTRA_TOKENS, MAX_TOKENS_PER_S, POSITIONS_PER_S, Decoded, DecodeSettings
from infer.detection import likeliest_languages
from infer.export.onnx import DECODER, DECODER_WITH_PAST, ENCODER, INSTALL
from infer.export.onnx_graphs import cache_names
from infer.plain_search import verify_plain_search
from infer.search import search
from infer.token_rules import TokenRules

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "directml": "DmlExecutionProvider"}
CACHES_PER_LAYER = 4  # keys and values of the tokens, keys and values of the encoder


@dataclass(frozen=True)
class OnnxArtefact:
    """A converted folder, loaded; stands where an `Artefact` does."""

    path: Path
    model: Shape
    encoder: Any
    """Like the next two an `onnxruntime.InferenceSession`."""
    decoder: Any
    decoder_with_past: Any
    tokenizer: PreTrainedTokenizerBase
    windows: Windows
    sha256: str
    """Of the weights that it was made of."""
    stored: str
    provider: str
    """As ONNX Runtime calls it."""
    reason: str
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]

    def describe(self) -> dict[str, Any]:
        """Return what stands beside every number."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "stored": self.stored,
            "compute": self.stored,
            "device": self.provider,
            "windows_s": list(self.windows.edges_s),
            "runtime": "onnxruntime",
        }


def load_onnx(
    folder: Path, artefact_dir: Path | None = None, *, provider: str = "cpu", num_threads: int = 0
) -> OnnxArtefact:
    """Load a converted folder.

    Args:
        folder: from `convert_to_onnx`.
        artefact_dir: whose tokenizer and configuration are read; None reads those in the folder, which are copies.
        provider: a name in `PROVIDERS`, or as ONNX Runtime calls it.
        num_threads: on a CPU; 0 lets ONNX Runtime choose.

    Raises:
        FileNotFoundError: if a graph is missing.
        RuntimeError: if ONNX Runtime is not installed, or was built without the provider.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise RuntimeError(f"ONNX Runtime is not installed ({e}); type {INSTALL}") from e
    name = PROVIDERS.get(provider, provider)
    available = onnxruntime.get_available_providers()
    if name not in available:  # it would go on with the CPU, in silence
        raise RuntimeError(f"provider={provider}: this ONNX Runtime offers {', '.join(available)}")
    for graph in (ENCODER, DECODER, DECODER_WITH_PAST):
        if not (folder / graph).is_file():
            raise FileNotFoundError(f"{folder} has no {graph}; type scripts/export.py formats=[onnx]")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    encoder, decoder, decoder_with_past = (
        onnxruntime.InferenceSession(str(folder / graph), options, providers=[name])
        for graph in (ENCODER, DECODER, DECODER_WITH_PAST)
    )
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    described = artefact_dir or folder
    generation = json.loads((described / "generation_config.json").read_text(encoding="utf-8"))
    return OnnxArtefact(
        path=folder,
        model=Shape(WhisperConfig.from_pretrained(str(described)), torch.device("cpu"), torch.float32),
        encoder=encoder,
        decoder=decoder,
        decoder_with_past=decoder_with_past,
        tokenizer=load_tokenizer(described),
        windows=build_windows(record["windows_s"]) if record.get("windows_s") else full_windows(),
        sha256=record["made_of"]["sha256"],
        stored=record["stored"],
        provider=name,
        reason="ONNX Runtime",
        suppress_tokens=tuple(generation.get("suppress_tokens") or ()),
        begin_suppress_tokens=tuple(generation.get("begin_suppress_tokens") or ()),
    )


class OnnxSteps:
    """A batch of rows on its way through the graphs; stands where `DecoderSteps` does in `search`."""

    def __init__(self, artefact: OnnxArtefact, hidden: np.ndarray[Any, Any]) -> None:
        """Remember the (B, S, D) states of the encoder; nothing is computed before the first tokens."""
        self._artefact = artefact
        self._hidden: np.ndarray[Any, Any] | None = hidden
        self._caches: list[np.ndarray[Any, Any]] = []
        self.length = 0

    def advance(self, tokens: Tensor) -> Tensor:
        """Give each row its next (B, T) tokens and return (B, T, V) logits."""
        ids = np.ascontiguousarray(tokens.numpy(), dtype=np.int64)
        self.length += ids.shape[1]
        if self._hidden is not None:
            feed = {"input_ids": ids, "encoder_hidden_states": self._hidden}
            logits, *self._caches = self._artefact.decoder.run(None, feed)
            self._hidden = None
            return torch.from_numpy(logits)
        graph = self._artefact.decoder_with_past
        names = [value.name for value in graph.get_inputs()]
        # The graph asks for what the model has; an encoder's cache that nobody reads was left out of it.
        given = dict(zip(_past_names(len(self._caches)), self._caches, strict=True))
        feed = {"input_ids": ids, **{name: given[name] for name in names if name in given}}
        logits, *longer = graph.run(None, feed)
        for i in range(len(self._caches) // CACHES_PER_LAYER):
            self._caches[CACHES_PER_LAYER * i : CACHES_PER_LAYER * i + 2] = longer[2 * i : 2 * i + 2]
        return torch.from_numpy(logits)

    def logits(self, reached: Tensor) -> Tensor:
        """Return (B, V) logits as they are: the graphs end there."""
        return reached

    def keep(self, rows: Tensor) -> None:
        """Leave only some rows, (B',) indices."""
        self._caches = [cache[rows.numpy()] for cache in self._caches]


class OnnxDecoder:
    """Decode batches of windows with ONNX Runtime; stands where a `Decoder` does."""

    def __init__(self, artefact: OnnxArtefact, *, artefact_dir: Path | None = None) -> None:
        """Look up the ids of the languages.

        Args:
            artefact: loaded.
            artefact_dir: not needed; CTranslate2's decoder takes it, too.
        """
        self.artefact = artefact
        self.label_builder = LabelBuilder(artefact.tokenizer, max_positions=artefact.model.config.max_target_positions)
        vocabulary = artefact.tokenizer.get_vocab()
        self.language_ids = {code: vocabulary[f"<|{code}|>"] for code in LANGUAGE_CODES if f"<|{code}|>" in vocabulary}

    @torch.inference_mode()
    def decode(
        self,
        input_features: Tensor,
        settings: DecodeSettings,
        *,
        languages: Sequence[str] | None = None,
        num_frames: Sequence[int] | None = None,
    ) -> list[Decoded]:
        """Decode a batch of windows, as `Decoder.decode` does.

        Args:
            input_features: (B, M, F) float32 on the CPU.
            settings: how to decode; greedy, without times.
            languages: language of each clip, in place of `settings.language`.
            num_frames: of times of words, which are refused here.

        Raises:
            ValueError: for settings of another search.
        """
        verify_plain_search(settings, "ONNX Runtime", has_beams=False)
        builder = self.label_builder
        features = np.ascontiguousarray(input_features.numpy(), dtype=np.float32)
        (hidden,) = self.artefact.encoder.run(None, {"input_features": features})
        wanted = [settings.language] * len(features) if languages is None else list(languages)
        steps = OnnxSteps(self.artefact, hidden)
        chosen, detected = list(wanted), [(code, math.nan) for code in wanted]
        if settings.detect_language or "auto" in wanted:
            first = torch.full((len(wanted), 1), builder.start_id)
            detected = likeliest_languages(steps.advance(first)[:, -1], self.language_ids)
            chosen = [code if want == "auto" else want for want, (code, _) in zip(wanted, detected, strict=True)]
        prefix = torch.tensor([builder.prefix_ids(code, settings.task, timestamps=False) for code in chosen])
        limit = settings.max_new_tokens or EXTRA_TOKENS + hidden.shape[1] * MAX_TOKENS_PER_S // POSITIONS_PER_S
        limit = min(limit, builder.max_positions - prefix.shape[1])
        rules = TokenRules(
            suppressed=self.artefact.suppress_tokens,
            suppressed_first=self.artefact.begin_suppress_tokens,
            end_id=builder.end_id,
            no_timestamps_id=builder.no_timestamps_id,
            timestamps=False,
            device=torch.device("cpu"),
        )
        logits = steps.advance(prefix[:, steps.length :])[:, -1]
        found = search(cast("DecoderSteps", steps), logits, rules, end_id=builder.end_id, limit=limit)
        return [
            Decoded(
                text=self.artefact.tokenizer.decode(said.tokens, skip_special_tokens=True).strip(),
                language=chosen[i],
                detected_language=detected[i][0],
                language_probability=detected[i][1],
                segments=(),
                is_cut=said.is_cut,
                tokens=said.tokens,
                avg_logprob=said.avg_logprob,
            )
            for i, said in enumerate(found)
        ]


def _past_names(num_caches: int) -> list[str]:
    return cache_names(num_caches // CACHES_PER_LAYER, "past", with_encoder=True)
