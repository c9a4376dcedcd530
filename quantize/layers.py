"""The layers of a prepared model that can be quantized or left in float, each as one thing.

A layer is an operator with weights (Conv, Gemm, MatMul, ...) or one that computes on activations and costs a conversion
where its neighbours are of another type (Add, pooling, ...), with what is computed in the same breath: the bias, the
activation after it, and views of its result. To leave a layer in float all its `nodes` must be left in float:
between a Conv and its Relu a quantized tensor would stop ONNX Runtime from fusing the two.

Invariants: layers are in graph order, named after their main node, and no node is in two of them.
"""

from __future__ import annotations

import onnx
from msgspec import Struct
from onnx import NodeProto

from quantize.preparation.graph import Graph

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "LSTM", "GRU")
WEIGHTLESS = (
    "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Resize", "Gather", "Softmax", "Pad",
    "Sigmoid", "LeakyRelu", "HardSigmoid", "Where", "InstanceNormalization", "LayerNormalization",
)  # fmt: skip
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh")
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity")


class Layer(Struct, frozen=True, kw_only=True):
    """One layer: its name, its operator, how many numbers its weights are, and the nodes it consists of."""

    name: str
    operator: str
    weights: int
    nodes: tuple[str, ...]


def quantizable_layers(prepared: bytes) -> tuple[Layer, ...]:
    """The layers of a model that `quantize.preparation.prepare` made, in graph order."""
    graph = Graph(onnx.load_from_string(prepared))
    taken: set[str] = set()
    layers = []
    for node in graph.nodes:
        if node.op_type not in (*WEIGHTED, *WEIGHTLESS) or node.name in taken or _is_arithmetic_on_shapes(graph, node):
            continue
        nodes = [*_views_of_inputs(graph, node), node.name, *_fused_after(graph, node)]
        own = tuple(name for name in nodes if name not in taken)
        taken.update(own)
        layers.append(Layer(name=node.name, operator=node.op_type, weights=_weights(graph, node), nodes=own))
    return tuple(layers)


def _weights(graph: Graph, node: NodeProto) -> int:
    if node.op_type not in (*WEIGHTED, "Gather"):
        return 0
    arrays = [graph.constant(name) for name in node.input if graph.float_constant(name) is not None]
    # a bias is no weight: it stays in 32 bits whatever the layer becomes
    return sum(array.size for array in arrays if array is not None and array.ndim > 1)


def _views_of_inputs(graph: Graph, node: NodeProto) -> list[str]:
    """The views of the model's inputs that only this node looks at."""
    names: list[str] = []
    for source in node.input:
        chain: list[str] = []
        name = source
        while (view := graph.producer(name, *_VIEWS)) is not None and graph.sole_consumer(name) is not None:
            chain.append(view.name)
            name = view.input[0]
        if name in graph.inputs:
            names += chain[::-1]
    return names


def _fused_after(graph: Graph, node: NodeProto) -> list[str]:
    """The bias, the activation and the views that follow a node with nothing between them."""
    names: list[str] = []
    result = node.output[0]
    bias = graph.sole_consumer(result, "Add") if node.op_type == "MatMul" else None
    if bias is not None and any(graph.is_constant(name) for name in bias.input):
        names.append(bias.name)
        result = bias.output[0]
    activation = graph.sole_consumer(result, *_ACTIVATIONS)
    if activation is not None:
        names.append(activation.name)
        result = activation.output[0]
    while (view := graph.sole_consumer(result, *_VIEWS)) is not None and view.input[0] == result:
        names.append(view.name)
        result = view.output[0]
    return names


def _is_arithmetic_on_shapes(graph: Graph, node: NodeProto) -> bool:
    """Whether a node only counts: everything it uses comes from shapes and constants."""
    pending, seen = list(node.input), set()
    reached_shape = False
    while pending:
        name = pending.pop()
        if not name or name in seen or graph.is_constant(name):
            continue
        seen.add(name)
        maker = graph.producer(name)
        if maker is None:
            return False
        if maker.op_type in ("Shape", "Size"):
            reached_shape = True
        else:
            pending += maker.input
    return reached_shape
