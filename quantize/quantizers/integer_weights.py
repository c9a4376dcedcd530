"""Weights as signed integers with their DequantizeLinear, a whole layer at a time.

ONNX Runtime's QDQ quantizer takes weights that are so already as they are. Its own way goes through a layer channel by
channel, which is most of the time that a candidate takes to build; these are the same integers (a test compares them).

`scale = greatest magnitude / levels`, one per output channel or one for all, levels 127 for 8 bits and 64 for 7, zero
point 0. A bias is stored as int32 in steps of the input's scale times the weight's; where a channel's weights are so
small that its bias would not fit, its scale is made as large as the bias needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from quantize.preparation.graph import attributes

_LEVELS = {8: 127, 7: 64}
_LEAST = float(np.finfo(np.float32).tiny)
_BIAS_LIMIT = float(np.iinfo(np.int32).max)
_MARGIN = 1.0001


def store_integer_weights(
    model: onnx.ModelProto,
    *,
    nodes: Collection[str],
    ranges: Mapping[str, tuple[float, float]],
    bits: int,
    per_channel: bool,
) -> None:
    """Replace, in place, the float weights of the Conv, Gemm and MatMul named in `nodes` by integers of 7 or 8 bits.

    Each layer gets integers of its own where several share their weights: they may take them in different ways, or not
    be quantized. Weights that are computed, or not of two dimensions (Conv: any), are left as they are.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    users = Counter(name for node in model.graph.node for name in node.input)
    made: list[onnx.TensorProto] = []
    dequantizers: list[NodeProto] = []
    for node in model.graph.node:
        axis = _output_axis(node)
        tensor = constants.get(node.input[1]) if axis is not None and node.name in nodes else None
        if axis is None or tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        weights = numpy_helper.to_array(tensor)
        if not weights.size or (node.op_type != "Conv" and weights.ndim != 2):
            continue
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        least = _least_scales(ranges[node.input[0]], None if bias is None else numpy_helper.to_array(bias))
        scales = _scales(weights, axis, _LEVELS[bits], least, per_channel=per_channel)
        name = tensor.name if users[tensor.name] == 1 else f"{tensor.name}/{node.name}"
        stored = _tensors(name, weights, scales, axis)
        made += stored
        settings = {"axis": axis} if per_channel else {}
        names = [entry.name for entry in stored]
        dequantizers.append(
            helper.make_node("DequantizeLinear", names, [name], name=f"{name}_DequantizeLinear", **settings)
        )
        node.input[1] = name
        if name != tensor.name:
            # the quantizer passes over tensors without a type
            model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, weights.shape))
    _put_in(model, made, dequantizers)


def _output_axis(node: NodeProto) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    return 1 if node.op_type == "MatMul" else None


def _least_scales(limits: tuple[float, float], bias: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """The least scale of the weights, one per channel or one for all, with which the bias fits into int32."""
    if bias is None or not bias.size:
        return np.zeros(1)
    # the widest scale that an input of this range can have; a narrower type's would only be larger
    step = (max(limits[1], 0.0) - min(limits[0], 0.0)) / 255.0
    return np.abs(bias.astype(np.float64)).reshape(-1) * _MARGIN / _BIAS_LIMIT / (step or 1.0)


def _scales(
    weights: NDArray[np.float32], axis: int, levels: int, least: NDArray[np.float64], *, per_channel: bool
) -> NDArray[np.float32]:
    """One scale per channel, `[channels]`, or one for all, `[]`."""
    if per_channel:
        peaks = np.abs(weights).max(axis=tuple(place for place in range(weights.ndim) if place != axis))
    else:
        peaks, least = np.abs(weights).max(), least.max()
    # twice the peak over twice the levels, as ONNX Runtime rounds it
    scales = (2.0 * peaks.astype(np.float64) / (2.0 * levels)).astype(np.float32)
    fitting = np.maximum(scales, least.astype(np.float32))
    return np.asarray(np.where(fitting < _LEAST, np.float32(1.0), fitting), dtype=np.float32)


def _tensors(name: str, weights: NDArray[np.float32], scales: NDArray[np.float32], axis: int) -> list[onnx.TensorProto]:
    """The integers, scales and zero points, as DequantizeLinear takes them."""
    steps = scales.reshape([-1 if place == axis else 1 for place in range(weights.ndim)]) if scales.ndim else scales
    # what does not fit after a scale was made larger is not there: magnitudes only shrink
    integers = np.rint(weights.astype(np.float32) / steps).astype(np.int8)
    return [
        numpy_helper.from_array(integers, f"{name}_quantized"),
        numpy_helper.from_array(scales, f"{name}_scale"),
        numpy_helper.from_array(np.zeros(scales.shape, dtype=np.int8), f"{name}_zero_point"),
    ]


def _put_in(model: onnx.ModelProto, made: list[onnx.TensorProto], dequantizers: list[NodeProto]) -> None:
    computed = {name for node in dequantizers for name in node.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in computed]
    nodes = [*dequantizers, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*kept, *made])
    model.graph.node.extend(nodes)
