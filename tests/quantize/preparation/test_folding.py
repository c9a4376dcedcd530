"""What does not depend on the samples is computed once, and what computes nothing goes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from quantize.preparation.folding import drop_no_ops, fold_constants, fold_shapes
from tests.quantize.preparation.graphs import BATCH, ints, model, node, normal, operators, rewritten


def test_int8_weights_behind_a_dequantize_node_become_floats() -> None:
    weights = np.random.default_rng(1).integers(-127, 128, size=(8, 3, 3, 3), dtype=np.int8)
    before = model(
        [node("DequantizeLinear", "w scale zero", "wf", axis=0), node("Conv", "x wf", "y")],
        {"w": weights, "scale": np.linspace(0.01, 0.02, 8, dtype=np.float32), "zero": np.zeros(8, np.int8)},
        x=(BATCH, 3, 8, 8),
    )

    assert operators(rewritten(before, fold_constants)) == {"Conv": 1}


def test_weights_that_several_layers_share_are_stored_once() -> None:
    before = model(
        [
            node("Identity", "w", "a"),
            node("Identity", "w", "b"),
            node("MatMul", "x a", "h"),
            node("MatMul", "h b", "y"),
        ],
        {"w": normal(4, 4)},
    )

    after = rewritten(before, fold_constants)

    assert operators(after) == {"MatMul": 2}
    assert len(onnx.load_from_string(after).graph.initializer) == 1


def test_random_numbers_are_drawn_at_every_run() -> None:
    before = model(
        [node("RandomNormal", "", "r", shape=[1, 4], mean=1.0, scale=1e-12), node("Add", "x r", "y")],
    )

    assert operators(rewritten(before, fold_constants))["RandomNormal"] == 1


def test_a_constant_that_would_swell_the_file_is_made_at_run_time() -> None:
    before = model(
        [node("Expand", "one size", "big"), node("MatMul", "x big", "y")],
        {"one": normal(1), "size": ints(600, 1000)},
        x=(BATCH, 600),
    )

    after = rewritten(before, fold_constants)

    assert len(after) < 2_000


def _flatten_by_shape(*tail: str) -> bytes:
    """x [n, 2, 3] reshaped to [its own batch, 6], as exporters write `x.view(x.size(0), -1)`."""
    return model(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "size", axis=0),
            node("Unsqueeze", "size axis", "sizes"),
            node("Concat", "sizes six", "target", axis=0),
            node("Reshape", "x target", "flat"),
            *([node("ConstantOfShape", "target", "zeros"), node("Add", "flat zeros", "y")] if tail else []),
            *([] if tail else [node("Relu", "flat", "y")]),
        ],
        {"zero": np.array(0), "axis": ints(0), "six": ints(6)},
        x=(BATCH, 2, 3),
        y=(BATCH, 6),
    )


def test_a_view_that_follows_the_batch_needs_no_arithmetic() -> None:
    after = rewritten(_flatten_by_shape(), fold_shapes)

    assert operators(after) == {"Reshape": 1, "Relu": 1}
    targets = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(after).graph.initializer]
    assert [target.tolist() for target in targets] == [[-1, 6]]


def test_what_else_follows_the_batch_is_still_computed() -> None:
    after = rewritten(_flatten_by_shape("zeros"), fold_shapes)

    assert operators(after)["ConstantOfShape"] == 1
    assert operators(after)["Shape"] == 1


def test_numbers_that_only_look_like_shapes_stay() -> None:
    before = model(
        [
            node("ReduceSum", "x", "sum", keepdims=0),
            node("Cast", "sum", "whole", to=7),
            node("Cast", "whole", "back", to=1),
            node("Add", "x back", "y"),
        ],
    )

    assert operators(rewritten(before, fold_constants, fold_shapes)) == operators(before)


def test_nodes_that_hand_their_input_on_go() -> None:
    before = model(
        [
            node("Identity", "x", "a"),
            node("Dropout", "a", "b"),
            node("Transpose", "b", "c", perm=[0, 1]),
            node("Mul", "c one", "d"),
            node("Reshape", "d same", "e"),
            node("Relu", "e", "y"),
        ],
        {"one": np.array(1, np.float32), "same": ints(-1, 4)},
    )

    assert operators(rewritten(before, drop_no_ops)) == {"Relu": 1}


def test_the_output_keeps_its_name_when_the_node_that_made_it_goes() -> None:
    before = model([node("Relu", "x", "a"), node("Identity", "a", "y")])

    assert operators(rewritten(before, drop_no_ops)) == {"Relu": 1}


def test_an_output_that_is_the_input_keeps_its_node() -> None:
    before = model([node("Identity", "x", "y")])

    assert operators(rewritten(before, drop_no_ops)) == {"Identity": 1}


def test_transposes_there_and_back_cancel_and_others_join() -> None:
    there_and_back = model(
        [
            node("Transpose", "x", "a", perm=[0, 2, 3, 1]),
            node("Transpose", "a", "b", perm=[0, 3, 1, 2]),
            node("Relu", "b", "y"),
        ],
        x=(BATCH, 2, 3, 4),
    )
    twice = model(
        [node("Transpose", "x", "a", perm=[0, 2, 3, 1]), node("Transpose", "a", "y", perm=[1, 0, 2, 3])],
        x=(BATCH, 2, 3, 4),
    )

    assert operators(rewritten(there_and_back, drop_no_ops)) == {"Relu": 1}
    assert operators(rewritten(twice, drop_no_ops)) == {"Transpose": 1}


def test_views_of_views_are_one() -> None:
    before = model(
        [
            node("Unsqueeze", "x axis", "a"),
            node("Reshape", "a target", "b"),
            node("Flatten", "b", "c", axis=1),
            node("Reshape", "c pairs", "y"),
        ],
        {"axis": ints(1), "target": ints(-1, 2, 2), "pairs": ints(-1, 2, 2, 1)},
    )

    assert operators(rewritten(before, drop_no_ops)) == {"Reshape": 1}


def test_an_identity_inside_a_branch_keeps_what_it_names() -> None:
    inner = [
        onnx.helper.make_graph([node("Add", f"a {name}", "r")], "branch", [],
                               [onnx.helper.make_tensor_value_info("r", 1, None)])
        for name in ("one", "two")
    ]  # fmt: skip
    before = model(
        [
            node("Identity", "x", "a"),
            node("ReduceSum", "x", "s", keepdims=0),
            node("Greater", "s zero", "positive"),
            node("If", "positive", "y", then_branch=inner[0], else_branch=inner[1]),
        ],
        {"zero": np.array(0, np.float32), "one": np.array(1, np.float32), "two": np.array(2, np.float32)},
        y=(BATCH, 4),
    )

    assert operators(rewritten(before, fold_constants, drop_no_ops))["Identity"] == 1
