"""Convolutions take in their neighbours, and the numbers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from quantize.preparation.channels import pad_channels
from quantize.preparation.convolutions import (
    fold_affine_after,
    fold_affine_before,
    fold_input_transpose,
    fold_padding,
    pool_by_operator,
)
from tests.quantize.preparation.graphs import BATCH, ints, model, node, normal, operators, rewritten

IMAGE = (BATCH, 3, 8, 8)


def _statistics(channels: int) -> dict[str, NDArray[Any]]:
    return {
        "gamma": normal(channels, seed=2),
        "beta": normal(channels, seed=3),
        "mean": normal(channels, seed=4),
        "var": np.abs(normal(channels, seed=5)) + np.float32(0.1),
    }


NORMALIZE = "gamma beta mean var"


@pytest.mark.parametrize("bias", [{}, {"b": normal(5, seed=9)}])
def test_batch_normalization_goes_into_the_convolution_before_it(bias: dict[str, NDArray[Any]]) -> None:
    before = model(
        [node("Conv", f"x w {'b' if bias else ''}", "h"), node("BatchNormalization", f"h {NORMALIZE}", "y")],
        {"w": normal(5, 3, 3, 3), **bias, **_statistics(5)},
        x=IMAGE,
    )

    assert operators(rewritten(before, fold_affine_after)) == {"Conv": 1}


def test_batch_normalization_goes_into_a_depthwise_and_a_transposed_convolution() -> None:
    before = model(
        [
            node("Conv", "x w", "a", group=3),
            node("BatchNormalization", f"a {NORMALIZE}", "b"),
            node("ConvTranspose", "b v", "c"),
            node("BatchNormalization", f"c {NORMALIZE}", "y"),
        ],
        {"w": normal(3, 1, 3, 3), "v": normal(3, 3, 2, 2, seed=6), **_statistics(3)},
        x=IMAGE,
    )

    assert operators(rewritten(before, fold_affine_after)) == {"Conv": 1, "ConvTranspose": 1}


@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_normalization_goes_into_a_dense_layer(transposed: int) -> None:
    before = model(
        [
            node("Gemm", "x w b", "h", transB=transposed, alpha=0.5, beta=2.0),
            node("BatchNormalization", f"h {NORMALIZE}", "y"),
        ],
        {"w": normal(*((5, 4) if transposed else (4, 5))), "b": normal(5, seed=8), **_statistics(5)},
    )

    assert operators(rewritten(before, fold_affine_after)) == {"Gemm": 1}


def test_batch_normalization_stays_where_another_layer_sees_the_convolution() -> None:
    before = model(
        [
            node("Conv", "x w", "h"),
            node("BatchNormalization", f"h {NORMALIZE}", "n"),
            node("Add", "h n", "y"),
        ],
        {"w": normal(5, 3, 3, 3), **_statistics(5)},
        x=IMAGE,
    )

    assert "BatchNormalization" in operators(rewritten(before, fold_affine_after))


def test_batch_normalization_stays_where_the_application_sees_the_convolution() -> None:
    before = onnx.load_from_string(
        model(
            [node("Conv", "x w", "h"), node("BatchNormalization", f"h {NORMALIZE}", "y")],
            {"w": normal(5, 3, 3, 3), **_statistics(5)},
            x=IMAGE,
        )
    )
    before.graph.output.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, (BATCH, 5, 6, 6)))

    assert "BatchNormalization" in operators(rewritten(before.SerializeToString(), fold_affine_after))


def test_a_scale_of_the_image_goes_into_a_padded_convolution_and_an_offset_does_not() -> None:
    def network(operator: str) -> bytes:
        return model(
            [node(operator, "x c", "h"), node("Conv", "h w", "y", pads=[1, 1, 1, 1])],
            {"c": np.array(16, np.float32), "w": normal(5, 3, 3, 3)},
            x=IMAGE,
        )

    assert operators(rewritten(network("Div"), fold_affine_before)) == {"Conv": 1}
    assert operators(rewritten(network("Sub"), fold_affine_before)) == {"Sub": 1, "Conv": 1}


def test_standardising_each_channel_goes_into_a_convolution_without_padding() -> None:
    before = model(
        [node("Sub", "x mean", "a"), node("Div", "a std", "b"), node("Conv", "b w bias", "y", strides=[2, 2])],
        {
            "mean": normal(3, 1, 1, seed=2),
            "std": np.array([0.5, 2, 3], np.float32).reshape(1, 3, 1, 1),
            "w": normal(5, 3, 3, 3),
            "bias": normal(5, seed=3),
        },
        x=IMAGE,
    )

    assert operators(rewritten(before, fold_affine_before, fold_affine_before)) == {"Conv": 1}


def test_a_constant_along_the_width_is_no_channel() -> None:
    before = model(
        [node("Conv", "x w", "h"), node("Mul", "h c", "y")],
        {"w": normal(6, 3, 3, 3), "c": normal(6)},
        x=IMAGE,
    )

    assert operators(rewritten(before, fold_affine_after)) == {"Conv": 1, "Mul": 1}


def test_zeros_around_the_image_are_the_convolutions_own_padding() -> None:
    def network(value: float) -> bytes:
        return model(
            [node("Pad", "x pads value", "h"), node("Conv", "h w", "y", pads=[1, 0, 0, 0])],
            {"pads": ints(0, 0, 0, 1, 0, 0, 1, 2), "value": np.array(value, np.float32), "w": normal(5, 3, 3, 3)},
            x=IMAGE,
        )

    assert operators(rewritten(network(0), fold_padding)) == {"Conv": 1}
    assert operators(rewritten(network(1), fold_padding)) == {"Pad": 1, "Conv": 1}


@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [((3, 3), [2, 2], [0, 0, 1, 1]), ((3, 3), [1, 1], [1, 1, 1, 1]), ((2, 5), [1, 3], [1, 0, 0, 2]),
     ((1, 1), [1, 1], [0, 0, 0, 0])],
)  # fmt: skip
def test_an_image_with_channels_last_is_read_as_it_lies(
    kernel: tuple[int, int], strides: list[int], pads: list[int]
) -> None:
    before = model(
        [node("Transpose", "x", "h", perm=[0, 3, 1, 2]), node("Conv", "h w b", "y", strides=strides, pads=pads)],
        {"w": normal(5, 3, *kernel), "b": normal(5, seed=2)},
        x=(BATCH, 9, 12, 3),
    )

    assert operators(rewritten(before, fold_input_transpose)) == {"Reshape": 1, "Conv": 1}


@pytest.mark.parametrize("settings", [{"dilations": [2, 2]}, {"group": 3}, {"auto_pad": "SAME_UPPER"}])
def test_a_convolution_that_skips_or_groups_keeps_its_transpose(settings: dict[str, Any]) -> None:
    before = model(
        [node("Transpose", "x", "h", perm=[0, 3, 1, 2]), node("Conv", "h w", "y", **settings)],
        {"w": normal(6, 1 if "group" in settings else 3, 3, 3)},
        x=(BATCH, 9, 12, 3),
    )

    assert operators(rewritten(before, fold_input_transpose))["Transpose"] == 1


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_the_image_is_a_pooling(keepdims: int) -> None:
    before = model(
        [node("Conv", "x w", "h"), node("ReduceMean", "h axes", "y", keepdims=keepdims)],
        {"w": normal(5, 3, 3, 3), "axes": ints(-1, 2)},
        x=IMAGE,
    )

    after = operators(rewritten(before, pool_by_operator))

    assert after == {"Conv": 1, "GlobalAveragePool": 1, **({} if keepdims else {"Flatten": 1})}


def test_channels_grow_to_the_block_between_two_convolutions() -> None:
    before = model(
        [
            node("Conv", "x w1 b1", "a"),
            node("Relu", "a", "b"),
            node("Conv", "b w2", "c", group=6),
            node("Relu", "c", "d"),
            node("Conv", "d w3", "y"),
        ],
        {"w1": normal(6, 3, 3, 3), "b1": normal(6), "w2": normal(6, 1, 3, 3), "w3": normal(5, 6, 1, 1)},
        x=IMAGE,
    )

    after = rewritten(before, lambda graph: pad_channels(graph, 16))

    assert operators(after) == operators(before)
    assert len(after) > len(before) + 4 * 9 * (16 - 6)


def test_channels_stay_where_the_application_sees_them() -> None:
    before = model([node("Conv", "x w", "h"), node("Relu", "h", "y")], {"w": normal(6, 3, 3, 3)}, x=IMAGE)

    assert len(rewritten(before, lambda graph: pad_channels(graph, 16))) <= len(before) + 50
