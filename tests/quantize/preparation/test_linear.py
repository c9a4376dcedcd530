"""Linear layers as Gemm on rows."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from quantize.preparation.folding import drop_no_ops
from quantize.preparation.linear import drop_turns, matmul_to_gemm, sequences_to_rows
from tests.quantize.preparation.graphs import BATCH, ints, model, node, normal, operators, rewritten

SEQUENCE = (BATCH, 6, 4)


@pytest.mark.parametrize("order", ["h b", "b h"])
def test_a_product_and_its_bias_are_one_operator(order: str) -> None:
    before = model([node("MatMul", "x w", "h"), node("Add", order, "y")], {"w": normal(4, 5), "b": normal(5)})

    assert operators(rewritten(before, matmul_to_gemm)) == {"Gemm": 1}


def test_a_product_that_something_else_sees_keeps_its_own_operator() -> None:
    before = model(
        [node("MatMul", "x w", "h"), node("Add", "h b", "a"), node("Mul", "a h", "y")],
        {"w": normal(4, 5), "b": normal(5)},
    )

    assert operators(rewritten(before, matmul_to_gemm)) == operators(before)


def _residual(*, batch: str | int = BATCH) -> bytes:
    """Two layers with a residual, as in a transformer: LayerNorm(x + W2 relu(W1 x + b1) + b2)."""
    return model(
        [
            node("MatMul", "x w1", "a"),
            node("Add", "b1 a", "b"),
            node("Relu", "b", "c"),
            node("MatMul", "c w2", "d"),
            node("Add", "d b2", "e"),
            node("Add", "e x", "f"),
            node("LayerNormalization", "f gamma beta", "g"),
            node("ReduceMean", "g axes", "y", keepdims=0),
        ],
        {
            "w1": normal(4, 8), "b1": normal(8, seed=2), "w2": normal(8, 4, seed=3), "b2": normal(4, seed=4),
            "gamma": normal(4, seed=5), "beta": normal(4, seed=6), "axes": normal(1).astype("int64") * 0 + 1,
        },
        x=(batch, 6, 4),
    )  # fmt: skip


@pytest.mark.parametrize("batch", [BATCH, 2])
def test_what_treats_positions_alike_runs_on_rows(batch: str | int) -> None:
    after = rewritten(_residual(batch=batch), sequences_to_rows, matmul_to_gemm, drop_no_ops)

    assert operators(after) == {"Reshape": 2, "Gemm": 2, "Relu": 1, "Add": 1, "LayerNormalization": 1, "ReduceMean": 1}


def _run_as(content: bytes, folder: Path) -> dict[str, int]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return operators((folder / "optimised.onnx").read_bytes())


def test_onnx_runtime_does_not_join_a_residual_with_its_slow_kernel(tmp_path: Path) -> None:
    given = _run_as(_residual(), tmp_path)
    after = _run_as(rewritten(_residual(), sequences_to_rows, matmul_to_gemm), tmp_path)

    assert "SkipLayerNormalization" in given
    assert "SkipLayerNormalization" not in after


def test_what_looks_across_positions_stays_on_sequences() -> None:
    before = model(
        [node("MatMul", "x w", "a"), node("Softmax", "a", "b", axis=1), node("Add", "b positions", "y")],
        {"w": normal(4, 4), "positions": normal(6, 4)},
        x=SEQUENCE,
    )

    after = onnx.load_from_string(rewritten(before, sequences_to_rows))
    inferred = onnx.shape_inference.infer_shapes(after)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info}

    assert all(ranks[each.input[0]] == 3 for each in inferred.graph.node if each.op_type in ("Softmax", "Add"))


@pytest.mark.parametrize(
    "last",
    [
        node("LayerNormalization", "a gamma", "y", axis=1),
        node("Add", "a one_position", "y"),
    ],
    ids=["normalised over positions", "broadcast over positions"],
)
def test_what_needs_all_positions_after_a_product_stays_on_sequences(last: onnx.NodeProto) -> None:
    before = model(
        [node("MatMul", "x w", "a"), node("ReduceMean", "x axes", "one_position"), last],
        {"w": normal(4, 4), "gamma": normal(6, 4), "axes": normal(1).astype("int64") * 0 + 1},
        x=SEQUENCE,
    )

    after = onnx.shape_inference.infer_shapes(onnx.load_from_string(rewritten(before, sequences_to_rows))).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*after.value_info, *after.output)}

    assert [ranks[each.output[0]] for each in after.node if each.op_type == last.op_type] == [3]


def test_rows_that_are_turned_otherwise_stay_turned() -> None:
    before = model(
        [
            node("Transpose", "x", "a", perm=[1, 2, 0]),
            node("Reshape", "a rows", "b"),
            node("Gemm", "b w", "c"),
            node("Reshape", "c cube", "d"),
            node("Transpose", "d", "y", perm=[1, 0, 2]),
        ],
        {"w": normal(4, 4), "rows": ints(-1, 4), "cube": ints(4, 4, 4)},
        x=(4, 4, 4),
    )

    assert operators(rewritten(before, drop_turns))["Transpose"] == 2


def test_a_graph_without_linear_layers_is_left_alone() -> None:
    before = model([node("Relu", "x", "a"), node("Add", "a b", "y")], {"b": normal(4)}, x=SEQUENCE)

    assert operators(rewritten(before, sequences_to_rows)) == operators(before)
