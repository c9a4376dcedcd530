"""Linear layers as Gemm on rows: the weights, the bias and what follows in one operator.

ONNX Runtime multiplies [n, t, d] by a matrix with MatMul and adds the bias by a node of its own, and it joins the
Add and LayerNormalization of a residual in a kernel that is several times slower than the two. On rows [n*t, d] the
product is a Gemm with its bias, and that joining does not happen.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto

from quantize.preparation.folding import fixed_target
from quantize.preparation.graph import MICROSOFT, Graph, attributes, make_node

_UNARY = {
    "Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu", "Softplus",
    "Clip", "Sqrt", "Exp", "Neg", "Abs",
}  # fmt: skip
_BINARY = {"Add", "Sub", "Mul", "Div", "Pow"}


def matmul_to_gemm(graph: Graph) -> int:
    """MatMul of rows by stored weights, and the Add of a stored bias after it, as one Gemm."""
    count = 0
    for node in graph.by_operator("MatMul"):
        shape, weights = graph.shape(node.input[0]), graph.float_constant(node.input[1])
        add = graph.sole_consumer(node.output[0], "Add")
        if shape is None or len(shape) != 2 or weights is None or weights.ndim != 2 or add is None:
            continue
        other = add.input[1] if add.input[0] == node.output[0] else add.input[0]
        bias = graph.float_constant(other)
        if bias is None or bias.size != weights.shape[1] or bias.ndim > 2 or bias.shape[-1] != bias.size:
            continue
        name = other if bias.ndim == 1 else graph.store(f"{other}_row", bias.reshape(-1))
        gemm = make_node("Gemm", [node.input[0], node.input[1], name], add.output, name=node.name)
        graph.replace([node, add], [gemm])
        count += 1
    return count


def sequences_to_rows(graph: Graph) -> int:
    """Let what treats every position of [n, t, ..., d] alike run on [n*t*..., d]. Returns how many nodes do."""
    nodes = [node for node in graph.nodes if _acts_on_rows(graph, node)]
    count = 0
    for part in _connected(graph, nodes):
        if any(node.op_type == "MatMul" for node in part):
            _to_rows(graph, part)
            count += len(part)
    return count


def drop_turns(graph: Graph) -> int:
    """A Gemm on rows that were turned from [n, t, ...] to [t, n, ...] and are turned back, on rows as they were."""
    count = 0
    for turn in graph.by_operator("Transpose"):
        order, shape = list(attributes(turn).get("perm", ())), graph.shape(turn.input[0])
        rows = graph.sole_consumer(turn.output[0], "Reshape")
        gemm = None if rows is None else graph.sole_consumer(rows.output[0], "Gemm")
        view = None if gemm is None else graph.sole_consumer(gemm.output[0], "Reshape")
        back = None if view is None else graph.sole_consumer(view.output[0], "Transpose")
        if rows is None or gemm is None or view is None or back is None or shape is None or None in shape[1:]:
            continue
        width = math.prod(size or 0 for size in shape[2:])
        flat, turned = graph.shape(rows.output[0]), graph.shape(view.output[0])
        result = graph.shape(back.output[0])
        bias = graph.shape(gemm.input[2]) if len(gemm.input) > 2 else ()
        if order != [1, 0, *range(2, len(shape))] or list(attributes(back).get("perm", ())) != [1, 0, 2]:
            continue
        if flat is None or len(flat) != 2 or flat[1] != width or gemm.input[0] != rows.output[0]:
            continue
        if turned is None or turned[0] != shape[1] or result is None or bias is None or len(bias) > 1:
            continue
        target, straight = fixed_target(result), graph.new_name(f"{rows.output[0]}_straight")
        if target is None or attributes(gemm).get("transA", 0):
            continue
        graph.shapes[straight] = (flat[0], width)
        ends = [
            graph.store(f"{name}_shape", value)
            for name, value in ((straight, np.array([-1, width])), (view.name, target))
        ]
        product = graph.new_name(f"{gemm.output[0]}_straight")
        graph.shapes[product] = graph.shape(gemm.output[0]) or (None, None)
        graph.replace(
            [turn, rows, gemm, view, back],
            [
                make_node("Reshape", [turn.input[0], ends[0]], [straight], name=rows.name),
                make_node("Gemm", [straight, *gemm.input[1:]], [product], name=gemm.name, **attributes(gemm)),
                make_node("Reshape", [product, ends[1]], back.output, name=view.name),
            ],
        )
        count += 1
    return count


def _row_inputs(graph: Graph, node: NodeProto) -> list[str]:
    return [name for name in _data_inputs(node) if name and not graph.is_constant(name)]


def _data_inputs(node: NodeProto) -> list[str]:
    return list(node.input) if node.op_type in _BINARY else list(node.input[:1])


def _acts_on_rows(graph: Graph, node: NodeProto) -> bool:
    shape = graph.shape(node.output[0])
    if shape is None or len(shape) < 3 or fixed_target(shape) is None or None in shape[1:]:
        return False
    if node.domain == MICROSOFT and node.op_type != "Gelu":
        return False
    rows = _row_inputs(graph, node)
    match node.op_type:
        case "MatMul":
            weights = graph.float_constant(node.input[1])
            known = graph.shape(node.input[0])
            return weights is not None and weights.ndim == 2 and known is not None and known[:-1] == shape[:-1]
        case "LayerNormalization":
            axis = attributes(node).get("axis", -1)
            return axis in (-1, len(shape) - 1) and all(not name for name in node.output[1:])
        case "Clip":
            return all(graph.is_constant(name) for name in node.input[1:] if name)
        case "PRelu":
            slope = graph.constant(node.input[1])
            return slope is not None and slope.shape in ((), (1,), (shape[-1],))
    if node.op_type in _UNARY:
        return bool(rows)
    if node.op_type in _BINARY and rows and all(graph.shape(name) == shape for name in rows):
        constants = [graph.constant(name) for name in node.input if graph.is_constant(name)]
        return all(value is not None and value.size in (1, shape[-1]) and
                   (value.size == 1 or value.shape[-1] == value.size) for value in constants)  # fmt: skip
    return False


def _connected(graph: Graph, nodes: list[NodeProto]) -> list[list[NodeProto]]:
    """Groups of `nodes` that hand tensors to each other directly."""
    group = {id(node): {id(node)} for node in nodes}
    for node in nodes:
        for name in _row_inputs(graph, node):
            maker = graph.producer(name)
            if maker is not None and id(maker) in group and group[id(maker)] is not group[id(node)]:
                joined = group[id(maker)] | group[id(node)]
                group.update(dict.fromkeys(joined, joined))
    seen: set[int] = set()
    parts = []
    for node in nodes:
        if id(node) not in seen:
            seen |= group[id(node)]
            parts.append([other for other in nodes if id(other) in group[id(node)]])
    return parts


def _to_rows(graph: Graph, part: list[NodeProto]) -> None:
    inside = {id(node) for node in part}
    flat: dict[str, str] = {}
    entries, exits, moved = [], [], []
    for node in part:
        for name in _row_inputs(graph, node):
            if name not in flat:
                flat[name] = graph.new_name(f"{name}_rows")
                maker = graph.producer(name)
                if maker is None or id(maker) not in inside:
                    entries.append(_view(graph, name, flat[name], rows=True))
        result = node.output[0]
        flat.setdefault(result, graph.new_name(f"{result}_rows"))
        if result in graph.pinned or any(id(user) not in inside for user in graph.consumers(result)):
            exits.append(_view(graph, flat[result], result, rows=False))
        moved.append(_on_rows(graph, node, flat))
    for name, rows in flat.items():
        size = (graph.shape(name) or (None,))[-1]
        graph.shapes[rows] = (None, size)
    graph.replace(part, [*entries, *moved, *exits])


def _view(graph: Graph, source: str, result: str, *, rows: bool) -> NodeProto:
    shape = graph.shape(source if rows else result) or ()
    target = [-1, shape[-1]] if rows else [-1 if size is None else size for size in shape]
    stored = graph.store(f"{result}_shape", np.array(target, dtype=np.int64))
    return make_node("Reshape", [source, stored], [result], name=f"{result}_view")


def _on_rows(graph: Graph, node: NodeProto, flat: dict[str, str]) -> NodeProto:
    inputs = [flat.get(name, name) for name in node.input]
    if node.op_type in _BINARY:
        for place, name in enumerate(node.input):
            value = graph.constant(name)
            if value is not None and value.ndim > 1:
                inputs[place] = graph.store(f"{name}_row", value.reshape(-1) if value.size > 1 else value.reshape(()))
    settings = attributes(node)
    if node.op_type == "LayerNormalization":
        settings["axis"] = -1
    if node.domain:
        settings["domain"] = node.domain
    return make_node(node.op_type, inputs, [flat[node.output[0]]], name=node.name, **settings)
