"""Static integers: ranges of activations fixed by calibration, in QDQ form or as quantized operators.

ONNX Runtime's own quantizer classes place the nodes; the ranges are ours, so that a search over many schemes
calibrates once. What was measured on small networks decides the options:
- A Gemm's or MatMul's output that no quantized operator takes stays float: ONNX Runtime's QGemm writes floats for
  less than a requantization and a DequantizeLinear cost, and the last layer keeps its resolution.
- Signed activations are asymmetric like unsigned ones. Symmetric ones cannot absorb a ReLU into the range, which costs
  an operator and a bit; kernels that gain from symmetry gain from that of the weights.
- A product of two activations, as in attention, stays float: quantizing both costs more than the product gains, 3 to
  15 % of a whole transformer.
- Softmax stays float: 256 levels are too few for the scores whose distribution is watched for drift.

**On 7-bit weights** (`Integer.S7`, `reduce_range`). Unsigned activations with signed 8-bit weights are wrong in silence
on x86 with AVX2 or AVX-512 and no VNNI: the instruction there (VPMADDUBSW) adds two u8*s8 products in 16 bits, and
2 * 255 * 127 does not fit; the sum saturates and the answer is another. With weights within +-64 the sum is at most
2 * 255 * 64 = 32,640, which fits 32,767. So such a file holds on every CPU, at the price of one bit of weight, which
a scale per channel mostly returns. The load-time switch `session.x64quantprecision`, which the agent sets too, would
keep that bit, but then the answer depends on who loads the file, and its u8u8 kernels are slower.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx

from quantize.calibration import Calibration
from quantize.errors import QuantizationFailedError
from quantize.quantizers.gemms import with_plain_gemms
from quantize.quantizers.integer_weights import store_integer_weights
from quantize.scheme import Form, Integer, Scheme

STATIC_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip
"""What a static scheme that names no operators quantizes."""
_FLOAT_OUTPUTS = ["Gemm", "MatMul"]
_BITS = {Integer.S8: 8, Integer.S7: 7}
_WITH_SETTINGS = ("Reshape", "Squeeze", "Unsqueeze", "Clip")
"""Operators whose further inputs are shapes, axes or bounds, not data."""


def build_static(
    prepared: bytes, scheme: Scheme, calibration: Calibration, *, excluded_nodes: Collection[str]
) -> bytes:
    """The model in QDQ or QOperator form. Raises QuantizationFailedError for types that no such form has."""
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode

    activations, weights = _types(scheme)
    model = _typed(prepared, calibration)
    ranges = calibration.ranges(scheme.ranges)
    operators = list(scheme.operators or STATIC_OPERATORS)
    left = sorted({*excluded_nodes, *_float_nodes(model, ranges)})
    shared: tuple[Any, ...] = (weights, activations, _tensors_range(ranges), [], left, operators)
    narrow = scheme.weights is Integer.S7
    options: dict[str, Any] = {}
    if scheme.form is Form.QDQ:
        if scheme.weights in _BITS:
            taken = {node.name for node in model.graph.node if node.op_type in operators} - set(left)
            store_integer_weights(
                model, nodes=taken, ranges=ranges, bits=_BITS[scheme.weights], per_channel=scheme.per_channel
            )
        options["OpTypesToExcludeOutputQuantization"] = _FLOAT_OUTPUTS
        quantizer = QDQQuantizer(model, scheme.per_channel, narrow, *shared, options)
    else:
        mode = QuantizationMode.QLinearOps
        quantizer = ONNXQuantizer(model, scheme.per_channel, narrow, mode, True, *shared, options)
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return bytes(quantizer.model.model.SerializeToString(deterministic=True))


def _types(scheme: Scheme) -> tuple[Any, Any]:
    from onnxruntime.quantization import QuantType

    activations = {Integer.U8: QuantType.QUInt8, Integer.S8: QuantType.QInt8}
    weights = {Integer.U8: QuantType.QUInt8, Integer.S8: QuantType.QInt8, Integer.S7: QuantType.QInt8}
    if scheme.activations not in activations or scheme.weights not in weights:
        raise QuantizationFailedError(
            f"no static form has {scheme.activations or 'float'} activations with {scheme.weights or 'float'} weights:"
            " use u8 or s8 with u8, s8 or s7"
        )
    if scheme.form is Form.QOPERATOR and scheme.weights is Integer.U8 and scheme.per_channel:
        # ONNX Runtime's quantizer would write s8 weights instead without a word
        raise QuantizationFailedError("quantized operators have u8 weights per tensor alone: use s8 weights")
    if scheme.activations is Integer.S8 and scheme.weights is Integer.U8:
        raise QuantizationFailedError("no kernel multiplies s8 activations with u8 weights: use s8 weights")
    return activations[scheme.activations], weights[scheme.weights]


def _typed(prepared: bytes, calibration: Calibration) -> onnx.ModelProto:
    """The parsed model with a type for each tensor that calibration saw.

    ONNX's shape inference stops at operators that are ONNX Runtime's own, and the quantizer passes over what has no
    type without a word.
    """
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    model = onnx.shape_inference.infer_shapes(with_plain_gemms(prepared))
    known = {entry.name for entry in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    for name in calibration.histograms:
        if name not in known:
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    add_infer_metadata(model)
    return model


def _float_nodes(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> set[str]:
    """The nodes that no scheme quantizes: those that touch an activation without a range (attention masks, and tensors
    that are not float), and MatMuls of two activations.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    left = set()
    for node in model.graph.node:
        activations = [name for name in (*node.input, node.output[0]) if name and name not in constants]
        data = activations if node.op_type not in _WITH_SETTINGS else [node.input[0], node.output[0]]
        is_product = node.op_type == "MatMul" and node.input[1] not in constants
        if is_product or any(name not in ranges for name in data):
            left.add(node.name)
    return left


def _tensors_range(ranges: Mapping[str, tuple[float, float]]) -> Any:
    from onnxruntime.quantization import CalibrationMethod, TensorData, TensorsData

    data = {
        name: TensorData(lowest=np.float32(lowest), highest=np.float32(highest))
        for name, (lowest, highest) in ranges.items()
    }
    return TensorsData(CalibrationMethod.MinMax, data)
