"""An artefact under CTranslate2, decoded with the same settings as in torch.

CTranslate2's own Whisper pads to 30 s only in faster-whisper: its encoder takes the windows that the model was trained
with, and its search starts from the same prefix. Shapes: `B` clips, `M` mel bins, `F` mel frames, `S` positions.
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
from data.windows import Windows, build_windows, full_windows
from infer.artefact import RECORD_NAME, load_artefact, load_tokenizer
from infer.backends.ctranslate2_words import CTranslate2Aligner
from infer.decoding import EXTRA_TOKENS, MAX_TOKENS_PER_S, POSITIONS_PER_S, Decoded, Decoder, DecodeSettings
from infer.export.ctranslate2 import import_ctranslate2
from infer.plain_search import verify_plain_search
from infer.word_times import Alignment

PATIENCE = 4.0
"""Beams that must finish before the search stops, in multiples of `num_beams`.

CTranslate2's default of 1 stops as soon as that many have finished, and short wrong texts finish first: beam 5 then
lost letters in 13 of 200 short sentences that transformers reads right. With 4 all 200 texts are the same.
"""


@dataclass(frozen=True)
class Shape:
    """What a transcriber asks of a model: its sizes, and where and in what features are wanted."""

    config: WhisperConfig
    device: torch.device
    """Of the features; CTranslate2 moves them itself."""
    dtype: torch.dtype


@dataclass(frozen=True)
class CTranslate2Artefact:
    """A converted folder, loaded; stands where an `Artefact` does."""

    path: Path
    model: Shape
    runtime: Any
    """The `ctranslate2.models.Whisper`."""
    tokenizer: PreTrainedTokenizerBase
    windows: Windows
    sha256: str
    """Of the weights that it was made of."""
    stored: str
    compute: str
    """As CTranslate2 says, such as `int8_float32`."""
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
            "device": str(self.runtime.device),
            "windows_s": list(self.windows.edges_s),
            "runtime": "ctranslate2",
        }


def load_ctranslate2(
    folder: Path, artefact_dir: Path, *, compute_type: str, device: str = "cpu", num_threads: int = 0
) -> CTranslate2Artefact:
    """Load a converted folder.

    Args:
        folder: from `convert_to_ctranslate2`.
        artefact_dir: what it was made of; its configuration says which tokens are suppressed.
        compute_type: as CTranslate2 calls it, such as `float32` or `int8_float16`.
        device: `cpu` or `cuda`.
        num_threads: on a CPU; 0 lets CTranslate2 choose.

    Raises:
        RuntimeError: if CTranslate2 is not installed, or the device cannot compute so.
    """
    ctranslate2 = import_ctranslate2()
    try:
        runtime = ctranslate2.models.Whisper(
            str(folder), device=device, compute_type=compute_type, intra_threads=num_threads
        )
    except ValueError as e:  # it falls back in silence or refuses, by the type
        raise RuntimeError(f"CTranslate2 on {device} cannot compute in {compute_type}: {e}") from e
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    generation = json.loads((artefact_dir / "generation_config.json").read_text(encoding="utf-8"))
    return CTranslate2Artefact(
        path=folder,
        model=Shape(WhisperConfig.from_pretrained(str(artefact_dir)), torch.device("cpu"), torch.float32),
        runtime=runtime,
        tokenizer=load_tokenizer(artefact_dir),
        windows=build_windows(record["windows_s"]) if record.get("windows_s") else full_windows(),
        sha256=record["made_of"]["sha256"],
        stored=record["stored"],
        compute=str(runtime.compute_type),
        reason="CTranslate2",
        suppress_tokens=tuple(generation.get("suppress_tokens") or ()),
        begin_suppress_tokens=tuple(generation.get("begin_suppress_tokens") or ()),
    )


class CTranslate2Decoder:
    """Decode batches of windows with CTranslate2; stands where a `Decoder` does."""

    def __init__(self, artefact: CTranslate2Artefact, *, artefact_dir: Path) -> None:
        """Prepare the prefixes, and a detector of languages where CTranslate2 has none.

        Args:
            artefact: loaded.
            artefact_dir: what it was made of. CTranslate2 takes a model with a learnt vocabulary for English-only; the
                one decoder step that detects the language then runs in torch, over CTranslate2's encoder output.
        """
        self._ctranslate2 = import_ctranslate2()
        self.artefact = artefact
        self.label_builder = LabelBuilder(artefact.tokenizer, max_positions=artefact.model.config.max_target_positions)
        self._aligner = CTranslate2Aligner(artefact.runtime, artefact.tokenizer, self.label_builder)
        self._detector: Decoder | None = None
        if not artefact.runtime.is_multilingual:
            full = load_artefact(artefact_dir, compute="fp32")
            self._detector = Decoder(full.model, full.tokenizer)

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
            settings: how to decode.
            languages: language of each clip, in place of `settings.language`.
            num_frames: mel frames of each window that hold sound; only times of words need it.

        Raises:
            ValueError: for settings that CTranslate2's search does not have as ours has them.
        """
        verify_plain_search(settings, "CTranslate2", has_words=True)
        features = np.ascontiguousarray(input_features.numpy())
        view = self._ctranslate2.StorageView.from_array(features)
        num_positions = features.shape[2] // 2
        # CTranslate2 tells hidden states from features by their second size alone. In the one window that has as many
        # positions as there are mel bins it would encode the states once more, in silence; there it gets the features.
        is_ambiguous = num_positions == features.shape[1]
        hidden = None if is_ambiguous else self.artefact.runtime.encode(view, to_cpu=False)
        heard = view if hidden is None else hidden
        wanted = [settings.language] * len(features) if languages is None else list(languages)
        detected = self._detect(heard, settings, wanted, is_encoded=hidden is not None)
        chosen = [code if want == "auto" else want for want, (code, _) in zip(wanted, detected, strict=True)]
        prompts = [list(self.label_builder.prefix_ids(code, settings.task, timestamps=False)) for code in chosen]
        limit = self._token_limit(settings, num_positions, len(prompts[0]))
        results = self.artefact.runtime.generate(
            heard,
            prompts,
            beam_size=settings.num_beams,
            patience=PATIENCE if settings.num_beams > 1 else 1.0,
            max_length=2 * limit,  # it stops at half of this, as OpenAI's code at half of the positions
            suppress_blank=bool(self.artefact.begin_suppress_tokens),
            suppress_tokens=list(self.artefact.suppress_tokens),
        )
        alignments: list[Alignment | None] = [None] * len(results)
        if settings.word_times:
            sounding = [features.shape[2]] * len(results) if num_frames is None else list(num_frames)
            said = [result.sequences_ids[0] for result in results]
            alignments = self._aligner.align(heard, said, chosen, settings.task, sounding, num_positions)
        return [
            Decoded(
                text=self.artefact.tokenizer.decode(result.sequences_ids[0], skip_special_tokens=True).strip(),
                language=chosen[i],
                detected_language=detected[i][0],
                language_probability=detected[i][1],
                segments=(),
                is_cut=len(result.sequences_ids[0]) >= limit,
                alignment=alignments[i],
            )
            for i, result in enumerate(results)
        ]

    def _token_limit(self, settings: DecodeSettings, num_positions: int, prefix_length: int) -> int:
        wanted = settings.max_new_tokens or EXTRA_TOKENS + num_positions * MAX_TOKENS_PER_S // POSITIONS_PER_S
        return int(min(wanted, self.artefact.model.config.max_target_positions - prefix_length))

    def _detect(
        self, heard: Any, settings: DecodeSettings, wanted: Sequence[str], *, is_encoded: bool
    ) -> list[tuple[str, float]]:
        if not settings.detect_language and "auto" not in wanted:
            return [(code, math.nan) for code in wanted]
        if self._detector is not None:
            hidden = heard if is_encoded else self.artefact.runtime.encode(heard, to_cpu=True)
            on_cpu = hidden if hidden.device == "cpu" else hidden.to_device(self._ctranslate2.Device.cpu)
            states = np.array(on_cpu.to(self._ctranslate2.DataType.float32))
            return self._detector.detect_languages(torch.from_numpy(states))
        best = [ranked[0] for ranked in self.artefact.runtime.detect_language(heard)]
        return [(token[2:-2], float(probability)) for token, probability in best]
