"""Dynamic integers: weights in int8, the range of an activation found while it runs.

For MatMul, Gemm and attention, whose activations vary too much for a fixed range and whose weights are most of the
work. Never Conv: ConvInteger has no fast kernel and was slower than float wherever it was measured.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from quantize.errors import QuantizationFailedError
from quantize.quantizers.gemms import without_gemms
from quantize.scheme import Integer, Scheme

DYNAMIC_OPERATORS = ("MatMul", "Attention")


def build_dynamic(prepared: bytes, scheme: Scheme, *, excluded_nodes: Collection[str]) -> bytes:
    """The model with MatMulInteger and QAttention. Raises QuantizationFailedError for types that they do not have."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode

    if scheme.activations not in (Integer.U8, Integer.NONE) or scheme.weights not in (Integer.S8, Integer.S7):
        raise QuantizationFailedError("dynamic quantization has u8 activations and s8 or s7 weights alone")
    model = without_gemms(prepared, excluded_nodes=excluded_nodes)
    wanted = set(scheme.operators or DYNAMIC_OPERATORS) & set(DYNAMIC_OPERATORS) | (
        {"MatMul"} if "Gemm" in scheme.operators else set()
    )
    model = onnx.shape_inference.infer_shapes(model)
    quantizer = ONNXQuantizer(
        model,
        scheme.per_channel,
        scheme.weights is Integer.S7,
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        [],
        # a Gemm that is left becomes a float MatMul, which ONNX Runtime makes a Gemm again when it loads
        sorted({name for node in excluded_nodes for name in (node, f"{node}_MatMul")}),
        sorted(wanted),
        # ONNX does not infer types behind ONNX Runtime's own operators; all of these graphs compute in float
        {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return bytes(quantizer.model.model.SerializeToString(deterministic=True))
