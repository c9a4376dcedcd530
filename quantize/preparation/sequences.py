"""Operators of transformers that exporters take apart, put together again: GELU and LayerNormalization.

ONNX Runtime would find most of them itself, but a quantizer looks at the graph before ONNX Runtime does and must not
put quantized tensors in the middle of them.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto

from quantize.preparation.graph import MICROSOFT, Graph, attributes, make_node

LAYER_NORMALIZATION_OPSET = 17
_NEAR = 1e-3


def fuse_gelu(graph: Graph) -> int:
    """x * (1 + erf(x / sqrt 2)) / 2 as Gelu (Hendrycks and Gimpel 2016, arXiv:1606.08415), the exact form."""
    count = 0
    for erf in graph.by_operator("Erf"):
        inner = graph.producer(erf.input[0], "Div", "Mul")
        source = None if inner is None else _scaled(graph, inner, math.sqrt(0.5))
        one_more = graph.sole_consumer(erf.output[0], "Add")
        if source is None or inner is None or one_more is None or _other_constant(graph, one_more, erf.output[0]) != 1:
            continue
        found = _half_product(graph, source, one_more)
        if found is None:
            continue
        nodes, result = found
        gelu = make_node("Gelu", [source], [result], name=erf.name, domain=MICROSOFT)
        graph.use_microsoft_operators()
        alone = graph.feeds_only(inner.output[0], erf)
        graph.replace([*([inner] if alone else []), erf, one_more, *nodes], [gelu])
        count += 1
    return count


def fuse_layer_normalization(graph: Graph) -> int:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis as LayerNormalization
    (Ba, Kiros and Hinton 2016, arXiv:1607.06450).
    """
    if graph.opset() < LAYER_NORMALIZATION_OPSET:
        return 0
    count = 0
    for division in graph.by_operator("Div"):
        centred, root = graph.producer(division.input[0], "Sub"), graph.producer(division.input[1], "Sqrt")
        if centred is None or root is None:
            continue
        mean = graph.producer(centred.input[1], "ReduceMean")
        source = centred.input[0]
        epsilon = _epsilon_of_variance(graph, root, centred.output[0])
        if mean is None or mean.input[0] != source or not _last_axis(graph, mean) or epsilon is None:
            continue
        times = graph.sole_consumer(division.output[0], "Mul")
        plus = None if times is None else graph.sole_consumer(times.output[0], "Add")
        if times is None or plus is None:
            continue
        names = [
            node.input[1] if node.input[0] == used else node.input[0]
            for node, used in ((times, division.output[0]), (plus, times.output[0]))
        ]
        size = (graph.shape(source) or (None,))[-1]
        arrays = [graph.float_constant(name) for name in names]
        if size is None or any(array is None or array.shape != (size,) for array in arrays):
            continue
        normalization = make_node(
            "LayerNormalization", [source, *names], plus.output, name=division.name, axis=-1, epsilon=epsilon
        )
        graph.replace([division, times, plus], [normalization])
        graph.tidy()
        count += 1
    return count


def _epsilon_of_variance(graph: Graph, root: NodeProto, centred: str) -> float | None:
    """The epsilon where `root` is sqrt(mean(centred ** 2) + epsilon), else None."""
    plus = graph.producer(root.input[0], "Add")
    if plus is None:
        return None
    place = 0 if graph.producer(plus.input[0], "ReduceMean") is not None else 1
    variance = graph.producer(plus.input[place], "ReduceMean")
    epsilon = graph.float_constant(plus.input[1 - place])
    if variance is None or epsilon is None or epsilon.size != 1 or not _last_axis(graph, variance):
        return None
    square = graph.producer(variance.input[0], "Pow", "Mul")
    if square is None or square.input[0] != centred:
        return None
    if square.op_type == "Mul":
        return float(epsilon.item()) if square.input[1] == centred else None
    exponent = graph.constant(square.input[1])
    return float(epsilon.item()) if exponent is not None and exponent.size == 1 and exponent.item() == 2 else None


def _last_axis(graph: Graph, mean: NodeProto) -> bool:
    settings = attributes(mean)
    axes = graph.constant(mean.input[1]) if len(mean.input) > 1 else np.array(settings.get("axes", []))
    shape = graph.shape(mean.input[0])
    if axes is None or axes.size != 1 or shape is None or not settings.get("keepdims", 1):
        return False
    return int(axes.item()) in (-1, len(shape) - 1)


def _other_constant(graph: Graph, node: NodeProto, used: str) -> float | None:
    """The single number that a node of two inputs combines `used` with, or None."""
    if len(node.input) != 2 or used not in node.input:
        return None
    value = graph.float_constant(node.input[1] if node.input[0] == used else node.input[0])
    return None if value is None or value.size != 1 else float(value.item())


def _scaled(graph: Graph, node: NodeProto, factor: float) -> str | None:
    """The tensor that `node` multiplies by about `factor`, or None."""
    place = 0 if graph.is_constant(node.input[1]) else 1
    number = _other_constant(graph, node, node.input[place])
    if not number or (node.op_type == "Div" and place == 1):
        return None
    by = 1 / number if node.op_type == "Div" else number
    return node.input[place] if abs(by - factor) < _NEAR * factor else None


def _half_product(graph: Graph, source: str, one_more: NodeProto) -> tuple[list[NodeProto], str] | None:
    """The nodes that make source * one_more / 2, in any of the orders exporters write it, and the tensor they make."""
    product = graph.sole_consumer(one_more.output[0], "Mul", "Div")
    if product is None:
        return None
    if _scaled(graph, product, 0.5) == one_more.output[0]:
        # x * ((1 + erf) / 2)
        last = graph.sole_consumer(product.output[0], "Mul")
        return ([product, last], last.output[0]) if last is not None and source in last.input else None
    if product.op_type != "Mul":
        return None
    other = product.input[1] if product.input[0] == one_more.output[0] else product.input[0]
    if other == source:
        # (x * (1 + erf)) / 2
        last = graph.sole_consumer(product.output[0], "Mul", "Div")
        halved = last is not None and _scaled(graph, last, 0.5) == product.output[0]
        return ([product, last], last.output[0]) if last is not None and halved else None
    # (x / 2) * (1 + erf)
    half = graph.producer(other, "Mul", "Div")
    if half is None or _scaled(graph, half, 0.5) != source or not graph.feeds_only(other, product):
        return None
    return [half, product], product.output[0]
