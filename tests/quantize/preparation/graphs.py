"""ONNX graphs written down in a line per operator, and what is asked of two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from quantize.preparation.equality import Reference
from quantize.preparation.graph import Graph

BATCH = "n"
Dims = Sequence[int | str]


def node(operator: str, inputs: str, outputs: str, **settings: Any) -> NodeProto:
    """A node without a name; tensors are separated by spaces."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **settings)


def model(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, NDArray[Any]] | None = None,
    *,
    x: Dims = (BATCH, 4),
    y: Dims | None = None,
    opset: int = 18,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
) -> bytes:
    """A model from `x` to `y`, whose shape is inferred where none is given."""
    given = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    stored = [numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in (constants or {}).items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, y)
    graph = helper.make_graph(list(nodes), "test", list(given), [result], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if y is None:
        made = onnx.shape_inference.infer_shapes(made, data_prop=True)
    return bytes(made.SerializeToString())


def rewritten(before: bytes, *rewrites: Callable[[Graph], int]) -> bytes:
    """`before` after some rewrites; fails unless the numbers stay."""
    graph = Graph.of_bytes(before)
    for rewrite in rewrites:
        rewrite(graph)
        graph.tidy()
        graph.infer_shapes()
    after = bytes(graph.proto().SerializeToString())
    assert Reference(before).difference(after) is None
    return after


def operators(content: bytes) -> dict[str, int]:
    """How many nodes there are of each operator."""
    return dict(Counter(each.op_type for each in onnx.load_from_string(content).graph.node))


def normal(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    """Standard normal fp32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    """int64 values."""
    return np.array(values, dtype=np.int64)
