"""Small fp32 networks, built by hand, each with a property a test is about."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def dense_classifier(weights: NDArray[np.float32], *, batch: int | str = "n", opset: int = 18) -> bytes:
    """`probabilities` = softmax(`x` @ `weights` + 0): x FP32 `[n, features]`, weights `[features, classes]`."""
    features, classes = weights.shape
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "weights", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, features])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, classes])],
        [
            numpy_helper.from_array(weights.astype(np.float32), "weights"),
            numpy_helper.from_array(np.zeros(classes, dtype=np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def fragile_classifier() -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A network that int8 ruins, and its samples: the class is the sign of a small number beside a huge one.

    Both share one activation scale, whose step is larger than the small number.
    """
    randomness = np.random.default_rng(3)
    small = randomness.choice([-1.0, 1.0], size=400)
    x = np.stack([randomness.uniform(-10_000, 10_000, size=400), small], axis=1).astype(np.float32)
    weights = np.array([[0.0, 0.0], [-4.0, 4.0]], dtype=np.float32)
    return dense_classifier(weights), {"x": x, "labels": (small > 0).astype(np.int64)}


def autoencoder() -> tuple[bytes, NDArray[np.float32]]:
    """A linear autoencoder of 32 numbers by 4, and samples `[300, 32]` that it nearly reconstructs."""
    randomness = np.random.default_rng(5)
    basis = np.linalg.qr(randomness.normal(size=(32, 4)))[0].astype(np.float32)
    x = randomness.normal(size=(300, 4)) @ basis.T + 0.1 * randomness.normal(size=(300, 32))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "down"], ["code"]),
            helper.make_node("MatMul", ["code", "up"], ["y"]),
        ],
        "autoencoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(basis, "down"), numpy_helper.from_array(np.ascontiguousarray(basis.T), "up")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString()), x.astype(np.float32)


def half_fragile_classifier() -> tuple[bytes, dict[str, NDArray[Any]]]:
    """The fragile network followed by two dense layers that int8 does no harm to, and its samples."""
    head, samples = fragile_classifier()
    randomness = np.random.default_rng(7)
    wide = np.abs(randomness.normal(size=(1, 64))).astype(np.float32)
    model = onnx.load_from_string(head)
    graph = model.graph
    del graph.node[1:]
    graph.node.extend(
        [
            helper.make_node("Gemm", ["logits", "spread", "spread_bias"], ["hidden"], name="spread"),
            helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
            helper.make_node("Gemm", ["positive", "gather", "gather_bias"], ["sums"], name="gather"),
            helper.make_node("Softmax", ["sums"], ["probabilities"], name="softmax", axis=1),
        ]
    )
    graph.node[0].name = "fragile"
    zeros = np.zeros((1, 64), dtype=np.float32)
    spread = np.concatenate([np.concatenate([wide, zeros], 1), np.concatenate([zeros, wide], 1)])
    graph.initializer.extend(
        [
            numpy_helper.from_array(spread, "spread"),
            numpy_helper.from_array(np.zeros(128, dtype=np.float32), "spread_bias"),
            numpy_helper.from_array(np.repeat(np.eye(2, dtype=np.float32), 64, axis=0) / 64, "gather"),
            numpy_helper.from_array(np.zeros(2, dtype=np.float32), "gather_bias"),
        ]
    )
    return bytes(model.SerializeToString()), samples


def integer_weights(model: bytes) -> list[NDArray[np.int8]]:
    """Every int8 weight that a model holds, without the zero points."""
    initializers = onnx.load_from_string(model).graph.initializer
    arrays = [numpy_helper.to_array(tensor) for tensor in initializers]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim >= 2]
