"""Channels padded with zeros up to the block of ONNX Runtime's blocked convolution layout.

A convolution whose input channels are no multiple of the block (16 with AVX-512) reads the plain layout, so its input
is copied back first. With zero weights for channels that do not exist it reads the blocked layout. The work of
those channels is done anyway where the block is that wide; where it is not, it is new work: so this is an option.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from quantize.preparation.graph import Graph, attributes, make_node

_KEEPS_CHANNELS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "MaxPool", "AveragePool")


@dataclass(kw_only=True)
class _Run:
    """A Conv that makes channels, depthwise Convs that keep them, and the Conv that ends them."""

    first: NodeProto
    between: list[NodeProto] = field(default_factory=list)
    last: NodeProto | None = None


def pad_channels(graph: Graph, block: int) -> int:
    """Pad what runs from a Conv over depthwise Convs to another Conv. Returns how many convolutions got wider."""
    count = 0
    for first in graph.by_operator("Conv"):
        weights = graph.float_constant(first.input[1])
        if weights is None or attributes(first).get("group", 1) != 1 or weights.shape[0] % block == 0:
            continue
        run = _run_from(graph, first, weights.shape[0])
        if run is None or run.last is None:
            continue
        missing = -weights.shape[0] % block
        for conv in (first, *run.between):
            if conv.op_type == "Conv":
                _widen_outputs(graph, conv, missing)
                count += 1
        _widen_inputs(graph, run.last, missing)
    return count


def _run_from(graph: Graph, first: NodeProto, channels: int) -> _Run | None:
    run = _Run(first=first)
    name = first.output[0]
    while True:
        node = graph.sole_consumer(name)
        if node is None or node.input[0] != name:
            return None
        if node.op_type == "Conv":
            weights = graph.float_constant(node.input[1])
            if weights is None:
                return None
            group = attributes(node).get("group", 1)
            if group == 1:
                run.last = node
                return run
            if group != channels or weights.shape[0] != channels or weights.shape[1] != 1:
                return None
        elif node.op_type not in _KEEPS_CHANNELS:
            return None
        run.between.append(node)
        name = node.output[0]


def _widen_outputs(graph: Graph, conv: NodeProto, missing: int) -> None:
    weights = graph.float_constant(conv.input[1])
    if weights is None:
        return
    settings = attributes(conv)
    wider = np.pad(weights, [(0, missing), *[(0, 0)] * (weights.ndim - 1)])
    inputs = [conv.input[0], graph.store(f"{conv.input[1]}_padded", wider)]
    bias = graph.float_constant(conv.input[2]) if len(conv.input) > 2 else None
    if bias is not None:
        inputs.append(graph.store(f"{conv.input[2]}_padded", np.pad(bias, (0, missing))))
    if settings.get("group", 1) != 1:
        settings["group"] = len(wider)
    graph.replace([conv], [make_node("Conv", inputs, conv.output, name=conv.name, **settings)])


def _widen_inputs(graph: Graph, conv: NodeProto, missing: int) -> None:
    weights = graph.float_constant(conv.input[1])
    if weights is None:
        return
    wider = np.pad(weights, [(0, 0), (0, missing), *[(0, 0)] * (weights.ndim - 2)])
    inputs = [conv.input[0], graph.store(f"{conv.input[1]}_padded", wider), *conv.input[2:]]
    graph.replace([conv], [make_node("Conv", inputs, conv.output, name=conv.name, **attributes(conv))])
