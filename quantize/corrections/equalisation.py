"""Cross-layer equalisation: neighbouring layers share out their channels' ranges, and compute the same.

Where one scale serves a whole tensor, a channel a hundred times smaller than the widest keeps one or two levels. A
ReLU lets a factor through, `relu(s x) = s relu(x)` for s > 0, so channel i of a layer may be divided by s_i when the
next layer's weights for that channel are multiplied by it. With r1_i and r2_i the greatest magnitudes of the two,
`s_i = sqrt(r1_i / r2_i)` makes both sqrt(r1_i r2_i), which shares the loss of both tensors evenly.

Source: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.1 and appendix A (equations 7 to 9).

Invariants: only what commutes with a positive factor per channel may lie between the two layers. A Clip does so with
bounds at 0 and infinity only: ReLU6 cuts each channel at the same 6, whatever its factor, so such a chain is left
alone. Nothing but the second layer may see the first one's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from quantize.preparation.graph import Graph, attributes

MAX_ROUNDS = 20
"""Times over all pairs: in Conv - depthwise - Conv each pair undoes a little of the other."""
CONSTANT_CHANNEL = 1_000.0
"""A channel whose bias is so many times its weights is a constant. Its weights, next to nothing, must not decide its
factor: the constant would grow with them and take the activation's whole range (MobileNets have such channels)."""
_SETTLED = 1e-3
_MAX_FACTOR = 1e4
_POINTWISE = ("Relu", "LeakyRelu", "Clip")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers, by their nodes' names, the first one's channels being the second one's inputs."""

    first: str
    second: str


def pairs(model: bytes) -> tuple[Pair, ...]:
    """The pairs that can be equalised, in the graph's order."""
    return tuple(_pairs(Graph(onnx.load_from_string(model))))


def cross_layer_equalised(model: bytes) -> bytes:
    """The model with every pair of layers equalised; itself where there is none. Equal outputs but for rounding."""
    graph = Graph(onnx.load_from_string(model))
    found = list(_pairs(graph))
    if not found:
        return model
    nodes = {node.name: node for node in graph.nodes}
    weights = {
        name: _constant(graph, nodes[name].input[1]).astype(np.float64)
        for pair in found
        for name in (pair.first, pair.second)
    }
    biases = {
        pair.first: _constant(graph, nodes[pair.first].input[2]).astype(np.float64)
        for pair in found
        if len(nodes[pair.first].input) > 2 and nodes[pair.first].input[2]
    }
    for _ in range(MAX_ROUNDS):
        change = 0.0
        for pair in found:
            first, second = nodes[pair.first], nodes[pair.second]
            peaks = _peaks(_by_output(first, weights[pair.first]))
            if pair.first in biases:
                peaks = np.maximum(peaks, np.abs(biases[pair.first]) / CONSTANT_CHANNEL)
            factors = _factors(peaks, _peaks(_by_input(second, weights[pair.second])))
            _scale(_by_output(first, weights[pair.first]), 1.0 / factors)
            _scale(_by_input(second, weights[pair.second]), factors)
            if pair.first in biases:
                biases[pair.first] = biases[pair.first] / factors
            change = max(change, float(np.abs(np.log(factors)).max()))
        if change < _SETTLED:
            break
    for place, arrays in ((1, weights), (2, biases)):
        for name, array in arrays.items():
            nodes[name].input[place] = graph.store(nodes[name].input[place], array)
    return bytes(graph.proto().SerializeToString(deterministic=True))


def _factors(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    # a channel that one of the layers ignores has nothing to share out
    used = (first > 0) & (second > 0)
    ratio = np.divide(first, second, out=np.ones_like(first), where=used)
    return np.clip(np.sqrt(ratio), 1.0 / _MAX_FACTOR, _MAX_FACTOR)


def _peaks(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    peaks: NDArray[np.float64] = np.abs(rows).max(axis=tuple(range(1, rows.ndim)))
    return peaks


def _scale(rows: NDArray[np.float64], factors: NDArray[np.float64]) -> None:
    rows *= factors.reshape(-1, *[1] * (rows.ndim - 1))


def _by_output(node: NodeProto, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights as rows `[outputs, ...]`, a view."""
    if node.op_type == "Conv":
        return weights.reshape(len(weights), -1)
    return weights if attributes(node).get("transB", 0) else weights.T


def _by_input(node: NodeProto, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights as `[inputs, ...]`, a view."""
    if node.op_type != "Conv":
        return weights.T if attributes(node).get("transB", 0) else weights
    groups = int(attributes(node).get("group", 1))
    outputs, inputs = weights.shape[:2]
    if inputs == 1:
        return weights.reshape(groups, -1)
    if groups == 1:
        return weights.reshape(outputs, inputs, -1).transpose(1, 0, 2)
    raise ValueError("grouped, but not depthwise")  # `_pairs` lets none through


def _pairs(graph: Graph) -> Iterator[Pair]:
    for first in graph.by_operator("Conv", "Gemm"):
        if not _has_own_weights(graph, first):
            continue
        second = _next_layer(graph, first)
        if second is not None and _has_own_weights(graph, second) and _is_plain(graph, second):
            yield Pair(first=first.name, second=second.name)


def _next_layer(graph: Graph, first: NodeProto) -> NodeProto | None:
    between = _POINTWISE + (_POOLS if first.op_type == "Conv" else ())
    node = graph.sole_consumer(first.output[0], first.op_type, *between)
    while node is not None and node.op_type in between:
        if node.op_type == "Clip" and not _is_relu(graph, node):
            return None
        node = graph.sole_consumer(node.output[0], first.op_type, *between)
    return node


def _is_relu(graph: Graph, clip: NodeProto) -> bool:
    bounds = [graph.constant(name) if name else None for name in [*clip.input[1:], "", ""][:2]]
    if any(name and bound is None for name, bound in zip(clip.input[1:], bounds, strict=False)):
        return False
    low, high = bounds
    return low is not None and float(low) == 0.0 and (high is None or float(high) >= float(np.finfo(np.float32).max))


def _is_plain(graph: Graph, node: NodeProto) -> bool:
    """Whether the factors of its inputs can go into its weights."""
    if node.op_type == "Gemm":
        return not attributes(node).get("transA", 0)
    groups = int(attributes(node).get("group", 1))
    return groups == 1 or _constant(graph, node.input[1]).shape[1] == 1


def _has_own_weights(graph: Graph, node: NodeProto) -> bool:
    """Whether its weights, and its bias where it has one, are fp32 constants that no other node uses."""
    names = [name for name in node.input[1:] if name]
    return all(graph.float_constant(name) is not None and len(graph.consumers(name)) == 1 for name in names)


def _constant(graph: Graph, name: str) -> NDArray[np.float32]:
    # `_has_own_weights` saw that it is there
    return cast("NDArray[np.float32]", graph.float_constant(name))
