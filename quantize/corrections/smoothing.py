"""SmoothQuant: the outlier channels of an activation move into the weights that multiply it.

In transformers a few channels of a normalised activation are a hundred times the others, and one scale for all of
them leaves the others a few levels, while the weights are even. `X W = (X / s) (s W)` for any s > 0 per channel; with
`s_j = max|X_j| ** alpha / max|W_j| ** (1 - alpha)` alpha says how much of the difficulty moves.

Source: Xiao, Lin, Seznec, Wu, Demouth, Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", ICML 2023, equations 3 and 4.

Invariant: the model computes the same but for rounding. 1 / s goes into the scale and bias of the layer normalisation
where all that uses its output is smoothed; where something else does (the residual of a post-norm block), a Mul in
front of the smoothed layers takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from quantize.preparation.graph import Graph, attributes, make_node

NORMALISATIONS = {
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
}
"""The places of scale and bias among the inputs of each layer normalisation."""
SMOOTHED = ("MatMul", "Gemm", "Attention")
_LEAST = 1e-5
_MAX_FACTOR = 1e4


def can_be_smoothed(model: bytes) -> bool:
    """Whether a layer normalisation feeds a layer with weights of its own."""
    graph = Graph(onnx.load_from_string(model))
    return any(_layers(graph, node) for node in graph.by_operator(*NORMALISATIONS))


def smoothed(model: bytes, channel_maxima: Mapping[str, NDArray[np.float32]], *, alpha: float) -> bytes:
    """The model with every normalised activation smoothed by `alpha`, 0 to 1; itself where there is none.

    `channel_maxima` holds the greatest magnitude `[channels]` of each normalisation's output by tensor name
    (`Calibration.channel_maxima`).
    """
    graph = Graph(onnx.load_from_string(model))
    changed = False
    for node in list(graph.by_operator(*NORMALISATIONS)):
        layers, peaks = _layers(graph, node), channel_maxima.get(node.output[0])
        if not layers or peaks is None:
            continue
        factors = _factors(graph, layers, peaks, alpha)
        if factors is None:
            continue
        changed = True
        for layer in layers:
            weights = _weights(graph, layer).astype(np.float64)
            _by_input(layer, weights)[...] *= factors[:, None]
            layer.input[1] = graph.store(layer.input[1], weights)
        is_shared = len(_users(graph, node)) > len(layers) or node.output[0] in graph.pinned
        if is_shared or not _fold(graph, node, factors):
            _multiply(graph, layers, factors)
    return bytes(graph.proto().SerializeToString(deterministic=True)) if changed else model


def _factors(
    graph: Graph, layers: Sequence[NodeProto], peaks: NDArray[np.float32], alpha: float
) -> NDArray[np.float64] | None:
    rows = [np.abs(_by_input(layer, _weights(graph, layer))).max(axis=1) for layer in layers]
    if any(len(row) != len(peaks) for row in rows):
        return None
    weights = np.maximum(np.max(rows, axis=0), _LEAST).astype(np.float64)
    factors: NDArray[np.float64] = np.maximum(peaks.astype(np.float64), _LEAST) ** alpha / weights ** (1.0 - alpha)
    return factors.clip(1.0 / _MAX_FACTOR, _MAX_FACTOR)


def _fold(graph: Graph, node: NodeProto, factors: NDArray[np.float64]) -> bool:
    """Put 1 / factors into the normalisation's own scale and bias. False where they are no constants."""
    places = [place for place in NORMALISATIONS[node.op_type] if place < len(node.input) and node.input[place]]
    arrays = {place: array for place in places if (array := graph.float_constant(node.input[place])) is not None}
    if NORMALISATIONS[node.op_type][0] not in arrays or len(arrays) != len(places):
        return False
    if any(array.shape != factors.shape for array in arrays.values()):
        return False
    for place, array in arrays.items():
        node.input[place] = graph.store(node.input[place], array.astype(np.float64) / factors)
    return True


def _multiply(graph: Graph, layers: Sequence[NodeProto], factors: NDArray[np.float64]) -> None:
    """Put 1 / factors in front of the layers: one Mul for all that take the same tensor."""
    results: dict[str, str] = {}
    for layer in layers:
        tensor = layer.input[0]
        if tensor not in results:
            results[tensor] = graph.new_name(f"{tensor}/smoothed")
            inverse = graph.store(f"{tensor}/smoothing", 1.0 / factors)
            name = f"{tensor}/smoothing"
            graph.replace([], [make_node("Mul", [tensor, inverse], [results[tensor]], name=name)])
    for layer in layers:
        layer.input[0] = results[layer.input[0]]
    graph.replace([], [])


def _layers(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """The layers that multiply the normalised activation with constant weights of their own, seen through Reshapes."""
    return [user for user in _users(graph, node) if _can_take_factors(graph, user)]


def _users(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """All that uses the normalised activation; a Reshape that keeps the last axis is not a user, but passes it on."""
    pending, users = [node.output[0]], []
    while pending:
        tensor = pending.pop()
        for user in graph.consumers(tensor):
            if _keeps_channels(graph, node, user) and user.output[0] not in graph.pinned:
                pending.append(user.output[0])
            else:
                users.append(user)
    return users


def _keeps_channels(graph: Graph, node: NodeProto, user: NodeProto) -> bool:
    scale = graph.float_constant(node.input[NORMALISATIONS[node.op_type][0]])
    shape = graph.constant(user.input[1]) if user.op_type == "Reshape" else None
    return scale is not None and shape is not None and shape.size > 0 and int(shape.reshape(-1)[-1]) == scale.size


def _can_take_factors(graph: Graph, user: NodeProto) -> bool:
    if user.op_type not in SMOOTHED or list(user.input).count(user.input[0]) != 1 or attributes(user).get("transA", 0):
        return False
    weights = graph.float_constant(user.input[1])
    return weights is not None and weights.ndim == 2 and len(graph.consumers(user.input[1])) == 1


def _weights(graph: Graph, layer: NodeProto) -> NDArray[np.float32]:
    # `_layers` saw that they are there
    return cast("NDArray[np.float32]", graph.float_constant(layer.input[1]))


def _by_input(layer: NodeProto, weights: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.float64]:
    """The weights as `[inputs, outputs]`, a view."""
    view: NDArray[np.float64] = weights.T if attributes(layer).get("transB", 0) else weights  # type: ignore[assignment]
    return view
