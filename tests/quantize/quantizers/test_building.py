"""Building: every form, one clear reason when it cannot be, and the real networks it is meant for."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import quantize
from quantize.calibration import Calibration, calibrate
from quantize.data import Inputs
from quantize.errors import InvalidModelError, QuantizationFailedError
from quantize.evaluation import loaded, run_all
from quantize.preparation import prepare
from quantize.quantizers import build, building, candidate_schemes, leftover_nodes
from quantize.scheme import Form, Integer, Scheme
from tests.quantize.quantizers.networks import (
    attention,
    convolutional,
    dense,
    image_samples,
    row_samples,
    sequence_samples,
)

TRANSFORMER = Path(__file__).parents[3] / "models" / "tiny_transformer" / "fp32" / "1.0.0.onnx"
TOKENS = np.random.default_rng(1).integers(1, 256, size=(16, 64))
DYNAMIC = Scheme(form=Form.DYNAMIC, activations=Integer.U8, weights=Integer.S8)
U8S8 = Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S8)


def weight_only(weights: Integer, block_size: int) -> Scheme:
    return Scheme(form=Form.WEIGHT_ONLY, weights=weights, block_size=block_size)


def made(fp32: bytes, scheme: Scheme, samples: Inputs, *, excluded_nodes: tuple[str, ...] = ()) -> bytes:
    return build(fp32, scheme, calibrate(fp32, samples), excluded_nodes=excluded_nodes, inputs=samples)


def answers(model: bytes, samples: Inputs) -> NDArray[Any]:
    with loaded(model) as runnable:
        (output,) = run_all(runnable, samples).values()
    return output


def error(model: bytes, fp32: bytes, samples: Inputs) -> float:
    right = answers(fp32, samples)
    return float(np.abs(answers(model, samples) - right).mean() / np.abs(right).mean())


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


@pytest.mark.parametrize(
    ("fp32", "samples", "unseen"),
    [
        (convolutional(), image_samples(60), image_samples(30, seed=9)),
        (dense(), row_samples(60, 64), row_samples(30, 64, seed=9)),
        (attention(), sequence_samples(60), sequence_samples(30, seed=9)),
        (attention(has_residual=True, is_masked=True), sequence_samples(60), sequence_samples(30, seed=9)),
    ],
    ids=["convolutions", "gemms", "attention", "masked attention"],
)
def test_every_scheme_worth_trying_builds_loads_answers_and_is_the_same_twice(
    fp32: bytes, samples: Inputs, unseen: Inputs
) -> None:
    calibration = calibrate(fp32, samples)
    for scheme in candidate_schemes(fp32):
        model = build(fp32, scheme, calibration, excluded_nodes=(), inputs=samples)

        assert error(model, fp32, unseen) < (0.2 if scheme.weights is Integer.S4 else 0.05), scheme.quantization
        assert build(fp32, scheme, calibration, excluded_nodes=(), inputs=samples) == model, scheme.quantization


@pytest.mark.parametrize("form", [Form.GIVEN, Form.FLOAT])
def test_the_float_forms_are_the_model_itself(form: Form) -> None:
    assert made(dense(), Scheme(form=form), row_samples(5, 64)) == dense()


def test_dynamic_quantizes_gemms_and_leaves_convolutions_alone() -> None:
    found = operators(made(convolutional(), DYNAMIC, image_samples(10)))

    assert found["MatMulInteger"] == 1
    assert found["Gemm"] == found["ConvInteger"] == 0
    assert found["Conv"] == 3


def test_dynamic_and_weight_only_leave_excluded_layers_in_float() -> None:
    for scheme, operator in ((DYNAMIC, "MatMulInteger"), (weight_only(Integer.S8, 32), "MatMulNBits")):
        model = made(dense(), scheme, row_samples(10, 64), excluded_nodes=("Gemm:g0",))

        assert operators(model)[operator] == 2
        kept = {
            tensor.name for tensor in onnx.load_from_string(model).graph.initializer if list(tensor.dims) == [64, 48]
        }
        assert len(kept) == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_a_gemm_of_any_shape_and_factor_is_quantized_as_what_it_computes(transposed: bool) -> None:
    model = onnx.load_from_string(dense())
    for node in model.graph.node:
        if node.op_type == "Gemm":
            settings = {"alpha": 0.5, "beta": 2.0} | ({"transB": 1} if transposed else {})
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in settings.items())
    if transposed:
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2:
                turned = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor).T)
                tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
    fp32, samples = model.SerializeToString(), row_samples(60, 64)

    for scheme in (DYNAMIC, weight_only(Integer.S8, 32), U8S8):
        assert error(made(fp32, scheme, samples), fp32, samples) < 0.05


def test_dynamic_reaches_the_layers_behind_operators_of_onnx_runtimes_own() -> None:
    prepared = prepare(TRANSFORMER.read_bytes()).model

    assert "Gelu" in operators(prepared)
    assert operators(made(prepared, DYNAMIC, {"tokens": TOKENS}))["MatMulInteger"] >= 12


def test_weights_in_blocks_take_a_quarter_or_an_eighth_of_the_space() -> None:
    fp32, samples = dense((256, 256, 256, 8)), row_samples(10, 256)

    eight, four = (len(made(fp32, weight_only(bits, 128), samples)) for bits in (Integer.S8, Integer.S4))

    assert eight < len(fp32) / 3
    assert four < len(fp32) / 5


def test_only_layers_of_a_whole_block_are_made_weight_only() -> None:
    assert operators(made(dense(), weight_only(Integer.S4, 64), row_samples(5, 64)))["MatMulNBits"] == 1
    with pytest.raises(QuantizationFailedError, match="use smaller blocks"):
        made(dense(), weight_only(Integer.S4, 128), row_samples(5, 64))


def test_float16_keeps_the_types_of_inputs_and_outputs() -> None:
    fp32, samples = convolutional(), image_samples(10)
    half = made(fp32, Scheme(form=Form.FLOAT16), samples)

    with loaded(fp32) as before, loaded(half) as after:
        assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    types = {tensor.data_type for tensor in onnx.load_from_string(half).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert onnx.TensorProto.FLOAT not in types


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(form=Form.DYNAMIC, activations=Integer.S8, weights=Integer.S8),
        Scheme(form=Form.DYNAMIC, activations=Integer.U8, weights=Integer.S4),
        weight_only(Integer.U8, 32),
        weight_only(Integer.S4, 48),
    ],
    ids=lambda scheme: scheme.quantization,
)
def test_a_scheme_that_its_form_cannot_have_is_refused(scheme: Scheme) -> None:
    with pytest.raises(QuantizationFailedError, match="weights"):
        made(dense(), scheme, row_samples(5, 64))


def test_whatever_goes_wrong_inside_is_one_line_that_names_the_scheme(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = Calibration(key="", samples=1, histograms={}, averages={}, masks=frozenset(), channel_maxima={})

    with pytest.raises(QuantizationFailedError, match="cannot be made int8-qdq-u8s8: "):
        build(b"no model", U8S8, calibration, excluded_nodes=(), inputs={})

    def fail(*_: object, **__: object) -> bytes:
        raise ValueError("first line\nsecond line\n" + 1_000 * "x")

    monkeypatch.setattr(building, "build_static", fail)
    with pytest.raises(QuantizationFailedError, match="u8s8: first line second line x") as caught:
        build(dense(), U8S8, calibration, excluded_nodes=(), inputs={})
    assert len(str(caught.value)) < 400
    assert not caplog.records


def test_building_says_nothing_in_the_log_and_leaves_logging_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        made(dense(), U8S8, row_samples(5, 64))
        logging.getLogger("after").warning("heard")

    assert [record.name for record in caplog.records] == ["after"]


def test_leftover_nodes_of_a_file_that_does_not_load_are_an_error() -> None:
    with pytest.raises(InvalidModelError, match="cannot load"):
        leftover_nodes(b"no model")


def mlperf_tiny(name: str) -> bytes:
    default = Path(quantize.__file__).parents[2] / "shared" / "mlperf_tiny"
    path = Path(os.environ.get("EDGEFLEET_MLPERF_TINY", default)) / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no MLPerf Tiny models: {path} is not there; set EDGEFLEET_MLPERF_TINY to their folder")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "shape", "scale", "worst"),
    [("ic", (32, 32, 3), 255.0, 0.1), ("vww", (96, 96, 3), 1.0, 0.2), ("ad", (640,), 5.0, 0.1)],
)
def test_a_real_network_is_quantized_and_corrected(
    name: str, shape: tuple[int, ...], scale: float, worst: float
) -> None:
    fp32 = mlperf_tiny(name)
    samples = {"input_1": np.random.default_rng(1).uniform(0, scale, size=(40, *shape)).astype(np.float32)}
    calibration = calibrate(fp32, samples)

    for form in (Form.QDQ, Form.QOPERATOR):
        scheme = Scheme(form=form, activations=Integer.U8, weights=Integer.S8, per_channel=True, bias_corrected=True)
        int8 = build(fp32, scheme, calibration, excluded_nodes=(), inputs=samples)

        assert error(int8, fp32, samples) < worst
        assert len(int8) < len(fp32) / 2
