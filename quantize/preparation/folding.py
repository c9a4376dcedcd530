"""What does not depend on the samples is computed once, and what computes nothing is dropped.

Values are computed by ONNX Runtime itself, unoptimised, so that a folded value is the one it would have computed:
constants from constants (also int8 weights behind DequantizeLinear, which ONNX Runtime never folds and which keep
convolutions off its blocked kernels), and what depends on the batch alone by running the model at several batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from quantize.preparation.equality import id_limit, made_up_inputs, open_session, same_shape
from quantize.preparation.graph import STANDARD_DOMAINS, Graph, attributes, has_subgraph, make_node

MAX_FOLDED_BYTES = 256 * 1024 * 1024
MAX_GROWTH = 8
_FREE_GROWTH_BYTES = 1024 * 1024
_BATCHES = (2, 3, 5)
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_NEUTRAL = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}


def fold_constants(graph: Graph) -> int:
    """Store what nodes make of constants alone. Returns how many nodes went."""
    before = len(graph.nodes)
    for node in graph.by_operator("Identity"):
        # exporters let equal weights share one constant: a copy of each would only make the file larger
        if graph.is_constant(node.input[0]):
            graph.bypass(node)
    folded = _closure(graph, sources=())
    frontier = _frontier(graph, folded)
    values = open_session(_model_of(graph, folded, frontier), optimised=False).run(frontier, {}) if frontier else []
    for name, value in zip(frontier, values, strict=True):
        _keep(graph, name, value)
    graph.tidy()
    return before - len(graph.nodes)


def fold_shapes(graph: Graph) -> int:
    """Store what nodes make of the shapes of tensors, where that is the same for every batch.

    A target of Reshape in which only one number follows the batch gets -1 there. Returns how many nodes went.
    """
    folded = _closure(graph, sources=("Shape", "Size"))
    frontier = [name for name in _frontier(graph, folded) if not graph.is_constant(name)]
    if not frontier:
        return 0
    before = len(graph.nodes)
    runs = _values_by_batch(graph, frontier)
    for name, *values in zip(frontier, *runs, strict=True):
        if all(np.array_equal(values[0], value) for value in values[1:]):
            _keep(graph, name, values[0])
            continue
        target = _target_with_one_unknown(values)
        for node in list(graph.consumers(name)):
            if target is not None and node.op_type == "Reshape" and node.input[1] == name:
                graph.set_inputs(node, [node.input[0], graph.store(f"{name}_folded", target)])
    graph.tidy()
    return before - len(graph.nodes)


def drop_no_ops(graph: Graph) -> int:
    """Take away what hands its input on: Identity, Dropout, a Reshape or Transpose to what is there, times one.

    Neighbouring views (Reshape, Squeeze, Unsqueeze, Flatten) and Transposes become one. Returns how many went.
    """
    before = len(graph.nodes)
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            if graph.holds(node) and (_dropped(graph, node) or _merged(graph, node)):
                changed = True
    graph.tidy()
    return before - len(graph.nodes)


def _dropped(graph: Graph, node: NodeProto) -> bool:
    return _is_no_op(graph, node) and graph.bypass(node)


def _is_no_op(graph: Graph, node: NodeProto) -> bool:
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            training = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.array(False)
            return training is not None and not training.any() and not any(map(graph.consumers, node.output[1:]))
        case "Transpose":
            order = list(attributes(node).get("perm", ()))
            return bool(order) and order == sorted(order)
        case "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten":
            return same_shape(graph.shape(node.input[0]), graph.shape(node.output[0]))
        case "Mul" | "Div" | "Add" | "Sub":
            other = graph.float_constant(node.input[1])
            shape = graph.shape(node.input[0])
            if other is None or shape is None or other.size != 1 or other.ndim > len(shape):
                return False
            return float(other.item()) == _NEUTRAL[node.op_type]
    return False


def _merged(graph: Graph, node: NodeProto) -> bool:
    if node.op_type == "Transpose":
        first = graph.producer(node.input[0], "Transpose")
        if first is None or not attributes(first).get("perm") or not attributes(node).get("perm"):
            return False
        inner, outer = list(attributes(first)["perm"]), list(attributes(node)["perm"])
        order = [inner[axis] for axis in outer]
        merged = make_node("Transpose", [first.input[0]], node.output, name=node.name, perm=order)
        graph.replace([node], [merged])
        return True
    if node.op_type in _VIEWS:
        first = graph.producer(node.input[0], *_VIEWS)
        target = fixed_target(graph.shape(node.output[0]))
        if first is None or target is None:
            return False
        shape = graph.store(f"{node.output[0]}_shape", target)
        graph.replace([node], [make_node("Reshape", [first.input[0], shape], node.output, name=node.name)])
        return True
    return False


def fixed_target(shape: Sequence[int | None] | None) -> NDArray[np.int64] | None:
    """The target of a Reshape to `shape`, -1 for the one dimension that may vary; None when more do, or it is empty."""
    if shape is None or sum(size is None for size in shape) > 1 or 0 in shape:
        return None
    return np.array([-1 if size is None else size for size in shape], dtype=np.int64)


def _closure(graph: Graph, *, sources: Iterable[str]) -> list[NodeProto]:
    """The nodes whose inputs are constants, or made by such nodes or by operators of `sources`."""
    known = set(graph.constants())
    nodes = []
    starts = set(sources)
    for node in graph.nodes:
        if has_subgraph(node) or node.op_type in _RANDOM or node.domain not in STANDARD_DOMAINS:
            continue
        if node.op_type in starts or all(name in known for name in node.input if name):
            nodes.append(node)
            known.update(node.output)
    return nodes


def _frontier(graph: Graph, nodes: Sequence[NodeProto]) -> list[str]:
    """What other nodes use of what `nodes` make."""
    inside = {id(node) for node in nodes}
    made = [output for node in nodes for output in node.output if output and output not in graph.pinned]
    return [name for name in made if any(id(user) not in inside for user in graph.consumers(name))]


def _keep(graph: Graph, name: str, value: NDArray[Any]) -> None:
    maker = graph.producer(name)
    if maker is None or not isinstance(value, np.ndarray) or value.dtype == object:
        return
    fed = sum(graph.constants()[source].ByteSize() for source in maker.input if graph.is_constant(source))
    if value.nbytes > min(MAX_FOLDED_BYTES, max(_FREE_GROWTH_BYTES, MAX_GROWTH * fed)):
        return
    constant = graph.store(f"{name}_folded", value) if len(maker.output) > 1 else name
    if constant == name:
        graph.become_constant(name, value)
    else:
        graph.rewire(name, constant)


def _model_of(graph: Graph, nodes: Sequence[NodeProto], outputs: Sequence[str]) -> bytes:
    model = ModelProto()
    model.CopyFrom(graph.proto())
    del model.graph.node[:], model.graph.input[:], model.graph.output[:], model.graph.initializer[:]
    del model.graph.value_info[:]
    used = {name for node in nodes for name in node.input}
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensor for name, tensor in graph.constants().items() if name in used)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
    return bytes(model.SerializeToString())


def _values_by_batch(graph: Graph, names: Sequence[str]) -> list[list[NDArray[Any]]]:
    model = graph.proto()
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(bytes(model.SerializeToString()), optimised=False)
    limit = id_limit(graph)
    return [
        session.run(list(names), made_up_inputs(session, batch=batch, id_limit=limit, wide=False)) for batch in _BATCHES
    ]


def _target_with_one_unknown(values: Sequence[NDArray[Any]]) -> NDArray[np.int64] | None:
    if any(value.ndim != 1 or value.shape != values[0].shape for value in values):
        return None
    varies = np.array([len({int(value[place]) for value in values}) > 1 for place in range(len(values[0]))])
    if varies.sum() != 1 or (values[0][~varies] <= 0).any():
        return None
    return np.where(varies, -1, values[0]).astype(np.int64)
