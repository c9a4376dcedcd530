"""The int8 file itself: portable, repeatable, and refused where it cannot be made."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from models.digits.recipe import HERE
from quantize.data import Samples
from quantize.errors import InvalidModelError
from quantize.evaluation import loaded, run_all
from quantize.static_int8 import opset_of, quantize_static_int8
from tests.quantize.networks import dense_classifier, integer_weights

FP32 = (HERE / "fp32" / "1.1.0.onnx").read_bytes()
IMAGES = np.random.default_rng(5).integers(0, 17, size=(32, 1, 8, 8)).astype(np.float32)


def quantized(model: bytes, samples: Samples) -> bytes:
    with loaded(model) as runnable:
        return quantize_static_int8(model, samples.inputs, runnable.inputs)


@pytest.fixture(scope="module")
def int8() -> bytes:
    return quantized(FP32, Samples(inputs={"image": IMAGES}))


def test_no_pair_of_products_can_saturate_the_16_bit_sum_of_a_cpu_without_vnni(int8: bytes) -> None:
    weights = integer_weights(int8)

    assert len(weights) == 4
    for tensor in weights:
        assert 2 * 255 * int(np.abs(tensor.astype(np.int32)).max()) <= np.iinfo(np.int16).max


def test_each_output_channel_has_its_own_scale() -> None:
    # a channel a thousand times smaller than its neighbour survives only with a scale of its own
    weights = np.array([[1.0, 0.001], [-1.0, 0.001]], dtype=np.float32)
    x = np.random.default_rng(1).uniform(0.5, 1, size=(50, 2)).astype(np.float32)

    (tensor,) = integer_weights(quantized(dense_classifier(weights), Samples(inputs={"x": x})))

    assert np.abs(tensor.astype(np.int32)).max(axis=0).tolist() == [64, 64]


def test_softmax_stays_in_floats_so_that_scores_keep_their_levels(int8: bytes) -> None:
    graph = onnx.load_from_string(int8).graph

    (softmax,) = [node for node in graph.node if node.op_type == "Softmax"]
    assert list(softmax.output) == ["probabilities"]
    with loaded(int8) as runnable:
        scores = run_all(runnable, {"image": IMAGES})["probabilities"]
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-5)


def test_the_same_model_and_samples_give_the_same_bytes(int8: bytes) -> None:
    assert quantized(FP32, Samples(inputs={"image": IMAGES})) == int8
    assert quantized(FP32, Samples(inputs={"image": IMAGES * 2})) != int8


def test_int8_is_a_fraction_of_the_size_and_keeps_the_signature(int8: bytes) -> None:
    assert len(int8) < len(FP32) / 2
    with loaded(FP32) as before, loaded(int8) as after:
        assert (after.inputs, after.outputs) == (before.inputs, before.outputs)


@pytest.mark.parametrize("content", [b"", b"not a model", FP32[:1000]], ids=["empty", "text", "torn"])
def test_a_file_that_is_no_model_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(InvalidModelError, match=r"digits\.onnx is not an ONNX model"):
        opset_of(content, "digits.onnx")


def test_an_opset_without_per_channel_quantization_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="opset 12"):
        opset_of(dense_classifier(np.eye(2, dtype=np.float32), opset=12), "old.onnx")
    assert opset_of(FP32, "digits.onnx") == 18
