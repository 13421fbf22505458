"""Three graphs over one file of weights: decoder and decoder with past have the same ones, which are stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WEIGHTS_FILE = "weights.onnx.data"
MIN_BYTES = 1024
"""Smaller tensors stay in their graph."""
ALIGNMENT = 4096
"""A page, so that ONNX Runtime can map a large tensor instead of reading it; source: onnx `external_data_helper.py`."""


def join_graphs(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Write graphs with their weights in one file beside them, each distinct tensor once.

    What the exporter tells about its own source lines goes: it weighs more than a tiny model.

    Args:
        source: with the graphs, their weights inside or beside them.
        folder: another one, which is there.
        names: of the graphs.
    """
    import onnx

    places: dict[str, tuple[int, int]] = {}
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        for name in names:
            model = onnx.load(str(source / name))
            _strip(model)
            for tensor in model.graph.initializer:
                data = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(data) < MIN_BYTES:
                    continue
                key = hashlib.sha256(data).hexdigest()
                if key not in places:
                    if len(data) >= ALIGNMENT:
                        weights.write(bytes(-weights.tell() % ALIGNMENT))
                    places[key] = (weights.tell(), len(data))
                    weights.write(data)
                _point_at(tensor, *places[key])
            (folder / name).write_bytes(model.SerializeToString(deterministic=True))


def _strip(model: Any) -> None:
    """Remove stack traces and shapes between nodes, in place; ONNX Runtime infers the latter."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")


def _point_at(tensor: Any, offset: int, length: int) -> None:
    """Let a tensor lie in the file, in place."""
    import onnx

    for data_field in ("raw_data", "float_data", "int32_data", "int64_data"):
        tensor.ClearField(data_field)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
