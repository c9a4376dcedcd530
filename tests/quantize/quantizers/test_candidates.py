"""Which schemes are tried for which graph."""

from __future__ import annotations

import pytest

from quantize.quantizers import candidate_schemes
from quantize.scheme import Form, Integer, Scheme
from tests.quantize.quantizers.networks import attention, convolutional, dense, model_of

X86, ARM = ("x86_64",), ("aarch64",)


def forms(schemes: tuple[Scheme, ...]) -> set[Form]:
    return {scheme.form for scheme in schemes}


def test_a_convolutional_network_is_tried_in_static_forms_first_and_per_channel() -> None:
    first, *_ = schemes = candidate_schemes(convolutional(), architectures=X86)

    assert (first.form, first.per_channel) == (Form.QDQ, True)
    assert Form.QOPERATOR in forms(schemes)


def test_a_network_of_gemms_is_tried_per_tensor_first() -> None:
    first, *_ = schemes = candidate_schemes(dense(), architectures=X86)

    assert (first.form, first.per_channel) == (Form.QDQ, False)
    assert {Form.DYNAMIC, Form.WEIGHT_ONLY} <= forms(schemes)


def test_a_transformer_is_tried_in_dynamic_form_first_and_smoothed() -> None:
    first, *_ = schemes = candidate_schemes(attention(), architectures=X86)

    assert first.form is Form.DYNAMIC
    assert {scheme.form for scheme in schemes if scheme.smoothing} == {Form.DYNAMIC, Form.QDQ}


@pytest.mark.parametrize("network", [convolutional(), dense()], ids=["convolutions", "gemms"])
def test_nothing_is_smoothed_without_a_layer_normalisation(network: bytes) -> None:
    assert not any(scheme.smoothing for scheme in candidate_schemes(network))


def test_blocks_are_no_longer_than_the_largest_matrix() -> None:
    assert {scheme.block_size for scheme in candidate_schemes(dense()) if scheme.form is Form.WEIGHT_ONLY} == {32}
    large = candidate_schemes(dense((128, 128, 8)))
    assert {scheme.block_size for scheme in large if scheme.form is Form.WEIGHT_ONLY} == {32, 128}
    small = candidate_schemes(dense((16, 16, 8)))
    assert Form.WEIGHT_ONLY not in forms(small)


def test_signed_activations_are_for_arm_and_exact_or_7_bit_weights_for_x86() -> None:
    on_x86, on_arm = (candidate_schemes(convolutional(), architectures=names) for names in (X86, ARM))

    assert not any(scheme.activations is Integer.S8 for scheme in on_x86)
    assert any(scheme.activations is Integer.S8 for scheme in on_arm)
    assert {Integer.S7, Integer.U8} <= {scheme.weights for scheme in on_x86}
    assert not {Integer.S7, Integer.U8} & {scheme.weights for scheme in on_arm}


def test_a_graph_without_weights_has_no_candidates() -> None:
    from onnx import helper

    nothing = model_of([helper.make_node("Relu", ["x"], ["y"])], {}, inputs={"x": ["n", 2]}, outputs={"y": ["n", 2]})

    assert candidate_schemes(nothing) == ()


@pytest.mark.parametrize("network", [convolutional(), dense(), attention()], ids=["conv", "gemm", "attention"])
def test_no_scheme_is_tried_twice(network: bytes) -> None:
    schemes = candidate_schemes(network)

    assert len(set(schemes)) == len(schemes)
