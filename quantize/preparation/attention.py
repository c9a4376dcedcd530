"""Self-attention as one operator: softmax(q k^T * scale) v with its three projections (Vaswani et al. 2017,
arXiv:1706.03762) becomes ONNX Runtime's Attention.

Exporters move the numbers between the projections and the products in many ways: views, transposes, splits, gathers,
scales before or after. None of these ways is matched. The nodes between are run on numbered elements, and where the
numbers that arrive say that each head reads columns of the projections at its own positions, the columns are put into
the order that Attention reads. A mask that is added to the scores becomes its bias. Anything else stays as it is:
cross-attention, positions that mix, masks that depend on what they mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from quantize.preparation.equality import open_session
from quantize.preparation.graph import MICROSOFT, Graph, Shape, attributes, make_node

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Split", "Slice", "Identity")
_SCALES = ("Mul", "Div")
_BATCH = 2
_EXACT_IN_FP32 = 2**24


@dataclass(frozen=True, kw_only=True)
class _Projection:
    """`source` [.., .., d] times `weights` [d, columns] plus `bias` [columns] is the tensor `result`."""

    source: str
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    result: str
    nodes: tuple[NodeProto, ...]


@dataclass(frozen=True, kw_only=True)
class _Role:
    """How q, k or v reads its projection: columns [heads, size] times `scale`, batches before positions or after."""

    projection: _Projection
    columns: NDArray[np.int64]
    scale: float
    batch_first: bool


def fuse_self_attention(graph: Graph) -> int:
    """Self-attention, with or without a mask, as Attention. Returns how many there were."""
    return sum(_fused(graph, softmax) for softmax in graph.by_operator("Softmax"))


def _fused(graph: Graph, softmax: NodeProto) -> bool:
    shape = graph.shape(softmax.output[0])
    mix = graph.sole_consumer(softmax.output[0], "MatMul")
    if shape is None or mix is None or mix.input[0] != softmax.output[0] or len(shape) not in (3, 4):
        return False
    if attributes(softmax).get("axis", -1) not in (-1, len(shape) - 1) or shape[-1] is None or shape[-1] != shape[-2]:
        return False
    product, scale, mask = _scores(graph, softmax.input[0])
    if product is None or (mask is not None and not _is_mask(graph, mask, shape)):
        return False
    positions = shape[-1]
    names = (product.input[0], product.input[1], mix.input[1])
    found = [_role(graph, name, positions=positions, transposed=name is names[1]) for name in names]
    query, key, value = found
    if query is None or key is None or value is None:
        return False
    same_source = len({role.projection.source for role in (query, key, value)}) == 1
    same_order = len({role.batch_first for role in (query, key, value)}) == 1
    if not same_source or not same_order or query.columns.shape != key.columns.shape:
        return False
    if value.columns.shape != query.columns.shape or (len(shape) == 4 and shape[1] != len(query.columns)):
        return False
    bias = None if mask is None else _bias_of(graph, mask, positions)
    _replace(graph, (query, key, value), scale=scale * query.scale * key.scale, bias=bias, mix=mix)
    return True


def _scores(graph: Graph, name: str) -> tuple[NodeProto | None, float, str | None]:
    """The product behind the scores `name`, what it is scaled by, and the mask that is added after that."""
    add = graph.producer(name, "Add")
    for place in (0, 1):
        if add is None:
            break
        source, scale = _unscaled(graph, add.input[place])
        product = graph.producer(source, "MatMul")
        if product is not None:
            return product, scale, add.input[1 - place]
    source, scale = _unscaled(graph, name)
    return graph.producer(source, "MatMul"), scale, None


def _is_mask(graph: Graph, mask: str, scores: Shape) -> bool:
    """Whether `mask` is [batch or 1, 1, 1 or positions, positions] for scores [batch, heads, positions, positions]."""
    shape = graph.shape(mask)
    if shape is None or len(shape) != len(scores) or len(scores) != 4:
        return False
    return shape[0] in (1, scores[0]) and shape[1] == 1 and shape[2] in (1, scores[2]) and shape[3] == scores[3]


def _bias_of(graph: Graph, mask: str, positions: int) -> str:
    """The mask with a row for every position, as Attention asks for it; made once for all layers."""
    if (graph.shape(mask) or ())[2] == positions:
        return mask
    full = f"{mask}_by_position"
    if graph.producer(full, "Add") is not None:
        return full
    result = graph.new_name(full)
    zeros = graph.store(f"{full}_zeros", np.zeros((1, 1, positions, 1), dtype=np.float32))
    graph.replace([], [make_node("Add", [mask, zeros], [result], name=full)])
    graph.shapes[result] = ((graph.shape(mask) or (None,))[0], 1, positions, positions)
    return result


def _unscaled(graph: Graph, name: str) -> tuple[str, float]:
    """The tensor that is scaled to `name`, and the scale."""
    scale = 1.0
    while (node := graph.producer(name, *_SCALES)) is not None:
        place = 1 if graph.is_constant(node.input[1]) else 0
        number = graph.float_constant(node.input[place])
        if number is None or number.size != 1 or (node.op_type == "Div" and place == 0):
            break
        scale = scale / float(number.item()) if node.op_type == "Div" else scale * float(number.item())
        name = node.input[1 - place]
    return name, scale


def _role(graph: Graph, name: str, *, positions: int, transposed: bool) -> _Role | None:
    moves: list[NodeProto] = []
    current = name
    while (projection := _projection(graph, current)) is None:
        node = graph.producer(current, *_MOVES, *_SCALES)
        if node is None:
            return None
        place = 1 if node.op_type == "Mul" and graph.is_constant(node.input[0]) else 0
        if any(not graph.is_constant(other) for n, other in enumerate(node.input) if n != place and other):
            return None
        moves.append(node)
        current = node.input[place]
    arrived = _numbered(graph, projection.result, name, moves[::-1])
    if arrived is None:
        return None
    numbers, scale, columns = arrived
    if transposed:
        numbers = np.swapaxes(numbers, -1, -2)
    if numbers.shape[-2] != positions:
        return None
    # [batches, heads, positions, size], however batches and heads were written
    batches = numbers.size // (positions * columns) if numbers.ndim == 3 else numbers.shape[0]
    batches = _batches(graph, projection.result, positions) if numbers.ndim == 3 else batches
    numbers = numbers.reshape(batches, -1, positions, numbers.shape[-1])
    rows, places = numbers // columns, numbers % columns
    order = places[:1, :, :1, :]
    if not (places == order).all():
        return None
    by_batch = np.arange(batches)[:, None, None, None] * positions + np.arange(positions)[None, None, :, None]
    by_position = np.arange(positions)[None, None, :, None] * batches + np.arange(batches)[:, None, None, None]
    batch_first = bool((rows == by_batch).all())
    if not batch_first and not (rows == by_position).all():
        return None
    shape = graph.shape(projection.source)
    if shape is None or (shape[1] if batch_first else shape[0]) != positions:
        return None
    return _Role(projection=projection, columns=order[0, :, 0, :], scale=scale, batch_first=batch_first)


def _batches(graph: Graph, name: str, positions: int) -> int:
    shape = [_BATCH if size is None else size for size in graph.shape(name) or ()]
    return int(np.prod(shape[:-1])) // positions


def _projection(graph: Graph, name: str) -> _Projection | None:
    node = graph.producer(name, "Add", "MatMul")
    if node is None:
        return None
    add = node if node.op_type == "Add" else None
    bias = None
    if add is not None:
        place = 1 if graph.is_constant(add.input[1]) else 0
        bias = graph.float_constant(add.input[place])
        node = graph.producer(add.input[1 - place], "MatMul")
        if node is None or bias is None or not graph.feeds_only(node.output[0], add):
            return None
    weights, shape = graph.float_constant(node.input[1]), graph.shape(node.input[0])
    if weights is None or weights.ndim != 2 or shape is None or len(shape) != 3:
        return None
    if bias is None:
        bias = np.zeros(weights.shape[1], dtype=np.float32)
    if bias.ndim != 1 or bias.size != weights.shape[1]:
        return None
    nodes = (node,) if add is None else (node, add)
    return _Projection(source=node.input[0], weights=weights, bias=bias, result=name, nodes=nodes)


def _numbered(
    graph: Graph, source: str, name: str, moves: list[NodeProto]
) -> tuple[NDArray[np.int64], float, int] | None:
    """Which element of `source` arrives at each place of `name`, times what, and how many columns `source` has."""
    known = graph.shape(source)
    if known is None or sum(size is None for size in known) > 1:
        return None
    shape = [_BATCH if size is None else size for size in known]
    count = int(np.prod(shape))
    if count >= _EXACT_IN_FP32:
        return None
    used = {other for node in moves for other in node.input}
    model = graph.proto()
    for part in (model.graph.node, model.graph.input, model.graph.output, model.graph.initializer):
        del part[:]
    del model.graph.value_info[:]
    model.graph.node.extend(moves)
    model.graph.initializer.extend(tensor for key, tensor in graph.constants().items() if key in used)
    model.graph.input.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, shape))
    model.graph.output.append(helper.make_empty_tensor_value_info(name))
    if not moves:
        return None
    session = open_session(bytes(model.SerializeToString()), optimised=False)
    ones, numbers = (
        session.run([name], {source: values.reshape(shape).astype(np.float32)})[0]
        for values in (np.ones(count), np.arange(count))
    )
    scale = float(ones.flat[0])
    if not scale or not (ones == ones.flat[0]).all() or numbers.ndim not in (3, 4):
        return None
    return np.rint(numbers.astype(np.float64) / scale).astype(np.int64), scale, shape[-1]


def _replace(
    graph: Graph, roles: tuple[_Role, _Role, _Role], *, scale: float, bias: str | None, mix: NodeProto
) -> None:
    heads, size = roles[0].columns.shape
    width = heads * size
    order = [role.columns.reshape(-1) for role in roles]
    scales = (1.0, 1.0, roles[2].scale)
    weights = [role.projection.weights[:, columns] * by for role, columns, by in zip(roles, order, scales, strict=True)]
    biases = [role.projection.bias[columns] * by for role, columns, by in zip(roles, order, scales, strict=True)]
    source, result, name = roles[0].projection.source, mix.output[0], mix.name
    nodes = []
    if not roles[0].batch_first:
        swapped = graph.new_name(f"{source}_batch_first")
        nodes.append(make_node("Transpose", [source], [swapped], name=f"{name}_batch_first", perm=[1, 0, 2]))
        source = swapped
    answer, by_head = graph.new_name(f"{result}_attention"), graph.new_name(f"{result}_by_head")
    stored = [
        graph.store(f"{name}_weights", np.concatenate(weights, axis=1).astype(np.float32)),
        graph.store(f"{name}_bias", np.concatenate(biases).astype(np.float32)),
    ]
    settings = {"num_heads": heads, "scale": scale, "domain": MICROSOFT}
    nodes.append(
        make_node("Attention", [source, *stored, *(["", "", bias] if bias else [])], [answer], name=name, **settings)
    )
    shape = graph.shape(result) or ()
    positions = shape[-2]
    batch = shape[0] if len(shape) == 4 else None
    target = graph.store(f"{by_head}_shape", np.array([-1 if batch is None else batch, positions, heads, size]))
    nodes.append(make_node("Reshape", [answer, target], [by_head], name=f"{name}_by_head"))
    if len(shape) == 4:
        nodes.append(make_node("Transpose", [by_head], [result], name=f"{name}_heads", perm=[0, 2, 1, 3]))
    else:
        turned = graph.new_name(f"{result}_turned")
        nodes.append(make_node("Transpose", [by_head], [turned], name=f"{name}_heads", perm=[0, 2, 1, 3]))
        flat = graph.store(f"{result}_shape", np.array([-1, positions, size]))
        nodes.append(make_node("Reshape", [turned, flat], [result], name=f"{name}_flat"))
    graph.shapes[answer] = (batch, positions, width)
    graph.use_microsoft_operators()
    graph.replace([mix], nodes)
    graph.tidy()
