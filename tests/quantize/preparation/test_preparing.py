"""All rewrites together: the same answers, the same bytes twice, and what fails is left out and named."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from models.digits.recipe import HERE
from quantize.errors import InvalidModelError
from quantize.preparation import fix_shapes, prepare, preparing, read_model
from quantize.preparation.equality import Reference
from quantize.preparation.graph import Graph
from tests.agent.runtime.onnx_files import mlperf_tiny
from tests.quantize.preparation.graphs import BATCH, model, node, normal, operators

DIGITS = (HERE / "fp32" / "1.1.0.onnx").read_bytes()
LIMIT_S = 5.0


def _mlperf(name: str) -> bytes:
    return fix_shapes(read_model(mlperf_tiny(f"{name}.onnx"), source=name), {}, source=name)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("kws", {"DequantizeLinear", "MatMul", "Add"}),
        ("ic", {"Transpose", "MatMul"}),
        ("vww", {"Transpose", "MatMul", "Add"}),
        ("ad", {"MatMul", "Add"}),
    ],
)
def test_a_real_model_answers_as_before_with_fewer_operators(name: str, gone: set[str]) -> None:
    given = _mlperf(name)

    started = time.monotonic()
    prepared = prepare(given)
    took_s = time.monotonic() - started

    assert Reference(given).difference(prepared.model) is None
    assert not gone & set(operators(prepared.model))
    assert sum(operators(prepared.model).values()) < sum(operators(given).values())
    assert took_s < LIMIT_S


def test_the_scale_of_the_pixels_goes_into_the_first_convolution_of_digits() -> None:
    prepared = prepare(DIGITS)

    assert "Div" not in operators(prepared.model)
    assert any("scales and offsets" in words for words in prepared.rewrites)


def test_the_same_model_gives_the_same_bytes_and_a_prepared_one_has_nothing_left_to_rewrite() -> None:
    once = prepare(DIGITS)

    assert prepare(DIGITS) == once
    assert prepare(once.model).rewrites == ()


def test_wider_channels_answer_the_same() -> None:
    given = _mlperf("vww")

    wider = prepare(given, blocked_channels=16)

    assert Reference(given).difference(wider.model) is None
    assert any("padded" in words for words in wider.rewrites)


def test_every_node_has_a_name_of_its_own_and_keeps_the_one_it_had() -> None:
    named = onnx.load_from_string(
        model([node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")], {"w": normal(4, 3)})
    )
    named.graph.node[0].name = "dense"
    named.graph.node[2].name = "Relu_1"

    names = [each.name for each in onnx.load_from_string(prepare(named.SerializeToString()).model).graph.node]

    assert (names[0], names[2]) == ("dense", "Relu_1")
    assert len(set(names)) == 3
    assert all(names)


def _lie(graph: Graph) -> int:
    for each in graph.by_operator("Relu"):
        graph.replace([each], [onnx.helper.make_node("Abs", each.input, each.output, name=each.name)])
        return 1
    return 0


def _crash(graph: Graph) -> int:
    raise KeyError(len(graph.nodes))


@pytest.mark.parametrize("rewrite", [_lie, _crash])
def test_a_rewrite_that_changes_numbers_or_fails_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, rewrite: Callable[[Graph], int]
) -> None:
    monkeypatch.setattr(
        preparing, "REWRITES", (*preparing.REWRITES[:3], ("a bad idea", rewrite), *preparing.REWRITES[3:])
    )

    prepared = prepare(DIGITS)

    assert Reference(DIGITS).difference(prepared.model) is None
    assert "Div" not in operators(prepared.model)
    assert [words for words in prepared.rewrites if words.startswith("left out: a bad idea: ")]


def test_a_dimension_other_than_the_batch_must_be_settled_first() -> None:
    open_ended = model([node("MatMul", "x w", "y")], {"w": normal(4, 3)}, x=(BATCH, "time", 4))

    with pytest.raises(InvalidModelError, match="axis 1 of input 'x'"):
        prepare(open_ended)


def test_samples_that_only_the_application_knows_are_compared_too() -> None:
    x = np.full((2, 4), 1000, np.float32)
    given = model([node("MatMul", "x w", "y")], {"w": normal(4, 3)})

    assert (
        Reference(given, samples={"x": x}).difference(model([node("MatMul", "x w", "y")], {"w": normal(4, 3)})) is None
    )
    with pytest.raises(InvalidModelError, match="cannot run the model"):
        prepare(given, samples={"x": x[:, :2]})


def test_a_small_change_of_a_weight_is_a_difference() -> None:
    weights = normal(4, 3)
    other = weights.copy()
    other[1, 1] *= 1.001

    reason = Reference(model([node("MatMul", "x w", "y")], {"w": weights})).difference(
        model([node("MatMul", "x w", "y")], {"w": other})
    )

    assert reason is not None
    assert "differs by" in reason
