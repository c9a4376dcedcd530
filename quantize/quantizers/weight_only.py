"""Weights in 4 or 8 bits, blocks of them sharing a scale; activations stay float (ONNX Runtime's MatMulNBits).

Accuracy level 4 lets the kernel quantize activations to int8 per block while it multiplies, which is what makes it
faster than float on a CPU. Weights are symmetric: zero points made 4-bit weights slower and, on the networks measured,
no more exact. ONNX Runtime takes the Add of a bias into the operator when it loads.
"""

from __future__ import annotations

from collections.abc import Collection

from quantize.errors import QuantizationFailedError
from quantize.quantizers.gemms import without_gemms
from quantize.scheme import Integer, Scheme

BLOCK_SIZES = (16, 32, 64, 128, 256)
_ACCURACY_LEVEL = 4


def build_weight_only(prepared: bytes, scheme: Scheme, *, excluded_nodes: Collection[str]) -> bytes:
    """The model with MatMulNBits for each MatMul and Gemm of constant weights that has at least one whole block.

    Raises QuantizationFailedError for a type or block that it has no form for, or when no layer is large enough.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    bits = {Integer.S4: 4, Integer.S8: 8}.get(scheme.weights)
    if bits is None or scheme.block_size not in BLOCK_SIZES:
        raise QuantizationFailedError(
            f"weight-only quantization has s4 or s8 weights in blocks of {', '.join(map(str, BLOCK_SIZES))},"
            f" not {scheme.weights or 'float'} in blocks of {scheme.block_size}"
        )
    model = without_gemms(prepared, excluded_nodes=excluded_nodes)
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    matrices = [node for node in model.graph.node if node.op_type == "MatMul"]
    large = {
        node.name
        for node in matrices
        if node.name not in excluded_nodes
        and len(shapes.get(node.input[1], ())) == 2
        and shapes[node.input[1]][0] >= scheme.block_size
    }
    if not large:
        raise QuantizationFailedError(
            f"no MatMul or Gemm has {scheme.block_size} or more constant rows: use smaller blocks"
        )
    config = DefaultWeightOnlyQuantConfig(
        block_size=scheme.block_size,
        is_symmetric=True,
        accuracy_level=_ACCURACY_LEVEL,
        bits=bits,
        op_types_to_quantize=("MatMul",),
    )
    left = [node.name for node in matrices if node.name not in large]
    quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=left, algo_config=config)
    quantizer.process()
    return bytes(quantizer.model.model.SerializeToString(deterministic=True))
