"""What is no fp32 model is refused with one sentence, and shapes are settled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize.errors import InvalidModelError, InvalidOptionError
from quantize.preparation import fix_shapes, read_model
from quantize.preparation.equality import Reference
from tests.quantize.preparation.graphs import model, node, normal

DENSE = model([node("MatMul", "x w", "y")], {"w": normal(4, 3)})


def test_a_model_is_read_from_a_file_and_from_bytes(tmp_path: Path) -> None:
    path = tmp_path / "dense.onnx"
    path.write_bytes(DENSE)

    assert read_model(path, source="dense.onnx") == read_model(DENSE, source="dense.onnx")


@pytest.mark.parametrize("content", [b"", b"no model at all", DENSE[: len(DENSE) // 2]])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidModelError, match=r"broken\.onnx is not an ONNX model"):
        read_model(content, source="broken.onnx")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"cannot read gone\.onnx"):
        read_model(tmp_path / "gone.onnx", source="gone.onnx")


def _with_weights_beside(folder: Path) -> Path:
    path = folder / "large.onnx"
    onnx.save_model(
        onnx.load_from_string(DENSE), path, save_as_external_data=True, location="large.data", size_threshold=0
    )
    return path


def test_weights_beside_the_file_are_taken_in(tmp_path: Path) -> None:
    content = read_model(_with_weights_beside(tmp_path), source="large.onnx")

    assert Reference(DENSE).difference(content) is None


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = _with_weights_beside(tmp_path)
    (tmp_path / "large.data").unlink()

    with pytest.raises(InvalidModelError, match=r"large\.data, which is not beside it"):
        read_model(path, source="large.onnx")
    with pytest.raises(InvalidModelError, match="give its path"):
        read_model(path.read_bytes(), source="large.onnx")


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = _with_weights_beside(inside)
    (inside / "large.data").rename(tmp_path / "large.data")
    parsed = onnx.load(path, load_external_data=False)
    for entry in parsed.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../large.data"
    path.write_bytes(parsed.SerializeToString())

    with pytest.raises(InvalidModelError, match="cannot be read"):
        read_model(path, source="large.onnx")


def test_a_file_above_two_gibibytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)

    with pytest.raises(InvalidModelError, match="larger than 2 GiB"):
        read_model(path, source="huge.onnx")


def test_an_old_opset_is_raised_when_the_numbers_stay() -> None:
    old = model([node("MatMul", "x w", "h"), node("Softmax", "h", "y", axis=1)], {"w": normal(4, 3)}, opset=9)

    raised = read_model(old, source="old.onnx")

    assert onnx.load_from_string(raised).opset_import[0].version >= 13
    assert Reference(old).difference(raised) is None


def test_an_opset_that_cannot_be_raised_is_refused() -> None:
    old = onnx.load_from_string(model([node("Foo", "x w", "y", domain="test")], {"w": normal(4)}, y=("n", 4), opset=9))
    old.opset_import.append(helper.make_opsetid("test", 1))

    with pytest.raises(InvalidModelError, match="too old and cannot be raised: export it with 13 or later"):
        read_model(old.SerializeToString(), source="old.onnx")


def test_a_quantized_model_is_refused() -> None:
    quantized = model(
        [node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero", "y")],
        {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.uint8)},
    )

    with pytest.raises(InvalidModelError, match=r"quantized already \(QuantizeLinear\): give the fp32 model"):
        read_model(quantized, source="int8.onnx")


def test_int8_weights_behind_dequantize_nodes_are_an_fp32_model() -> None:
    stored = model(
        [node("DequantizeLinear", "w scale", "wf"), node("MatMul", "x wf", "y")],
        {"w": np.ones((4, 3), np.int8), "scale": np.array(0.1, np.float32)},
    )

    assert read_model(stored, source="stored.onnx")


def test_a_model_of_16_bit_weights_is_refused_and_one_without_weights_is_not() -> None:
    halves = helper.make_graph(
        [node("MatMul", "x w", "y")],
        "halves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 3])],
        [numpy_helper.from_array(normal(4, 3).astype(np.float16), "w")],
    )
    made = helper.make_model(halves, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    with pytest.raises(InvalidModelError, match="16-bit weights: export it as fp32"):
        read_model(made.SerializeToString(), source="halves.onnx")
    weightless = model([node("Relu", "x", "y")])
    assert read_model(weightless, source="relu.onnx") == weightless  # as trees are: they ship as they are


SEQUENCE = model(
    [node("MatMul", "x w", "y")],
    {"w": normal(4, 3)},
    inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "time", 4])],
    y=["n", "time", 3],
)


def test_a_dimension_that_varies_is_named_with_its_remedy() -> None:
    with pytest.raises(InvalidModelError, match=r"axis 1 of input 'x'.*\(time\).*--shape x=1,3,224,224"):
        fix_shapes(SEQUENCE, {}, source="sequence.onnx")


@pytest.mark.parametrize("batch", [1, -1])
def test_a_given_size_is_set_wherever_its_symbol_stands_and_the_batch_stays_dynamic(batch: int) -> None:
    fixed = onnx.load_from_string(fix_shapes(SEQUENCE, {"x": (batch, 16, -1)}, source="sequence.onnx")).graph

    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*fixed.input, *fixed.output)]
    assert shapes == [[0, 16, 4], [0, 16, 3]]
    assert fixed.output[0].type.tensor_type.shape.dim[1].HasField("dim_value")
    assert fixed.input[0].type.tensor_type.shape.dim[0].dim_param == "n"


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"z": (1, 4, 4)}, "no input 'z'; its inputs are x"),
        ({"x": (1, 16)}, "has 2 numbers, input 'x' of sequence.onnx 3 axes"),
        ({"x": (1, 16, 5)}, "axis 2 of sequence.onnx is fixed at 4"),
        ({"x": (1, 0, 4)}, "at least 1"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(InvalidOptionError, match=reason):
        fix_shapes(SEQUENCE, shapes, source="sequence.onnx")


def test_a_symbol_of_two_inputs_is_given_once() -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "time", 4]) for name in ("x", "other")]
    two = model([node("Add", "x other", "a"), node("MatMul", "a w", "y")], {"w": normal(4, 3)}, inputs=inputs)

    fixed = onnx.load_from_string(fix_shapes(two, {"x": (1, 16, 4)}, source="two.onnx")).graph

    assert [value.type.tensor_type.shape.dim[1].dim_value for value in fixed.input] == [16, 16]


def test_a_model_whose_shapes_are_known_stays_as_it_is() -> None:
    assert fix_shapes(DENSE, {}, source="dense.onnx") == DENSE
