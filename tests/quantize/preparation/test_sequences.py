"""GELU and LayerNormalization are found in the ways that exporters write them, and nothing else is taken for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import NodeProto

from quantize.preparation.sequences import fuse_gelu, fuse_layer_normalization
from tests.quantize.preparation.graphs import BATCH, ints, model, node, normal, operators, rewritten

NUMBERS = {
    "root2": np.array(math.sqrt(2), np.float32),
    "half": np.array(0.5, np.float32),
    "two": np.array(2, np.float32),
    "third": np.array(1 / 3, np.float32),
    "one": np.array(1, np.float32),
}
ERF = [node("Div", "x root2", "a"), node("Erf", "a", "b"), node("Add", "b one", "c")]


@pytest.mark.parametrize(
    "tail",
    [
        [node("Mul", "x c", "d"), node("Mul", "d half", "y")],
        [node("Mul", "c x", "d"), node("Div", "d two", "y")],
        [node("Mul", "half c", "d"), node("Mul", "x d", "y")],
        [node("Mul", "x half", "d"), node("Mul", "d c", "y")],
    ],
)
def test_gelu_is_found_however_it_is_halved(tail: list[NodeProto]) -> None:
    assert operators(rewritten(model([*ERF, *tail], NUMBERS), fuse_gelu)) == {"Gelu": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        [*ERF, node("Mul", "x c", "d"), node("Mul", "d third", "y")],
        [*ERF[:2], node("Add", "b two", "c"), node("Mul", "x c", "d"), node("Mul", "d half", "y")],
        [*ERF, node("Mul", "a c", "d"), node("Mul", "d half", "y")],
        [node("Div", "x two", "a"), *ERF[1:], node("Mul", "x c", "d"), node("Mul", "d half", "y")],
        [*ERF, node("Mul", "x c", "d"), node("Mul", "d half", "e"), node("Add", "e c", "y")],
    ],
)
def test_what_only_resembles_gelu_stays(nodes: list[NodeProto]) -> None:
    before = model(nodes, NUMBERS)

    assert operators(rewritten(before, fuse_gelu)) == operators(before)


def _normalized(square: NodeProto, *, axis: int = -1) -> bytes:
    return model(
        [
            node("ReduceMean", "x axis", "mean"),
            node("Sub", "x mean", "centred"),
            square,
            node("ReduceMean", "square axis", "variance"),
            node("Add", "variance epsilon", "safe"),
            node("Sqrt", "safe", "root"),
            node("Div", "centred root", "normal"),
            node("Mul", "normal gamma", "scaled"),
            node("Add", "scaled beta", "y"),
        ],
        {
            "axis": ints(axis),
            "two": np.array(2, np.float32),
            "epsilon": np.array(1e-3, np.float32),
            "gamma": normal(6),
            "beta": normal(6, seed=2),
        },
        x=(BATCH, 6, 6),
    )


@pytest.mark.parametrize(
    "square", [node("Pow", "centred two", "square"), node("Mul", "centred centred", "square")], ids=["pow", "product"]
)
def test_layer_normalization_is_put_together(square: NodeProto) -> None:
    assert operators(rewritten(_normalized(square), fuse_layer_normalization)) == {"LayerNormalization": 1}


def test_a_normalization_over_another_axis_stays() -> None:
    before = _normalized(node("Pow", "centred two", "square"), axis=1)

    assert operators(rewritten(before, fuse_layer_normalization)) == operators(before)
