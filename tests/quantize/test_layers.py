"""Layers: what is quantized, or left in float, as one."""

from __future__ import annotations

import onnx

from models.digits.recipe import HERE
from quantize.layers import quantizable_layers
from quantize.preparation import prepare
from tests.quantize.preparation.graphs import BATCH, model, node, normal

DIGITS = prepare((HERE / "fp32" / "1.1.0.onnx").read_bytes()).model


def test_digits_has_its_convolutions_pooling_and_dense_layers_in_order() -> None:
    layers = quantizable_layers(DIGITS)

    assert [layer.operator for layer in layers] == ["Conv", "Conv", "MaxPool", "Gemm", "Gemm", "Softmax"]
    assert [layer.weights for layer in layers] == [16 * 9, 32 * 16 * 9, 0, 32 * 512, 10 * 32, 0]


def test_an_activation_belongs_to_the_layer_it_follows_and_no_node_to_two() -> None:
    layers = quantizable_layers(DIGITS)
    by_name = {each.name: each.op_type for each in onnx.load_from_string(DIGITS).graph.node}

    assert [by_name[name] for name in layers[0].nodes] == ["Conv", "Relu"]
    assert [by_name[name] for name in layers[2].nodes] == ["MaxPool", "Flatten"]
    names = [name for layer in layers for name in layer.nodes]
    assert len(set(names)) == len(names) == len(by_name)
    assert [layer.name for layer in layers] == [layer.name for layer in quantizable_layers(DIGITS)]


def test_a_bias_added_to_a_sequence_belongs_to_its_product() -> None:
    sequence = model(
        [
            node("MatMul", "x w", "a", name="dense"),
            node("Add", "b a", "c", name="bias"),
            node("Clip", "c low", "d", name="clip"),
            node("Add", "d x", "y", name="residual"),
        ],
        {"w": normal(4, 4), "b": normal(4), "low": normal(1).reshape(())},
        x=(BATCH, 3, 4),
    )

    assert [layer.nodes for layer in quantizable_layers(sequence)] == [("dense", "bias", "clip"), ("residual",)]


def test_the_sum_of_a_residual_is_a_layer_of_its_own() -> None:
    residual = model(
        [node("MatMul", "x w", "a", name="dense"), node("Add", "a x", "y", name="residual")], {"w": normal(4, 4)}
    )

    assert [layer.nodes for layer in quantizable_layers(residual)] == [("dense",), ("residual",)]


def test_an_activation_that_another_layer_sees_before_it_is_not_fused() -> None:
    branching = model(
        [
            node("Conv", "x w", "a", name="conv"),
            node("Relu", "a", "b", name="relu"),
            node("Add", "a b", "y", name="sum"),
        ],
        {"w": normal(3, 3, 1, 1)},
        x=(BATCH, 3, 4, 4),
    )

    assert [layer.nodes for layer in quantizable_layers(branching)] == [("conv",), ("sum",)]


def test_a_view_of_the_input_belongs_to_the_layer_that_reads_it() -> None:
    channels_last = model(
        [node("Transpose", "x", "a", name="view", perm=[0, 3, 1, 2]), node("Conv", "a w", "y", name="conv")],
        {"w": normal(5, 9, 1, 1)},
        x=(BATCH, 4, 4, 9),
    )

    assert [layer.nodes for layer in quantizable_layers(channels_last)] == [("view", "conv")]


def test_arithmetic_on_shapes_is_no_layer() -> None:
    counting = model(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "size", axis=0),
            node("Concat", "size four", "target", axis=0),
            node("Reshape", "x target", "a"),
            node("MatMul", "a w", "y", name="dense"),
        ],
        {"zero": normal(1).astype("int64") * 0, "four": normal(1).astype("int64") * 0 + 4, "w": normal(4, 3)},
        y=(BATCH, 3),
    )

    assert [layer.name for layer in quantizable_layers(counting)] == ["dense"]
