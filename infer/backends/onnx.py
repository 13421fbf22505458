"""An artefact under ONNX Runtime, decoded by our own search and our own rules over its logits.

Only the arithmetic is ONNX Runtime's: `OnnxSteps` stands where `DecoderSteps` does.

Shapes: `B` clips, `M` mel bins, `F` mel frames, `S` positions, `T` tokens, `D` width, `V` vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, WhisperConfig

from data.labels import LabelBuilder
from data.languages import LANGUAGE_CODES
from data.windows import Windows, build_windows, full_windows
from infer.artefact import RECORD_NAME, load_tokenizer
from infer.backends.ctranslate2 import Shape
from infer.confidence import compression_ratio
from infer.decoding import EXTRA_TOKENS, MAX_TOKENS_PER_S, POSITIONS_PER_S, Decoded, DecodeSettings
from infer.export.onnx import DECODER, ENCODER, INSTALL, WITH_PAST, cache_names
from infer.reading import TokenReader
from infer.search import search
from infer.token_rules import TokenRules


@dataclass(frozen=True)
class OnnxArtefact:
    """A converted folder, loaded; stands where an `Artefact` does."""

    path: Path
    model: Shape
    encoder: Any
    """The three are `onnxruntime.InferenceSession`."""
    decoder: Any
    with_past: Any
    tokenizer: PreTrainedTokenizerBase
    windows: Windows
    sha256: str
    """Of the weights that it was made of."""
    stored: str
    compute: str
    reason: str
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]

    def describe(self) -> dict[str, Any]:
        """Return what stands beside every number."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "stored": self.stored,
            "compute": self.compute,
            "device": self.encoder.get_providers()[0],
            "windows_s": list(self.windows.edges_s),
            "runtime": "onnxruntime",
        }


def load_onnx(
    folder: Path, artefact_dir: Path, *, provider: str = "CPUExecutionProvider", num_threads: int = 0
) -> OnnxArtefact:
    """Load a converted folder.

    Args:
        folder: from `convert_to_onnx`.
        artefact_dir: whose tokenizer and configuration are read; the folder itself holds copies.
        provider: as ONNX Runtime calls it, such as `CUDAExecutionProvider` or `DmlExecutionProvider`.
        num_threads: on a CPU; 0 lets ONNX Runtime choose.

    Raises:
        RuntimeError: if ONNX Runtime is not installed, or was built without the provider.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise RuntimeError(f"ONNX Runtime is not installed ({e}); type {INSTALL}") from e
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise RuntimeError(f"ONNX Runtime has no {provider} here; it has {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    sessions = [
        onnxruntime.InferenceSession(str(folder / name), options, providers=[provider])
        for name in (ENCODER, DECODER, WITH_PAST)
    ]
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    generation = json.loads((artefact_dir / "generation_config.json").read_text(encoding="utf-8"))
    dtype = torch.float16 if record["stored"] == "fp16" else torch.float32
    return OnnxArtefact(
        path=folder,
        model=Shape(WhisperConfig.from_pretrained(str(artefact_dir)), torch.device("cpu"), dtype),
        encoder=sessions[0],
        decoder=sessions[1],
        with_past=sessions[2],
        tokenizer=load_tokenizer(artefact_dir),
        windows=build_windows(record["windows_s"]) if record.get("windows_s") else full_windows(),
        sha256=record["made_of"]["sha256"],
        stored=record["stored"],
        compute=record["stored"],
        reason=f"ONNX Runtime, {provider}",
        suppress_tokens=tuple(generation.get("suppress_tokens") or ()),
        begin_suppress_tokens=tuple(generation.get("begin_suppress_tokens") or ()),
    )


class OnnxSteps:
    """A batch of rows on its way through the decoder; has what `search` asks of `DecoderSteps`."""

    def __init__(self, artefact: OnnxArtefact, hidden: np.ndarray[Any, Any]) -> None:
        """Take (B, S, D) from the encoder."""
        self._artefact = artefact
        self._hidden = hidden
        self._caches: dict[str, np.ndarray[Any, Any]] = {}
        self.length = 0

    def advance(self, tokens: Tensor) -> Tensor:
        """Give each row its next tokens, (B, T), and return (B, T, V) logits."""
        ids = tokens.numpy()
        layers = self._artefact.model.config.decoder_layers
        if self.length == 0:
            fed = {"input_ids": ids, "encoder_hidden_states": self._hidden}
            logits, *caches = self._artefact.decoder.run(None, fed)
            names = cache_names(layers, "past_key_values")
        else:
            logits, *caches = self._artefact.with_past.run(None, {"input_ids": ids, **self._caches})
            names = cache_names(layers, "past_key_values", ("decoder",))
        self._caches.update(zip(names, caches, strict=True))
        self.length += ids.shape[1]
        return torch.from_numpy(logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return what `advance` returned: the output layer is in the graph."""
        return hidden

    def keep(self, rows: Tensor) -> None:
        """Leave only some rows, in the order given."""
        index = rows.numpy()
        self._hidden = self._hidden[index]
        self._caches = {name: cache[index] for name, cache in self._caches.items()}


