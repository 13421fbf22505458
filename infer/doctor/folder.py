"""A Whisper folder as it lies on the disk, read without building a model: so a broken one can be looked at, too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from infer.artefact import RECORD_NAME
from infer.weights import WEIGHTS_NAME

INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
PICKLED_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt")
TIMES = 1501  # tokens from <|0.00|> to <|30.00|>


class Weights(Mapping[str, Tensor]):
    """Tensors of a folder by name, read one at a time, from one safetensors file or from shards."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Remember which file holds which name."""
        self._files = dict(files)

    @classmethod
    def open(cls, folder: Path) -> Weights:
        """Look at the headers of a folder's weights.

        Raises:
            ValueError: if a file is damaged.
            FileNotFoundError: if there are none.
        """
        index = folder / INDEX_NAME
        if (folder / WEIGHTS_NAME).is_file():
            paths = [folder / WEIGHTS_NAME]
        elif index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            paths = [folder / name for name in sorted(set(names))]
        else:
            raise FileNotFoundError(f"{folder} has no {WEIGHTS_NAME}")
        files: dict[str, Path] = {}
        for path in paths:
            try:
                with safe_open(str(path), framework="pt") as file:
                    files |= dict.fromkeys(list(file.keys()), path)
            except (SafetensorError, OSError) as e:
                raise ValueError(f"{path.name} cannot be read: {e}") from e
        return cls(files)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(str(self._files[name]), framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        with safe_open(str(self._files[name]), framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())


@dataclass(frozen=True)
class ModelFolder:
    """What a folder holds; a part that is missing or cannot be read is None."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """`config.json`."""
        return self._json("config.json")

    @cached_property
    def generation(self) -> dict[str, Any] | None:
        """`generation_config.json`."""
        return self._json("generation_config.json")

    @cached_property
    def preprocessor(self) -> dict[str, Any] | None:
        """`preprocessor_config.json`, which every runtime but transformers 5 looks for."""
        return self._json("preprocessor_config.json")

    @cached_property
    def processor(self) -> dict[str, Any] | None:
        """The feature extractor's part of `processor_config.json`, which transformers 5 writes."""
        found = (self._json("processor_config.json") or {}).get("feature_extractor")
        return found if isinstance(found, dict) else None

    @cached_property
    def record(self) -> dict[str, Any]:
        """`mezzavoce.json`; empty for a folder that another tool wrote."""
        return self._json(RECORD_NAME) or {}

    @cached_property
    def vocabulary(self) -> dict[str, int] | None:
        """Token to id, of `tokenizer.json`, or of the older `vocab.json` and `added_tokens.json`."""
        whole = self._json("tokenizer.json")
        if whole is not None:
            words = whole.get("model", {}).get("vocab", {})
            added = whole.get("added_tokens", [])
            if isinstance(words, dict):
                return {**words, **{token["content"]: token["id"] for token in added}}
        words = self._json("vocab.json")
        return None if words is None else {**words, **(self._json("added_tokens.json") or {})}

    @cached_property
    def weights(self) -> Weights | None:
        """The tensors; None where `weights_fault` says why."""
        return self._opened[0]

    @property
    def weights_fault(self) -> str | None:
        """Why there are no weights, or None."""
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Weights | None, str | None]:
        try:
            return Weights.open(self.path), None
        except FileNotFoundError:
            pickled = [name for name in PICKLED_NAMES if (self.path / name).is_file()]
            return None, f"no {WEIGHTS_NAME}" + (f", only pickled weights, {', '.join(pickled)}" if pickled else "")
        except (ValueError, KeyError) as e:
            return None, str(e)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return (self.vocabulary or {}).get(token)

    @property
    def num_mel_bins(self) -> int | None:
        """Bins that the first convolution takes: of all places that name them, the one that cannot be wrong."""
        name = "model.encoder.conv1.weight"
        if self.weights is not None and name in self.weights:
            return self.weights.shape(name)[1]
        return None

    @property
    def num_tokens_needed(self) -> int | None:
        """Rows of the embedding that the tokenizer asks for: the times follow `<|notimestamps|>`."""
        last = self.token_id("<|notimestamps|>")
        return None if last is None else max(last + 1 + TIMES, 1 + max((self.vocabulary or {"": 0}).values()))

    def _json(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None
