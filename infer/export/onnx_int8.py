"""8 bits for the weights of ONNX graphs: matmuls by ONNX Runtime's own tool, and what that leaves in FP32 by ours.

Its tool quantises the matmuls with a matrix of their own, activations as they come. It leaves convolutions and tables
of positions in FP32, and stores the embedding with one scale for all tokens, from which the output layer is made anew
in FP32 at every token. Here each row has a scale, and the output layer multiplies in int8 as all others do.

Shapes: `V` vocabulary, `D` width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_VALUES = 1024
"""Smaller tensors stay in FP32."""
LARGEST = 127


def quantise_graphs(source: Path, folder: Path, names: Sequence[str], *, is_large: bool = False) -> None:
    """Write int8 graphs of FP32 graphs.

    Args:
        source: with the graphs; they are overwritten on the way.
        folder: another one, which is there.
        names: of the graphs.
        is_large: whether weights do not fit into a graph's own file.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in names:
        model = onnx.load(str(source / name))
        _quantise_rest(model)
        onnx.save_model(
            model, str(source / name), save_as_external_data=is_large, location=f"{name}.rest.data", size_threshold=1024
        )
        with _quiet():
            quantize_dynamic(
                str(source / name),
                str(folder / name),
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["MatMul", "Gemm"],
                use_external_data_format=is_large,
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back advice that does not hold here: fusions for speed, and a check on what is quantised already."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def quantise_rows(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and the (rows,) scales that they are multiplied with."""
    largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    scales = np.where(largest > 0, largest / LARGEST, 1.0).astype(np.float32)
    rounded = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1)))
    return np.clip(rounded, -LARGEST, LARGEST).astype(np.int8), scales


def _quantise_rest(model: Any) -> None:
    """Quantise, in place, the embedding with its output layer, and tables and filters that no matmul takes."""
    import onnx

    graph = model.graph
    for tensor in list(graph.initializer):
        users = [node for node in graph.node if tensor.name in node.input]
        is_small = len(tensor.dims) < 2 or np.prod(tensor.dims) < MIN_VALUES
        if is_small or tensor.data_type != onnx.TensorProto.FLOAT or any(_multiplies(node) for node in users):
            continue
        values, scales = quantise_rows(onnx.numpy_helper.to_array(tensor))
        names = f"{tensor.name}_int8", f"{tensor.name}_scales"
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            onnx.numpy_helper.from_array(v, n) for v, n in zip((values, scales), names, strict=True)
        )
        if {node.op_type for node in users} == {"Gather", "Transpose"}:
            for node in users:
                (_look_up if node.op_type == "Gather" else _project)(graph, node, *names)
        else:
            restored = onnx.helper.make_node("DequantizeLinear", list(names), [tensor.name], axis=0)
            graph.node.insert(0, restored)


def _multiplies(node: Any) -> bool:
    return node.op_type in ("MatMul", "Gemm")


def _look_up(graph: Any, node: Any, values: str, scales: str) -> None:
    """Take the rows of (V, D) int8 values and their scales in place of rows in FP32."""
    from onnx import TensorProto, helper, numpy_helper

    ids, found = node.input[1], node.output[0]
    axis = f"{found}_last"
    graph.initializer.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), axis))
    _replace(
        graph,
        node,
        [
            helper.make_node("Gather", [values, ids], [f"{found}_int8"], axis=0),
            helper.make_node("Cast", [f"{found}_int8"], [f"{found}_steps"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [scales, ids], [f"{found}_row_scales"], axis=0),
            helper.make_node("Unsqueeze", [f"{found}_row_scales", axis], [f"{found}_scales"]),
            helper.make_node("Mul", [f"{found}_steps", f"{found}_scales"], [found]),
        ],
    )


def _project(graph: Any, node: Any, values: str, scales: str) -> None:
    """Multiply hidden states with the transposed (V, D) int8 values, the states rounded as they come."""
    from onnx import TensorProto, helper

    transposed = node.output[0]
    (product,) = (user for user in graph.node if transposed in user.input)
    hidden, logits = product.input[0], product.output[0]
    rounded = [f"{logits}_{part}" for part in ("states", "state_scale", "state_zero")]
    _replace(graph, node, [helper.make_node("Transpose", [values], [transposed], perm=[1, 0])])
    _replace(
        graph,
        product,
        [
            helper.make_node("DynamicQuantizeLinear", [hidden], rounded),
            helper.make_node("MatMulInteger", [rounded[0], transposed, rounded[2]], [f"{logits}_sums"]),
            helper.make_node("Cast", [f"{logits}_sums"], [f"{logits}_steps"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [rounded[1], scales], [f"{logits}_scales"]),
            helper.make_node("Mul", [f"{logits}_steps", f"{logits}_scales"], [logits]),
        ],
    )


def _replace(graph: Any, node: Any, nodes: Sequence[Any]) -> None:
    """Put nodes in place of one; the order of a graph's nodes is that of their arithmetic."""
    index = next(i for i, other in enumerate(graph.node) if other is node or other == node)
    del graph.node[index]
    for i, new in enumerate(nodes):
        graph.node.insert(index + i, new)
