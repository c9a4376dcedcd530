"""Small fp32 networks, built by hand from seeded numbers, each built to need one thing that quantization can do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Arrays = Mapping[str, NDArray[Any]]


def model_of(
    nodes: Sequence[NodeProto],
    constants: Arrays,
    *,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    opset: int = 17,
) -> bytes:
    """A model of float tensors; nodes are named after their first output."""
    for node in nodes:
        node.name = node.name or f"{node.op_type}:{node.output[0]}"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [
            numpy_helper.from_array(array if array.dtype == np.int64 else array.astype(np.float32), name)
            for name, array in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def image_samples(count: int, *, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    """`x` `[count, 3, 8, 8]`, smooth and with a mean that is not zero."""
    randomness = np.random.default_rng(seed)
    coarse = randomness.uniform(0, 1, size=(count, 3, 4, 4))
    return {"x": np.kron(coarse, np.ones((1, 1, 2, 2))).astype(np.float32)}


def convolutional(*, spread: float = 1.0, activation: str = "Relu", seed: int = 2) -> bytes:
    """x `[n, 3, 8, 8]`: Conv, depthwise Conv, pointwise Conv with an activation each, pool, Gemm, Softmax `[n, 5]`.

    `spread` is how many times wider the widest channel of the first two convolutions is than the narrowest; what it
    does to a channel the next layer undoes, so that every channel matters alike.
    """
    randomness = np.random.default_rng(seed)
    factors = np.geomspace(spread**-0.5, spread**0.5, 8)[randomness.permutation(8)]
    others = np.geomspace(spread**-0.5, spread**0.5, 8)[randomness.permutation(8)]
    first = randomness.normal(size=(8, 3, 3, 3)) * factors[:, None, None, None] / 3
    depthwise = randomness.normal(size=(8, 1, 3, 3)) * (others / factors)[:, None, None, None] / 2
    pointwise = randomness.normal(size=(16, 8, 1, 1)) / others[None, :, None, None] / 2
    constants = {
        "w1": first,
        "b1": randomness.normal(size=8) * factors * 0.3,
        "w2": depthwise,
        "b2": randomness.normal(size=8) * others * 0.3,
        "w3": pointwise,
        "b3": randomness.normal(size=16) * 0.1,
        "w4": randomness.normal(size=(5, 16)) / 2,
        "b4": randomness.normal(size=5) * 0.1,
        "zero": np.array(0.0),
        "six": np.array(6.0),
    }

    def active(source: str, result: str) -> NodeProto:
        bounds = ["zero", "six"] if activation == "Clip" else []
        return helper.make_node(activation, [source, *bounds], [result])

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        active("c1", "a1"),
        helper.make_node("Conv", ["a1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=8),
        active("c2", "a2"),
        helper.make_node("Conv", ["a2", "w3", "b3"], ["c3"]),
        active("c3", "a3"),
        helper.make_node("GlobalAveragePool", ["a3"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w4", "b4"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    if activation != "Clip":
        del constants["zero"], constants["six"]
    return model_of(nodes, constants, inputs={"x": ["n", 3, 8, 8]}, outputs={"scores": ["n", 5]})


def dense(sizes: Sequence[int] = (64, 48, 48, 10), *, spread: float = 1.0, seed: int = 3) -> bytes:
    """x `[n, sizes[0]]`: Gemms with ReLU between them, `y` `[n, sizes[-1]]`; `spread` as in `convolutional`."""
    randomness = np.random.default_rng(seed)
    constants, nodes, source, before = {}, [], "x", np.ones(sizes[0])
    for place, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        is_last = place == len(sizes) - 2
        after = np.ones(columns) if is_last else np.geomspace(spread**-0.5, spread**0.5, columns)
        after = randomness.permutation(after)
        constants[f"w{place}"] = randomness.normal(size=(rows, columns)) / np.sqrt(rows) / before[:, None] * after
        constants[f"b{place}"] = randomness.normal(size=columns) * 0.2 * after
        product = "y" if is_last else f"g{place}"
        nodes.append(helper.make_node("Gemm", [source, f"w{place}", f"b{place}"], [product]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [product], [f"r{place}"]))
        source, before = f"r{place}", after
    return model_of(nodes, constants, inputs={"x": ["n", sizes[0]]}, outputs={"y": ["n", sizes[-1]]})


def row_samples(count: int, columns: int, *, seed: int = 4) -> dict[str, NDArray[np.float32]]:
    """`x` `[count, columns]`, with a mean that is not zero."""
    return {"x": np.random.default_rng(seed).normal(0.5, 1.0, size=(count, columns)).astype(np.float32)}


def attention(
    *, outlier: float = 1.0, is_masked: bool = False, has_residual: bool = False, width: int = 32, seed: int = 5
) -> bytes:
    """x `[n, 6, width]`: layer normalisation, one head of attention, normalisation, two MatMuls, mean, `y` `[n, 4]`.

    Three channels of each normalisation are `outlier` times the others, and the weights that take them as much
    smaller. `is_masked` hides the last two positions with -inf; `has_residual` adds the normalised input to attention.
    """
    randomness = np.random.default_rng(seed)
    scale = np.ones(width)
    scale[[3, 11, 20]] = outlier

    def weights(columns: int) -> NDArray[np.float64]:
        return randomness.normal(size=(width, columns)) / np.sqrt(width)

    constants: dict[str, NDArray[Any]] = {
        "s1": scale,
        "t1": randomness.normal(size=width) * 0.1 * scale,
        "s2": scale,
        "t2": randomness.normal(size=width) * 0.1 * scale,
        "root": np.array(np.sqrt(width)),
        **{name: weights(width) / scale[:, None] for name in ("wq", "wk", "wv")},
        "wo": weights(width),
        "w1": weights(2 * width) / scale[:, None],
        "w2": randomness.normal(size=(2 * width, width)) / np.sqrt(2 * width),
        "w3": weights(4),
        "b3": randomness.normal(size=4),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "s1", "t1"], ["n1"], axis=-1),
        *[helper.make_node("MatMul", ["n1", f"w{name}"], [name]) for name in "qkv"],
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["qk"]),
        helper.make_node("Div", ["qk", "root"], ["scaled"]),
    ]
    source = "scaled"
    if is_masked:
        constants["mask"] = np.array([0, 0, 0, 0, -np.inf, -np.inf])
        nodes.append(helper.make_node("Add", ["scaled", "mask"], ["masked"]))
        source = "masked"
    nodes += [
        helper.make_node("Softmax", [source], ["attended"], axis=-1),
        helper.make_node("MatMul", ["attended", "v"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "wo"], ["projected"]),
        helper.make_node("Add", ["n1" if has_residual else "x", "projected"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "s2", "t2"], ["n2"], axis=-1),
        helper.make_node("MatMul", ["n2", "w1"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "w2"], ["narrow"]),
        helper.make_node("ReduceMean", ["narrow"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "w3", "b3"], ["y"]),
    ]
    return model_of(nodes, constants, inputs={"x": ["n", 6, width]}, outputs={"y": ["n", 4]})


def sequence_samples(count: int, *, width: int = 32, seed: int = 6) -> dict[str, NDArray[np.float32]]:
    """`x` `[count, 6, width]`."""
    return {"x": np.random.default_rng(seed).normal(size=(count, 6, width)).astype(np.float32)}
