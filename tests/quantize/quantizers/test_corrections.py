"""Corrections: each computes what it should, and helps the network that was built to need it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from quantize.calibration import Activations, calibrate
from quantize.corrections import bias_corrected, can_be_smoothed, cross_layer_equalised, pairs, smoothed
from quantize.data import Inputs
from quantize.errors import QuantizationFailedError
from quantize.evaluation import loaded, run_all
from quantize.preparation import prepare
from quantize.quantizers import build
from quantize.scheme import Form, Integer, Scheme
from tests.quantize.quantizers.networks import (
    attention,
    convolutional,
    dense,
    image_samples,
    row_samples,
    sequence_samples,
)

PER_TENSOR = Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S8)
DYNAMIC = Scheme(form=Form.DYNAMIC, activations=Integer.U8, weights=Integer.S8)


def answers(model: bytes, samples: Inputs) -> NDArray[Any]:
    with loaded(model) as runnable:
        (output,) = run_all(runnable, samples).values()
    return output


def error(model: bytes, fp32: bytes, samples: Inputs) -> float:
    right = answers(fp32, samples)
    return float(np.abs(answers(model, samples) - right).mean() / np.abs(right).mean())


def made(fp32: bytes, scheme: Scheme, samples: Inputs) -> bytes:
    return build(fp32, scheme, calibrate(fp32, samples), excluded_nodes=(), inputs=samples)


def biased(model: bytes, quantized: bytes, samples: Inputs, name: str) -> float:
    """The mean error of one tensor per channel, as a share of its mean magnitude."""
    right = Activations(model=model, names={name})(dict(samples))[name]
    found = Activations(model=quantized, names={name}, optimised=False)(dict(samples))[name]
    return float(np.abs((found - right).mean(axis=0)).mean() / np.abs(right).mean())


@pytest.mark.parametrize(
    ("fp32", "samples", "count"),
    [
        (convolutional(spread=1_000), image_samples(40), 2),
        (convolutional(spread=1_000, activation="LeakyRelu"), image_samples(40), 2),
        (dense(spread=1_000), row_samples(40, 64), 2),
    ],
    ids=["convolutions", "leaky", "gemms"],
)
def test_an_equalised_network_computes_the_same(fp32: bytes, samples: Inputs, count: int) -> None:
    equal = cross_layer_equalised(fp32)

    assert len(pairs(fp32)) == count
    assert equal != fp32
    np.testing.assert_allclose(answers(equal, samples), answers(fp32, samples), rtol=1e-5, atol=1e-5)
    assert cross_layer_equalised(fp32) == equal


def test_both_layers_of_an_equalised_pair_have_the_same_range_in_every_channel() -> None:
    tensors = onnx.load_from_string(cross_layer_equalised(dense((16, 12, 4), spread=100))).graph
    by_name = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors.initializer}
    first, second = (by_name[node.input[1]] for node in tensors.node if node.op_type == "Gemm")

    np.testing.assert_allclose(np.abs(first).max(axis=0), np.abs(second).max(axis=1), rtol=1e-3)


@pytest.mark.parametrize(
    ("fp32", "samples", "unseen"),
    [
        (convolutional(spread=10_000), image_samples(200), image_samples(100, seed=9)),
        (dense(spread=10_000), row_samples(200, 64), row_samples(100, 64, seed=9)),
    ],
    ids=["convolutions", "gemms"],
)
def test_equalisation_rescues_channels_of_wildly_unequal_ranges(fp32: bytes, samples: Inputs, unseen: Inputs) -> None:
    plain = error(made(fp32, PER_TENSOR, samples), fp32, unseen)
    equal = error(made(fp32, replace(PER_TENSOR, equalised=True), samples), fp32, unseen)

    assert plain > 0.1
    assert equal < plain / 5


def test_a_relu6_stops_equalisation_because_its_six_would_not_scale() -> None:
    fp32 = convolutional(spread=100, activation="Clip")

    assert pairs(fp32) == ()
    assert cross_layer_equalised(fp32) == fp32
    with pytest.raises(QuantizationFailedError, match="equalised"):
        made(fp32, replace(PER_TENSOR, equalised=True), image_samples(10))


def test_a_layer_whose_output_is_seen_elsewhere_is_not_equalised() -> None:
    model = onnx.load_from_string(dense())
    model.graph.output.append(onnx.helper.make_tensor_value_info("r0", onnx.TensorProto.FLOAT, ["n", 48]))

    assert [pair.first for pair in pairs(model.SerializeToString())] == ["Gemm:g1"]


def test_a_channel_that_is_a_constant_keeps_its_size() -> None:
    model = onnx.load_from_string(dense((16, 12, 4)))
    for place, array in ((0, np.ones((16, 12))), (1, np.ones(12))):
        array[..., 3] = 1e-9 if place == 0 else 5.0
        model.graph.initializer[place].CopyFrom(
            onnx.numpy_helper.from_array(array.astype(np.float32), model.graph.initializer[place].name)
        )
    fp32, samples = model.SerializeToString(), row_samples(50, 16)

    before, after = (
        Activations(model=content, names={"r0"})(samples)["r0"].max() for content in (fp32, cross_layer_equalised(fp32))
    )

    assert after < 30 * before


@pytest.mark.parametrize("form", [Form.QDQ, Form.QOPERATOR])
def test_corrected_biases_bring_answers_nearer_to_fp32(form: Form) -> None:
    fp32, samples, unseen = dense((64, 64, 64, 64, 8)), row_samples(200, 64), row_samples(200, 64, seed=9)
    coarse = replace(PER_TENSOR, form=form, weights=Integer.S7)

    plain = error(made(fp32, coarse, samples), fp32, unseen)
    corrected = error(made(fp32, replace(coarse, bias_corrected=True), samples), fp32, unseen)

    assert corrected < 0.9 * plain


def test_bias_correction_leaves_a_small_part_of_the_mean_error() -> None:
    fp32, samples, unseen = dense(), row_samples(256, 64), row_samples(256, 64, seed=9)
    coarse = replace(PER_TENSOR, weights=Integer.S7)

    plain, corrected = (
        biased(fp32, made(fp32, scheme, samples), unseen, "y")
        for scheme in (coarse, replace(coarse, bias_corrected=True))
    )

    assert corrected < plain / 2


def test_a_layer_without_a_bias_gets_one_and_an_excluded_layer_none() -> None:
    model = onnx.load_from_string(convolutional())
    del model.graph.node[0].input[2:]
    fp32, samples = model.SerializeToString(), image_samples(100)
    calibration = calibrate(fp32, samples)

    def quantize(content: bytes) -> bytes:
        return build(content, PER_TENSOR, calibration, excluded_nodes=("Conv:c3",), inputs=samples)

    corrected = onnx.load_from_string(bias_corrected(fp32, quantize, samples, excluded_nodes=("Conv:c3",)))

    biases = {node.name: list(node.input[2:]) for node in corrected.graph.node if node.op_type in ("Conv", "Gemm")}
    assert biases.pop("Conv:c3") == ["b3"]
    assert all(name.endswith("/corrected") for names in biases.values() for name in names)
    assert len(biases["Conv:c1"]) == 1


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_a_smoothed_network_computes_the_same(has_residual: bool, alpha: float) -> None:
    fp32, samples = attention(outlier=50, has_residual=has_residual), sequence_samples(40)

    smooth = smoothed(fp32, calibrate(fp32, samples).channel_maxima, alpha=alpha)

    assert smooth != fp32
    np.testing.assert_allclose(answers(smooth, samples), answers(fp32, samples), rtol=1e-4, atol=1e-5)


def test_smoothing_costs_an_operator_only_where_the_normalised_input_goes_elsewhere_too() -> None:
    counts = {}
    for has_residual in (False, True):
        fp32 = attention(outlier=50, has_residual=has_residual)
        smooth = smoothed(fp32, calibrate(fp32, sequence_samples(10)).channel_maxima, alpha=0.5)
        counts[has_residual] = len(onnx.load_from_string(smooth).graph.node) - len(
            onnx.load_from_string(fp32).graph.node
        )

    assert counts == {False: 0, True: 1}


@pytest.mark.parametrize(("shape", "added"), [([-1, 32], 0), ([-1, 16], 1)])
def test_smoothing_sees_through_a_reshape_that_keeps_the_channels(shape: list[int], added: int) -> None:
    model = onnx.load_from_string(attention(outlier=50))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape), "rows"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 6, 32]), "sequences"))
    query = next(node for node in model.graph.node if node.name == "MatMul:q")
    query.input[0] = "back"
    place = list(model.graph.node).index(query)
    model.graph.node.insert(place, onnx.helper.make_node("Reshape", ["n1", "rows"], ["turned"], name="there"))
    model.graph.node.insert(place + 1, onnx.helper.make_node("Reshape", ["turned", "sequences"], ["back"], name="back"))
    fp32, samples = model.SerializeToString(), sequence_samples(100)

    smooth = smoothed(fp32, calibrate(fp32, samples).channel_maxima, alpha=0.5)

    np.testing.assert_allclose(answers(smooth, samples), answers(fp32, samples), rtol=1e-4, atol=1e-5)
    assert len(onnx.load_from_string(smooth).graph.node) == len(model.graph.node) + added


def test_what_preparation_makes_of_a_transformer_can_still_be_smoothed() -> None:
    fp32, samples = prepare(attention(outlier=50)).model, sequence_samples(100)

    assert error(made(fp32, replace(DYNAMIC, smoothing=0.5), samples), fp32, samples) < 0.02


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("base", [DYNAMIC, PER_TENSOR], ids=["dynamic", "static"])
def test_smoothing_rescues_a_transformer_with_outlier_channels(base: Scheme, has_residual: bool) -> None:
    fp32 = attention(outlier=50, has_residual=has_residual)
    samples, unseen = sequence_samples(200), sequence_samples(100, seed=9)

    plain = error(made(fp32, base, samples), fp32, unseen)
    smooth = error(made(fp32, replace(base, smoothing=0.5), samples), fp32, unseen)

    assert plain > 0.05
    assert smooth < plain / 4


def test_a_network_without_normalisation_cannot_be_smoothed() -> None:
    fp32 = dense()

    assert not can_be_smoothed(fp32)
    assert smoothed(fp32, {}, alpha=0.5) == fp32
    assert can_be_smoothed(attention())
    with pytest.raises(QuantizationFailedError, match="smoothed"):
        made(fp32, replace(DYNAMIC, smoothing=0.5), row_samples(10, 64))