class OnnxDecoder:
    """Decode batches of windows with ONNX Runtime; stands where a `Decoder` does."""

    def __init__(self, artefact: OnnxArtefact) -> None:
        """Look up the ids of the languages that this model knows."""
        self.artefact = artefact
        self.label_builder = LabelBuilder(artefact.tokenizer, max_positions=artefact.model.config.max_target_positions)
        self.reader = TokenReader(artefact.tokenizer)
        vocabulary = artefact.tokenizer.get_vocab()
        self.language_ids = {code: vocabulary[f"<|{code}|>"] for code in LANGUAGE_CODES if f"<|{code}|>" in vocabulary}
        self.no_speech_id = vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>"))

    def decode(
        self, input_features: Tensor, settings: DecodeSettings, *, languages: Sequence[str] | None = None
    ) -> list[Decoded]:
        """Decode a batch of windows, as `Decoder.decode` does.

        Args:
            input_features: (B, M, F) on the CPU, in the dtype of the folder.
            settings: how to decode; greedy.
            languages: language of each clip, in place of `settings.language`.

        Raises:
            ValueError: for settings that are not offered here.
        """
        _verify_settings(settings)
        (hidden,) = self.artefact.encoder.run(None, {"input_features": np.ascontiguousarray(input_features.numpy())})
        wanted = [settings.language] * len(hidden) if languages is None else list(languages)
        builder = self.label_builder
        steps = OnnxSteps(self.artefact, hidden)
        first = steps.advance(torch.full((len(hidden), 1), builder.start_id))[:, -1]
        detected = self._detect(first)
        if not settings.detect_language and "auto" not in wanted:
            detected = [(code, math.nan) for code in wanted]
        chosen = [code if want == "auto" else want for want, (code, _) in zip(wanted, detected, strict=True)]
        prefix = torch.tensor([builder.prefix_ids(code, settings.task, timestamps=False)[1:] for code in chosen])
        logits = steps.advance(prefix)[:, -1]
        limit = settings.max_new_tokens or EXTRA_TOKENS + hidden.shape[1] * MAX_TOKENS_PER_S // POSITIONS_PER_S
        limit = min(limit, builder.max_positions - prefix.shape[1] - 1)
        rules = TokenRules(
            suppressed=self.artefact.suppress_tokens,
            suppressed_first=self.artefact.begin_suppress_tokens,
            end_id=builder.end_id,
            no_timestamps_id=builder.no_timestamps_id,
            timestamps=False,
            device=torch.device("cpu"),
        )
        found = search(steps, logits, rules, end_id=builder.end_id, limit=limit)  # type: ignore[arg-type]
        silence = None if self.no_speech_id is None else first.softmax(-1)[:, self.no_speech_id].tolist()
        texts = [self.reader.text(said.tokens) for said in found]
        return [
            Decoded(
                text=texts[i],
                language=chosen[i],
                detected_language=detected[i][0],
                language_probability=detected[i][1],
                segments=(),
                is_cut=said.is_cut,
                tokens=said.tokens,
                avg_logprob=said.avg_logprob,
                no_speech_prob=None if silence is None else silence[i],
                compression_ratio=compression_ratio(texts[i]),
            )
            for i, said in enumerate(found)
        ]

    def _detect(self, logits: Tensor) -> list[tuple[str, float]]:
        codes = list(self.language_ids)
        probabilities, best = logits[:, list(self.language_ids.values())].softmax(-1).max(-1)
        return [(codes[i], p) for i, p in zip(best.tolist(), probabilities.tolist(), strict=True)]


def _verify_settings(settings: DecodeSettings) -> None:
    """Stop where a setting would have no effect."""
    unlike = {
        "num_beams": settings.num_beams > 1,
        "timestamps": settings.timestamps,
        "long_form": settings.long_form == "sequential",
        "temperature": settings.temperature != (0.0,),
        "no_speech_threshold": settings.no_speech_threshold is not None,
        "max_repetitions": settings.max_repetitions is not None,
    }
    for name, is_unlike in unlike.items():
        if is_unlike:
            raise ValueError(
                f"decoding.{name}={getattr(settings, name)} is not offered under ONNX Runtime; type decoding=greedy"
            )
