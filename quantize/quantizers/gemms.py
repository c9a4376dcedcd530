"""Gemms as quantizers can take them: without factors, or as MatMul and Add for those that know MatMul alone.

`Y = alpha A B + beta C`, B transposed where it says so. ONNX Runtime's quantizers pass over alpha when they scale the
bias, so that a file with another alpha than 1 answers wrongly.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from quantize.preparation.graph import Graph, attributes, make_node


def with_plain_gemms(model: bytes) -> onnx.ModelProto:
    """The model with alpha and beta of each Gemm of constant weights in those constants, and 1 themselves."""
    graph = Graph(onnx.load_from_string(model))
    for node in graph.by_operator("Gemm"):
        settings, constants = attributes(node), _scaled(graph, node)
        if constants is None or (settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0):
            continue
        for place, array in enumerate(constants, start=1):
            node.input[place] = graph.store(node.input[place], array)
        kept = [attribute for attribute in node.attribute if attribute.name not in ("alpha", "beta")]
        del node.attribute[:]
        node.attribute.extend(kept)
    return graph.proto()


def without_gemms(model: bytes, *, excluded_nodes: Collection[str]) -> onnx.ModelProto:
    """The model with a MatMul of the same name, and an Add, in place of each Gemm of constant weights.

    A Gemm whose weights or bias are computed, whose A is transposed, or that is excluded stays as it is.
    """
    graph = Graph(onnx.load_from_string(model))
    for node in graph.by_operator("Gemm"):
        settings, constants = attributes(node), _scaled(graph, node)
        if constants is None or settings.get("transA", 0) or node.name in excluded_nodes:
            continue
        weights, *bias = constants
        matrix = weights.T if settings.get("transB", 0) else weights
        product = graph.new_name(f"{node.name}/product") if bias else node.output[0]
        new = [make_node("MatMul", [node.input[0], graph.store(node.input[1], matrix)], [product], name=node.name)]
        if bias:
            shift = graph.store(node.input[2], bias[0])
            new.append(make_node("Add", [product, shift], [node.output[0]], name=f"{node.name}/bias"))
        graph.replace([node], new)
    return graph.proto()


def _scaled(graph: Graph, node: NodeProto) -> list[NDArray[np.float32]] | None:
    """alpha B, and beta C where there is one; None where either is computed."""
    settings = attributes(node)
    names = [name for name in node.input[1:] if name]
    arrays = [graph.float_constant(name) for name in names]
    factors = (settings.get("alpha", 1.0), settings.get("beta", 1.0))
    scaled = [array * np.float32(factor) for array, factor in zip(arrays, factors, strict=False) if array is not None]
    return scaled if len(scaled) == len(names) else None
