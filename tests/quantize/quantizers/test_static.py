"""Static integers: right on every CPU, scales where they belong, and what stays in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from quantize.calibration import Calibration, calibrate
from quantize.data import Inputs
from quantize.errors import QuantizationFailedError
from quantize.evaluation import loaded, run_all
from quantize.quantizers import build, leftover_nodes, static
from quantize.scheme import Form, Integer, Ranges, Scheme
from tests.quantize.quantizers.networks import (
    attention,
    convolutional,
    dense,
    image_samples,
    model_of,
    row_samples,
    sequence_samples,
)

NETWORK, IMAGES = convolutional(), image_samples(64)
U8S8 = Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S8, per_channel=True)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(NETWORK, IMAGES)


def scheme(form: Form, activations: Integer, weights: Integer, *, per_channel: bool = True) -> Scheme:
    return Scheme(form=form, activations=activations, weights=weights, per_channel=per_channel)


def quantized(calibration: Calibration, how: Scheme, excluded: tuple[str, ...] = ()) -> bytes:
    return build(NETWORK, how, calibration, excluded_nodes=excluded, inputs=IMAGES)


def integer_weights(model: bytes) -> dict[str, NDArray[Any]]:
    tensors = onnx.load_from_string(model).graph.initializer
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    return {name: array for name, array in arrays.items() if array.dtype in (np.int8, np.uint8) and array.ndim >= 2}


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def error(model: bytes, fp32: bytes, samples: Inputs) -> float:
    """The mean difference of outputs as a share of their mean magnitude."""
    with loaded(fp32) as before, loaded(model) as after:
        assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
        (right,), (found,) = run_all(before, samples).values(), run_all(after, samples).values()
    return float(np.abs(found - right).mean() / np.abs(right).mean())


@pytest.mark.parametrize("form", [Form.QDQ, Form.QOPERATOR])
def test_no_pair_of_products_of_7_bit_weights_can_saturate_the_16_bit_sum_of_a_cpu_without_vnni(
    form: Form, calibration: Calibration
) -> None:
    weights = integer_weights(quantized(calibration, scheme(form, Integer.U8, Integer.S7)))

    assert len(weights) == 4
    for tensor in weights.values():
        assert 2 * 255 * int(np.abs(tensor.astype(np.int32)).max()) <= np.iinfo(np.int16).max
    eighth_bit = integer_weights(quantized(calibration, scheme(form, Integer.U8, Integer.S8)))
    assert max(int(np.abs(tensor.astype(np.int32)).max()) for tensor in eighth_bit.values()) == 127


@pytest.mark.parametrize("form", [Form.QDQ, Form.QOPERATOR])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_scale_per_channel_gives_each_one_its_full_range(
    form: Form, per_channel: bool, calibration: Calibration
) -> None:
    weights = integer_weights(quantized(calibration, scheme(form, Integer.U8, Integer.S8, per_channel=per_channel)))

    first = np.abs(weights["w1_quantized"].astype(np.int32)).reshape(8, -1).max(axis=1)
    assert (first == 127).all() == per_channel


@pytest.mark.parametrize(
    "how",
    [
        scheme(form, activations, weights, per_channel=per_channel)
        for form in (Form.QDQ, Form.QOPERATOR)
        for activations, weights in (
            (Integer.U8, Integer.S8),
            (Integer.U8, Integer.S7),
            (Integer.U8, Integer.U8),
            (Integer.S8, Integer.S8),
        )
        for per_channel in (False, True)
        if (form, weights, per_channel) != (Form.QOPERATOR, Integer.U8, True)
    ],
    ids=lambda how: f"{how.name} {'per channel' if how.per_channel else ''}",
)
def test_every_pair_of_types_answers_nearly_like_fp32_and_the_same_bytes_come_twice(
    how: Scheme, calibration: Calibration
) -> None:
    model = quantized(calibration, how)

    assert error(model, NETWORK, image_samples(64, seed=9)) < 0.05
    assert quantized(calibration, how) == model
    onnx.checker.check_model(onnx.load_from_string(model))


@pytest.mark.parametrize(
    "how",
    [
        scheme(Form.QDQ, Integer.NONE, Integer.S8),
        scheme(Form.QDQ, Integer.U8, Integer.S4),
        scheme(Form.QOPERATOR, Integer.U8, Integer.U8),
        scheme(Form.QDQ, Integer.S8, Integer.U8, per_channel=False),
    ],
    ids=lambda how: how.quantization,
)
def test_types_that_no_kernel_has_are_refused(how: Scheme, calibration: Calibration) -> None:
    with pytest.raises(QuantizationFailedError, match="weights"):
        quantized(calibration, how)


def test_each_kind_of_range_makes_another_file(calibration: Calibration) -> None:
    files = {
        quantized(calibration, Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S8, ranges=kind))
        for kind in Ranges
    }

    assert len(files) == len(Ranges)


def test_softmax_and_the_last_gemm_write_floats_so_that_scores_keep_their_levels(calibration: Calibration) -> None:
    nodes = onnx.load_from_string(quantized(calibration, U8S8)).graph.node

    (softmax,) = [node for node in nodes if node.op_type == "Softmax"]
    (gemm,) = [node for node in nodes if node.op_type == "Gemm"]
    assert list(softmax.input) == list(gemm.output)
    assert list(softmax.output) == ["scores"]


def test_only_the_input_is_quantized_once_onnx_runtime_has_fused_the_rest(calibration: Calibration) -> None:
    assert leftover_nodes(quantized(calibration, U8S8)) == (1, 0)
    assert leftover_nodes(NETWORK) == (0, 0)


def test_nodes_that_are_excluded_keep_their_floats(calibration: Calibration) -> None:
    model = quantized(calibration, U8S8, excluded=("Conv:c1", "Relu:a1", "Gemm:logits"))

    assert set(integer_weights(model)) == {"w2_quantized", "w3_quantized"}
    kept = {tensor.name for tensor in onnx.load_from_string(model).graph.initializer}
    assert {"w1", "b1", "w4", "b4"} <= kept


def test_only_the_operators_that_a_scheme_names_are_quantized(calibration: Calibration) -> None:
    how = Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S8, operators=("Gemm",))

    assert set(integer_weights(quantized(calibration, how))) == {"w4_quantized"}


@pytest.mark.parametrize("activations", [Integer.U8, Integer.S8])
def test_a_relu_becomes_a_part_of_the_range(activations: Integer, calibration: Calibration) -> None:
    assert "Relu" not in operators(quantized(calibration, scheme(Form.QDQ, activations, Integer.S8)))


def test_gemms_with_relu_between_them_are_quantized_from_end_to_end() -> None:
    model, samples = dense(), row_samples(200, 64)
    int8 = build(model, U8S8, calibrate(model, samples), excluded_nodes=(), inputs=samples)

    assert leftover_nodes(int8) == (1, 0)
    assert error(int8, model, row_samples(100, 64, seed=8)) < 0.03


@pytest.mark.parametrize("form", [Form.QDQ, Form.QOPERATOR])
def test_masks_and_products_of_activations_stay_in_float(form: Form) -> None:
    model, samples = attention(is_masked=True), sequence_samples(100)
    how = scheme(form, Integer.U8, Integer.S8)

    int8 = build(model, how, calibrate(model, samples), excluded_nodes=(), inputs=samples)

    graph = onnx.load_from_string(int8).graph
    by_name = {node.name: node for node in graph.node}
    makers = {output: node.op_type for node in graph.node for output in node.output}
    for name in ("MatMul:qk", "MatMul:mixed"):
        assert by_name[name].op_type == "MatMul"
    assert by_name["Add:masked"].op_type == "Add"
    assert list(by_name["Softmax:attended"].input) == ["masked"]
    assert makers["masked"] == "Add"
    assert len(integer_weights(int8)) == 7
    assert error(int8, model, sequence_samples(50, seed=8)) < 0.05


@pytest.mark.parametrize("weights", [Integer.S8, Integer.S7])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("fp32", "samples"),
    [
        (convolutional(spread=100), image_samples(30)),
        (dense(spread=100), row_samples(30, 64)),
        (attention(), sequence_samples(30)),
    ],
    ids=["convolutions", "gemms", "attention"],
)
def test_weights_are_the_integers_that_onnx_runtime_would_make(
    fp32: bytes, samples: Inputs, per_channel: bool, weights: Integer, monkeypatch: pytest.MonkeyPatch
) -> None:
    how, calibration = scheme(Form.QDQ, Integer.U8, weights, per_channel=per_channel), calibrate(fp32, samples)
    ours = build(fp32, how, calibration, excluded_nodes=(), inputs=samples)
    monkeypatch.setattr(static, "_BITS", {})
    theirs = build(fp32, how, calibration, excluded_nodes=(), inputs=samples)

    right, found = ({tensor.name: tensor for tensor in constants(model)} for model in (theirs, ours))

    assert right.keys() == found.keys()
    for name, tensor in right.items():
        np.testing.assert_array_equal(numpy_helper.to_array(found[name]), numpy_helper.to_array(tensor), err_msg=name)


def test_layers_that_share_their_weights_in_different_ways_answer_rightly() -> None:
    weights = np.random.default_rng(1).normal(size=(16, 16)) * np.geomspace(1, 1_000, 16)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["x", "w"], ["b"], transB=1),
        helper.make_node("Gemm", ["a", "v"], ["y"]),
        helper.make_node("Gemm", ["b", "v"], ["z"]),
    ]
    tensors = {"w": weights, "v": np.random.default_rng(2).normal(size=(16, 8)) / np.geomspace(1, 1_000, 16)[:, None]}
    fp32 = model_of(nodes, tensors, inputs={"x": ["n", 16]}, outputs={"y": ["n", 8], "z": ["n", 8]})
    samples = row_samples(100, 16)

    int8 = build(fp32, U8S8, calibrate(fp32, samples), excluded_nodes=("Gemm:y", "Gemm:z"), inputs=samples)

    assert "w" not in {tensor.name for tensor in constants(int8)}
    with loaded(fp32) as before, loaded(int8) as after:
        right, found = run_all(before, samples), run_all(after, samples)
    for name in ("y", "z"):
        assert np.abs(found[name] - right[name]).mean() < 0.05 * np.abs(right[name]).mean()


def test_a_bias_that_dwarfs_its_weights_still_fits() -> None:
    model = onnx.load_from_string(dense((16, 12, 4)))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights, bias = (numpy_helper.to_array(tensors[name]).copy() for name in ("w0", "b0"))
    weights[:, 3], bias[3] = 0.0, 7.0
    weights[:, 5], bias[5] = 1e-12, 7.0
    tensors["w0"].CopyFrom(numpy_helper.from_array(weights, "w0"))
    tensors["b0"].CopyFrom(numpy_helper.from_array(bias, "b0"))
    fp32, samples = model.SerializeToString(), row_samples(100, 16)

    int8 = build(fp32, U8S8, calibrate(fp32, samples), excluded_nodes=(), inputs=samples)

    assert error(int8, fp32, samples) < 0.03


def constants(model: bytes) -> list[onnx.TensorProto]:
    return list(onnx.load_from_string(model).graph.initializer)
