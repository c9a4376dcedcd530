"""Convolutions take in what stands around them: normalisation, scales, offsets, padding, a Transpose of the input.

Each rewrite changes only stored weights and attributes, so the convolution costs what it cost before and the
neighbour is gone, also from what would have to be quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from quantize.preparation.graph import Graph, attributes, make_node

MAX_INTERLEAVED_CHANNELS = 7
_NHWC_TO_NCHW = [0, 3, 1, 2]


@dataclass(frozen=True, kw_only=True)
class Affine:
    """`scale * x + offset` per channel (axis 1), each fp64 of shape [channels] or []."""

    source: str
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]


def fold_affine_after(graph: Graph) -> int:
    """Scales and offsets per channel, BatchNormalization among them, into the Conv or Gemm before them."""
    count = 0
    for node in graph.by_operator("BatchNormalization", "Mul", "Div", "Add", "Sub"):
        affine = _affine(graph, node)
        if affine is None:
            continue
        layer = graph.producer(affine.source, "Conv", "ConvTranspose", "Gemm")
        if layer is None or not graph.feeds_only(affine.source, node):
            continue
        weights = _weights(graph, layer)
        if weights is None or not _stays_per_channel(graph, affine, layer):
            continue
        axis = _output_axis(layer)
        outputs = weights.shape[axis]
        if axis == 1 and layer.op_type == "ConvTranspose" and attributes(layer).get("group", 1) != 1:
            continue
        if any(part.size not in (1, outputs) for part in (affine.scale, affine.offset)):
            continue
        bias = _bias(graph, layer, outputs)
        if bias is None:
            continue
        beta = float(attributes(layer).get("beta", 1.0)) if layer.op_type == "Gemm" else 1.0
        if beta == 0:
            continue
        scale = np.broadcast_to(affine.scale.reshape(-1), outputs)
        along = [1] * weights.ndim
        along[axis] = outputs
        _rebuild(
            graph,
            [layer, node],
            source=layer.input[0],
            weights=weights * scale.reshape(along),
            bias=bias * scale + affine.offset.reshape(-1) / beta,
            like=layer,
            output=node.output[0],
        )
        count += 1
    return count


def fold_affine_before(graph: Graph) -> int:
    """Scales and offsets per channel into the Conv or Gemm after them; offsets only where nothing is padded."""
    count = 0
    for node in graph.by_operator("BatchNormalization", "Mul", "Div", "Add", "Sub"):
        affine = _affine(graph, node)
        layer = graph.sole_consumer(node.output[0], "Conv", "Gemm")
        if affine is None or layer is None or layer.input[0] != node.output[0]:
            continue
        settings = attributes(layer)
        weights = _weights(graph, layer)
        if weights is None or settings.get("group", 1) != 1 or settings.get("transA", 0):
            continue
        axis = 1 - _output_axis(layer)
        inputs, outputs = weights.shape[axis], weights.shape[1 - axis]
        bias = _bias(graph, layer, outputs)
        padded = any(settings.get("pads", ())) or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        if bias is None or (padded and affine.offset.any()):
            continue
        if any(part.size not in (1, inputs) for part in (affine.scale, affine.offset)):
            continue
        if layer.op_type == "Gemm" and (settings.get("alpha", 1.0) != 1 or settings.get("beta", 1.0) != 1):
            continue
        along = [1] * weights.ndim
        along[axis] = inputs
        offset = np.broadcast_to(affine.offset.reshape(-1), inputs).reshape(along)
        _rebuild(
            graph,
            [node, layer],
            source=affine.source,
            weights=weights * np.broadcast_to(affine.scale.reshape(-1), inputs).reshape(along),
            bias=bias + (weights * offset).sum(axis=tuple(a for a in range(weights.ndim) if a != 1 - axis)),
            like=layer,
            output=layer.output[0],
        )
        count += 1
    return count


def fold_padding(graph: Graph) -> int:
    """A Pad with zeros around the image into the Conv after it."""
    count = 0
    for node in graph.by_operator("Pad"):
        conv = graph.sole_consumer(node.output[0], "Conv")
        pads = graph.constant(node.input[1]) if len(node.input) > 1 else None
        fill = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        axes = len(node.input) > 3 and bool(node.input[3])
        if conv is None or pads is None or fill is None or axes or fill.any():
            continue
        settings = attributes(conv)
        rank = len(pads) // 2
        if attributes(node).get("mode", b"constant") != b"constant" or (pads < 0).any():
            continue
        if pads[[0, 1, rank, rank + 1]].any() or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            continue
        around = np.concatenate([pads[2:rank], pads[rank + 2 :]])
        settings.pop("auto_pad", None)
        settings["pads"] = (around + np.array(settings.get("pads", [0] * len(around)))).tolist()
        folded = make_node("Conv", [node.input[0], *conv.input[1:]], conv.output, name=conv.name, **settings)
        graph.replace([node, conv], [folded])
        count += 1
    return count


def fold_input_transpose(graph: Graph) -> int:
    """A Transpose [N,H,W,C] to [N,C,H,W] in front of a Conv into the Conv.

    The bytes of [N,H,W,C] are those of [N,1,H,W*C], on which a kernel [O,1,kh,kw*C] with C times the horizontal
    stride and padding computes the same sums: the copy becomes a view.
    """
    count = 0
    for node in graph.by_operator("Transpose"):
        conv = graph.sole_consumer(node.output[0], "Conv")
        shape = graph.shape(node.input[0])
        if conv is None or shape is None or list(attributes(node).get("perm", ())) != _NHWC_TO_NCHW:
            continue
        settings = attributes(conv)
        weights = graph.float_constant(conv.input[1])
        if weights is None or conv.input[0] != node.output[0] or settings.get("group", 1) != 1:
            continue
        height, width, channels = shape[1:]
        if height is None or width is None or channels is None or channels > MAX_INTERLEAVED_CHANNELS:
            continue
        if set(settings.get("dilations", [1])) != {1} or settings.get("auto_pad", b"NOTSET") not in (
            b"NOTSET",
            b"VALID",
        ):
            continue
        outputs, _, rows, columns = weights.shape
        stride, pads = settings.get("strides", [1, 1]), settings.get("pads", [0, 0, 0, 0])
        batch = -1 if shape[0] is None else shape[0]
        target = graph.store(f"{node.output[0]}_shape", np.array([batch, 1, height, width * channels]))
        kernel = weights.transpose(0, 2, 3, 1).reshape(outputs, 1, rows, columns * channels)
        flat = graph.new_name(f"{node.input[0]}_rows")
        graph.shapes[flat] = (shape[0], 1, height, width * channels)
        graph.replace(
            [node, conv],
            [
                make_node("Reshape", [node.input[0], target], [flat], name=node.name),
                make_node(
                    "Conv",
                    [flat, graph.store(f"{conv.input[1]}_rows", kernel), *conv.input[2:]],
                    conv.output,
                    name=conv.name,
                    kernel_shape=[rows, columns * channels],
                    strides=[stride[0], stride[1] * channels],
                    pads=[pads[0], pads[1] * channels, pads[2], pads[3] * channels],
                ),
            ],
        )
        count += 1
    return count


def pool_by_operator(graph: Graph) -> int:
    """A mean over the whole image as GlobalAveragePool, which stays in the layout of the convolutions around it."""
    count = 0
    for node in graph.by_operator("ReduceMean"):
        settings = attributes(node)
        axes = graph.constant(node.input[1]) if len(node.input) > 1 else np.array(settings.get("axes", []))
        shape = graph.shape(node.input[0])
        if shape is None or len(shape) != 4 or axes is None or not axes.size or shape[1] is None:
            continue
        if sorted(axes % 4) != [2, 3] or graph.producer(node.input[0], "Conv", "Relu", "Clip", "Add") is None:
            continue
        if settings.get("keepdims", 1):
            graph.replace([node], [make_node("GlobalAveragePool", [node.input[0]], node.output, name=node.name)])
        else:
            pooled = graph.new_name(f"{node.output[0]}_pooled")
            graph.shapes[pooled] = (shape[0], shape[1], 1, 1)
            flat = make_node("Flatten", [pooled], node.output, name=f"{node.name}_flat", axis=1)
            pool = make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)
            graph.replace([node], [pool, flat])
        count += 1
    return count


def _affine(graph: Graph, node: NodeProto) -> Affine | None:
    if node.op_type == "BatchNormalization":
        parts = [graph.float_constant(name) for name in node.input[1:5]]
        settings = attributes(node)
        if any(part is None for part in parts) or settings.get("training_mode", 0) or len(node.output) > 1:
            return None
        gamma, beta, mean, variance = (np.asarray(part, dtype=np.float64) for part in parts)
        scale = gamma / np.sqrt(variance + float(settings.get("epsilon", 1e-5)))
        return Affine(source=node.input[0], scale=scale, offset=beta - mean * scale)
    place = next((place for place in (1, 0) if graph.is_constant(node.input[place])), None)
    if place is None or (place == 0 and node.op_type in ("Div", "Sub")):
        return None
    shape, constant = graph.shape(node.input[1 - place]), graph.float_constant(node.input[place])
    value = None if constant is None or shape is None else _per_channel(constant, shape)
    if value is None or (node.op_type == "Div" and not value.all()):
        return None
    one, zero = np.ones(()), np.zeros(())
    scale, offset = {
        "Mul": (value, zero),
        "Div": (one / value, zero),
        "Add": (one, value),
        "Sub": (one, -value),
    }[node.op_type]
    return Affine(source=node.input[1 - place], scale=scale, offset=offset)


def _per_channel(constant: NDArray[np.float32], shape: tuple[int | None, ...]) -> NDArray[np.float64] | None:
    """A constant that broadcasts to `shape` along axis 1 alone, as [channels] or []; None for any other."""
    exact = constant.astype(np.float64)
    if exact.size == 1 and exact.ndim <= len(shape):
        return exact.reshape(())
    if len(shape) < 2 or exact.ndim > len(shape):
        return None
    aligned = (1,) * (len(shape) - exact.ndim) + exact.shape
    return exact.reshape(-1) if all(n == 1 for axis, n in enumerate(aligned) if axis != 1) else None


def _stays_per_channel(graph: Graph, affine: Affine, layer: NodeProto) -> bool:
    shape = graph.shape(layer.output[0])
    return affine.scale.size == affine.offset.size == 1 or (shape is not None and len(shape) >= 2)


def _output_axis(layer: NodeProto) -> int:
    if layer.op_type == "Gemm":
        return 0 if attributes(layer).get("transB", 0) else 1
    return 1 if layer.op_type == "ConvTranspose" else 0


def _weights(graph: Graph, layer: NodeProto) -> NDArray[np.float64] | None:
    weights = graph.float_constant(layer.input[1])
    return None if weights is None else weights.astype(np.float64)


def _bias(graph: Graph, layer: NodeProto, outputs: int) -> NDArray[np.float64] | None:
    if len(layer.input) < 3 or not layer.input[2]:
        return np.zeros(outputs)
    bias = graph.float_constant(layer.input[2])
    if bias is None or bias.size not in (1, outputs):
        return None
    return np.broadcast_to(bias.astype(np.float64).reshape(-1), outputs)


def _rebuild(
    graph: Graph,
    old: list[NodeProto],
    *,
    source: str,
    weights: NDArray[Any],
    bias: NDArray[Any],
    like: NodeProto,
    output: str,
) -> None:
    inputs = [source, graph.store(f"{like.input[1]}_folded", weights), graph.store(f"{like.name}_bias", bias)]
    graph.replace(old, [make_node(like.op_type, inputs, [output], name=like.name, **attributes(like))])
