"""8-bit products on the CPU that runs this: right for weights from -127 to 127, which is why the zoo has no other.

Without dot products (Cortex-A53, Cortex-A72) ONNX Runtime on ARM adds two products in 16 bits. Signed 8-bit numbers
reach 2 * 128 * 128 = 32,768 there, one too many, only when both products are -128 by -128; an unsigned activation of 0
is -128 to that kernel. Activations are often their least value (after a ReLU), so it is the weights that must not be.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.runtime.cpu import int8_saturates
from tests.arm64.test_bundles import BUNDLES, manifest_of, named

DEPTHS = (1, 2, 3, 16, 33, 64)
ROWS, COLUMNS = 4, 16
LEAST_WEIGHT, MOST_WEIGHT = -127, 127
ACTIVATIONS = {"u8s8": (TensorProto.UINT8, np.dtype(np.uint8)), "s8s8": (TensorProto.INT8, np.dtype(np.int8))}
"""The element type of the activations, for ONNX and for numpy; weights are signed."""


def product(element: int, activations: NDArray[np.generic], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """activations @ weights by ONNX Runtime, the weights a constant, as in a quantized model."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", element, activations.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (len(activations), weights.shape[1]))],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.int32] = session.run(None, {"a": activations})[0]
    return found


@pytest.mark.parametrize("form", sorted(ACTIVATIONS))
@pytest.mark.parametrize("depth", DEPTHS)
def test_products_with_weights_from_minus_127_to_127_are_exact(form: str, depth: int) -> None:
    if int8_saturates():
        pytest.skip("this x86 has no VNNI: its 8-bit products saturate, and the agent knows")
    element, kind = ACTIVATIONS[form]
    limits = np.iinfo(kind)
    rng = np.random.default_rng(depth)
    rows = [np.full((ROWS, depth), limits.min), np.full((ROWS, depth), limits.max)]
    rows.append(rng.integers(limits.min, limits.max + 1, (ROWS, depth)))
    weights = [np.full((depth, COLUMNS), LEAST_WEIGHT), np.full((depth, COLUMNS), MOST_WEIGHT)]
    weights.append(rng.integers(LEAST_WEIGHT, MOST_WEIGHT + 1, (depth, COLUMNS)))

    for left, right in itertools.product(rows, weights):
        got = product(element, left.astype(kind), right.astype(np.int8))
        np.testing.assert_array_equal(got, left @ right)


@pytest.mark.parametrize("folder", BUNDLES, ids=named)
def test_no_signed_8_bit_weight_of_the_zoo_is_the_one_value_that_overflows_on_older_arm(folder: Path) -> None:
    for variant in manifest_of(folder).variants:
        model = onnx.load(folder / "files" / variant.file.sha256)
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:  # a zero point has one dimension at most
                least = int(numpy_helper.to_array(tensor).min())
                assert least >= LEAST_WEIGHT, f"{variant.name}: {tensor.name} holds {least}"
