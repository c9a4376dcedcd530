"""Quantized and odd ONNX files for tests, made on the spot with seeded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.agent.runtime import onnx_files


def qdq_convolution(path: Path, *, channels: int = 32, seed: int = 3) -> Path:
    """y [n, channels, 8, 8] of x [n, 16, 8, 8]: a u8s8 QDQ convolution and ReLU that AVX2 kernels could saturate on."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (channels, 16, 3, 3)).astype(np.int8)
    scalars = {"x_scale": 1 / 255, "w_scale": 0.002, "y_scale": 0.02}
    initializers = [
        *(numpy_helper.from_array(np.array(value, np.float32), name) for name, value in scalars.items()),
        numpy_helper.from_array(np.array(0, np.uint8), "zero"),
        numpy_helper.from_array(np.array(0, np.int8), "w_zero"),
        numpy_helper.from_array(weights, "w"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"]),
        helper.make_node("Conv", ["xf", "wf"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "y_scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "y_scale", "zero"], ["y"]),
    ]
    return onnx_files.save(
        path,
        nodes,
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 8, 8])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels, 8, 8])],
        initializers=initializers,
    )


def deep_chain(path: Path, *, layers: int = 120) -> Path:
    """y = x through many small folded layers: slow to optimise, quick to load when that is done."""
    rng = np.random.default_rng(5)
    nodes, initializers, last = [], [], "x"
    for layer in range(layers):
        for name, array in (
            (f"a{layer}", (np.eye(8) + rng.normal(0, 0.01, (8, 8))).astype(np.float32)),
            (f"b{layer}", (np.eye(8) + rng.normal(0, 0.01, (8, 8))).astype(np.float32)),
        ):
            initializers.append(numpy_helper.from_array(array, name))
        nodes += [
            helper.make_node("MatMul", [f"a{layer}", f"b{layer}"], [f"w{layer}"]),
            helper.make_node("Identity", [f"w{layer}"], [f"v{layer}"]),
            helper.make_node("MatMul", [last, f"v{layer}"], [f"m{layer}"]),
            helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return onnx_files.save(
        path,
        nodes,
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        initializers=initializers,
    )


def mixing(path: Path, how: str) -> Path:
    """y [n, 3] of x [n, 3], where each row of y depends on other rows, or on chance."""
    scalars = {"axis": np.array(0, np.int64), "share": np.array(0.05, np.float32)}
    nodes = {
        "softmax over the rows": [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        "sum of the rows before": [helper.make_node("CumSum", ["x", "axis"], ["y"])],
        "a small share of the mean": [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Mul", ["mean", "share"], ["part"]),
            helper.make_node("Add", ["x", "part"], ["y"]),
        ],
        "chance": [helper.make_node("RandomUniformLike", ["x"], ["y"])],
        "nothing at all": [helper.make_node("Sub", ["x", "x"], ["y"])],
    }[how]
    used = {name for node in nodes for name in node.input}
    return onnx_files.save(
        path,
        nodes,
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        initializers=[numpy_helper.from_array(array, name) for name, array in scalars.items() if name in used],
    )


def with_external_weights(path: Path, *, weight: float, location: str = "weights.bin") -> Path:
    """y [n, 64] = x [n, 64] · weight, the weights in the file `location` beside the model."""
    matrix = numpy_helper.from_array(np.full((64, 64), weight, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [matrix],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def slow(path: Path, *, steps: int = 400, size: int = 256, rows: int | str = 256) -> Path:
    """y [rows, size] of x: matrix products one after another, tens of milliseconds or more for a run."""
    matrix = np.eye(size, dtype=np.float32)[::-1].copy()
    names = ["x", *(f"t{step}" for step in range(1, steps)), "y"]
    return onnx_files.save(
        path,
        [helper.make_node("MatMul", [names[step], "w"], [names[step + 1]]) for step in range(steps)],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, size])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, size])],
        initializers=[numpy_helper.from_array(matrix, "w")],
    )
