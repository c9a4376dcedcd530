"""ONNX files for tests: small ones made on the spot, and the real MLPerf Tiny models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
_REPOSITORY = Path(__file__).resolve().parents[3]


def mlperf_tiny(name: str) -> Path:
    """A file of the MLPerf Tiny folder. Skips the test where the folder is absent."""
    folder = Path(os.environ.get("EDGEFLEET_MLPERF_TINY", _REPOSITORY.parent / "shared" / "mlperf_tiny"))
    path = folder / name
    if not path.is_file():
        pytest.skip(f"no MLPerf Tiny models: {path} is not there; set EDGEFLEET_MLPERF_TINY to their folder")
    return path


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = OPSET,
) -> Path:
    """Write a graph as an ONNX file."""
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def linear(path: Path, *, weight: float = 2.0, features: int = 3, classes: int = 2) -> Path:
    """scores [n, classes] = x [n, features] · weight · (0, 1, 2, …): the last class wins for a positive x."""
    matrix = np.tile(np.arange(classes, dtype=np.float32) * weight, (features, 1))
    return save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", features])],
        outputs=[helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes])],
        initializers=[numpy_helper.from_array(matrix, "w")],
    )


def identity(path: Path, element: int, shape: Sequence[int | str]) -> Path:
    """y = x, of any element type."""
    return save(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", element, list(shape))],
        outputs=[helper.make_tensor_value_info("y", element, list(shape))],
    )


def two_inputs(path: Path) -> Path:
    """total [n] = a [n] + b [n]."""
    return save(
        path,
        [helper.make_node("Add", ["a", "b"], ["total"])],
        inputs=[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("a", "b")],
        outputs=[helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n"])],
    )


def logarithm(path: Path) -> Path:
    """y = ln x, which is NaN for a negative and -inf for a zero."""
    return save(
        path,
        [helper.make_node("Log", ["x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
    )


def row_of_table(path: Path) -> Path:
    """y = row x of a table of two: any other x makes ONNX Runtime fail while running."""
    return save(
        path,
        [helper.make_node("Gather", ["table", "x"], ["y"], axis=0)],
        inputs=[helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        initializers=[numpy_helper.from_array(np.array([10.0, 20.0], dtype=np.float32), "table")],
    )
