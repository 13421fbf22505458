"""Sizes of files that are reckoned for more layers are those of the files themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TEXTS

from benchmarks.export_shapes import num_parameters, reckon_size
from data.windows import full_windows
from infer.artefact import write_artefact
from infer.export.ggml import convert_to_ggml
from infer.half import cast_to_half
from train.model import Geometry, ModelSettings, load_model


def ggml_bytes(folder: Path, tokenizer, stored: str, *, layers: int) -> int:
    geometry = Geometry(d_model=32, encoder_layers=layers, decoder_layers=layers, attention_heads=2, ffn_dim=128)
    model = load_model(ModelSettings("scratch", geometry=geometry), texts=TEXTS.values()).whisper
    artefact = write_artefact(
        folder / f"export-{layers}",
        cast_to_half(model.state_dict()),
        config=model.config,
        generation_config=model.generation_config,
        tokenizer=tokenizer,
        windows=full_windows(),
        record={},
    )
    return convert_to_ggml(artefact, folder / f"{layers}-{stored}.bin", stored=stored).stat().st_size


@pytest.mark.parametrize("stored", ["f16", "q8_0"])
def test_a_file_of_more_layers_is_as_large_as_was_reckoned(tokenizer, tmp_path: Path, stored: str):
    few, more, wanted = (ggml_bytes(tmp_path, tokenizer, stored, layers=n) for n in (2, 4, 6))
    assert reckon_size(("ggml", few), ("ggml", more), layers=4, wanted=6) == ("ggml", wanted)


def test_large_v3_has_the_parameters_that_openai_names():
    assert round(num_parameters(layers=32) / 1e6) == 1543  # 1550 M in openai/whisper `model-card.md`, rounded
