"""Self-attention is found by where its numbers go, however an exporter moves them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from quantize.preparation import prepare
from quantize.preparation.attention import fuse_self_attention
from quantize.preparation.equality import Reference
from quantize.preparation.folding import drop_no_ops
from quantize.preparation.linear import drop_turns, matmul_to_gemm, sequences_to_rows
from tests.quantize.preparation.graphs import BATCH, ints, model, node, normal, operators, rewritten

POSITIONS, HEADS, SIZE = 5, 2, 3
WIDTH = HEADS * SIZE
X = (BATCH, POSITIONS, WIDTH)
CONSTANTS = {
    "w": normal(WIDTH, 3 * WIDTH),
    "b": normal(3 * WIDTH, seed=2),
    **{name: normal(WIDTH, WIDTH, seed=seed) for seed, name in enumerate(("wq", "wk", "wv", "wo"), start=3)},
    **{name: normal(WIDTH, seed=seed) for seed, name in enumerate(("bq", "bk", "bv", "bo"), start=7)},
    "root": np.array(np.sqrt(SIZE), np.float32),
    "quarter": np.array(SIZE**-0.25, np.float32),
    "heads": ints(-1, POSITIONS, HEADS, SIZE),
    "flat": ints(-1, POSITIONS, WIDTH),
    "five": ints(-1, POSITIONS, 3, HEADS, SIZE),
    "first": ints(0),
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "turned": ints(POSITIONS, -1, HEADS * 3, SIZE),
    "rows": ints(-1, WIDTH),
    "turned_flat": ints(POSITIONS, -1, WIDTH),
}


def _products(*, masked: bool = False) -> list[NodeProto]:
    return [
        node("MatMul", "q kt", "raw"),
        node("Div", "raw root", "scaled" if masked else "scores"),
        *([node("Add", "scaled mask", "scores")] if masked else []),
        node("Softmax", "scores", "weights", axis=-1),
        node("MatMul", "weights v", "mixed"),
        node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back flat", "y"),
    ]


def _separate() -> list[NodeProto]:
    """Three projections, each split into heads: as most modules are written."""
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", f"x w{name}", f"{name}0"),
            node("Add", f"{name}0 b{name}", f"{name}1"),
            node("Reshape", f"{name}1 heads", f"{name}2"),
            node("Transpose", f"{name}2", "kt" if name == "k" else name, perm=order),
        ]
    return nodes


def _packed() -> list[NodeProto]:
    """One projection, split by a dimension of its own, with the scale on both sides of the product."""
    return [
        node("MatMul", "x w", "p0"),
        node("Add", "b p0", "p1"),
        node("Reshape", "p1 five", "p2"),
        node("Transpose", "p2", "p3", perm=[2, 0, 3, 1, 4]),
        node("Gather", "p3 zero", "q0", axis=0),
        node("Gather", "p3 one", "k0", axis=0),
        node("Gather", "p3 two", "v", axis=0),
        node("Mul", "q0 quarter", "q"),
        node("Transpose", "k0", "k1", perm=[0, 1, 3, 2]),
        node("Mul", "quarter k1", "kt"),
    ]


def _model(nodes: list[NodeProto], *, mask: tuple[int | str, ...] | None = None) -> bytes:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, X)]
    if mask is not None:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, mask))
    return model(nodes, CONSTANTS, inputs=inputs, y=X)


@pytest.mark.parametrize("projections", [_separate(), _packed()], ids=["separate", "packed"])
def test_attention_is_found_however_its_heads_are_made(projections: list[NodeProto]) -> None:
    after = rewritten(_model([*projections, *_products()]), drop_no_ops, fuse_self_attention, drop_no_ops)

    assert operators(after)["Attention"] == 1
    assert not {"Softmax", "MatMul", "Gather", "Transpose"} & set(operators(after))


@pytest.mark.parametrize("mask", [(BATCH, 1, 1, POSITIONS), (1, 1, POSITIONS, POSITIONS)])
def test_a_mask_becomes_the_bias_of_the_attention(mask: tuple[int | str, ...]) -> None:
    before = _model([*_separate(), *_products(masked=True)], mask=mask)

    assert operators(rewritten(before, fuse_self_attention, drop_no_ops))["Attention"] == 1


def test_a_mask_of_another_shape_leaves_the_attention_as_it_is() -> None:
    before = _model([*_separate(), *_products(masked=True)], mask=(BATCH, HEADS, 1, 1))

    assert operators(rewritten(before, fuse_self_attention)) == operators(before)


def test_heads_that_mix_positions_are_no_attention() -> None:
    # this view takes the numbers of several positions into one head
    mixing = {"q2": node("Reshape", "q1 across", "q"), "q": None}
    nodes = [mixing.get(each.output[0], each) for each in _separate()]
    before = model(
        [*(each for each in nodes if each is not None), *_products()],
        {**CONSTANTS, "across": ints(-1, HEADS, POSITIONS, SIZE)},
        x=X,
        y=X,
    )

    assert operators(rewritten(before, fuse_self_attention)) == operators(before)


def test_queries_in_another_order_of_positions_are_no_attention() -> None:
    backwards = [node("Gather", "q2 backwards", "q3", axis=1), node("Transpose", "q3", "q", perm=[0, 2, 1, 3])]
    nodes = [*(each for each in _separate() if each.output[0] != "q"), *backwards, *_products()]
    before = model(nodes, {**CONSTANTS, "backwards": ints(*range(POSITIONS)[::-1])}, x=X, y=X)

    assert operators(rewritten(before, fuse_self_attention)) == operators(before)


def test_keys_from_another_source_are_no_self_attention() -> None:
    crossed = [each for each in _separate() if each.output[0] != "k0"]
    before = _model([node("Relu", "x", "other"), node("MatMul", "other wk", "k0"), *crossed, *_products()])

    assert operators(rewritten(before, fuse_self_attention)) == operators(before)


def _positions_first() -> bytes:
    """Positions before batches inside, as torch.nn.TransformerEncoder computes, and a layer after it."""
    return _model(
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("MatMul", "t w", "p0"),
            node("Add", "p0 b", "p1"),
            node("Reshape", "p1 turned", "p2"),
            node("Transpose", "p2", "p3", perm=[1, 2, 0, 3]),
            node("Split", "p3", "q k v", axis=1, num_outputs=3),
            node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
            *_products()[:-2],
            node("Transpose", "mixed", "back", perm=[2, 0, 1, 3]),
            node("Reshape", "back rows", "r"),
            node("Gemm", "r wo bo", "o"),
            node("Reshape", "o turned_flat", "o3"),
            node("Transpose", "o3", "y", perm=[1, 0, 2]),
        ]
    )


def test_positions_before_batches_are_turned_neither_there_nor_back() -> None:
    rewrites = (fuse_self_attention, drop_no_ops, drop_turns, sequences_to_rows, matmul_to_gemm, drop_no_ops)

    after = rewritten(_positions_first(), drop_no_ops, *rewrites)

    assert operators(after) == {"Attention": 1, "Reshape": 2, "Gemm": 1}


def test_attention_is_fused_only_where_asked() -> None:
    before = _model([*_packed(), *_products()])

    assert "Attention" not in operators(prepare(before).model)
    fused = prepare(before, fuse_attention=True)
    assert operators(fused.model)["Attention"] == 1
    assert Reference(before).difference(fused.model) is None
