"""Binary tensors: every type in and out, where the bytes begin and end, and bodies that lie about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.errors import InvalidInputError
from edge_agent.local_api.oip import tensors
from fleet_protocol.manifest import TensorSpec
from tests.agent.local_api.oip.asking import (
    INFER,
    X,
    ask,
    ask_binary,
    bytes_tensor,
    error_of,
    floats,
    same,
    split,
)
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files

SAME = "/v2/models/same/infer"
NUMBERS = sorted(set(tensors.ELEMENTS))
HEADER = "Inference-Header-Content-Length"


def spec(datatype: Any, shape: list[int]) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape)


def x_of(datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


@pytest.mark.parametrize("datatype", NUMBERS)
def test_bytes_go_in_and_the_same_bytes_come_out(tmp_path: Path, datatype: str) -> None:
    dtype = tensors.ELEMENTS[datatype][0]
    content = np.array([[1, 0], [1, 1]]).astype(dtype).tobytes()
    message = {"inputs": [x_of(datatype, [2, 2], len(content))], "parameters": {"binary_data_output": True}}

    answer, output = split(ask_binary(same(tmp_path, datatype, ["n", 2]), SAME, message, content))

    assert output == content
    assert answer["outputs"] == [
        {"name": "y", "datatype": datatype, "shape": [2, 2], "parameters": {"binary_data_size": len(content)}}
    ]


def test_text_goes_in_and_comes_out_as_lengths_and_bytes(tmp_path: Path) -> None:
    content = bytes_tensor("ü\0".encode(), b"", b"a" * 70_000)
    message = {"inputs": [x_of("BYTES", [3], len(content))], "parameters": {"binary_data_output": True}}

    assert split(ask_binary(same(tmp_path, "BYTES", ["n"]), SAME, message, content))[1] == content


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16"])
def test_bf16_is_widened_exactly(tmp_path: Path, datatype: str) -> None:
    content = np.array([0x3FC0, 0xC000, 0x0000, 0x7F80], dtype="<u2").tobytes()  # 1.5, -2, 0, inf
    message = {"inputs": [x_of("BF16", [4], 8)], "parameters": {"binary_data_output": True}}

    answer, output = split(ask_binary(same(tmp_path, datatype, ["n"]), SAME, message, content))

    assert answer["outputs"][0]["datatype"] == datatype
    assert np.frombuffer(output, tensors.ELEMENTS[datatype][0]).tolist() == [1.5, -2.0, 0.0, float("inf")]


@pytest.mark.parametrize("bits", [0x7F00, 0x0001, 0x3380])
def test_a_bf16_number_that_fp16_cannot_hold_is_refused(tmp_path: Path, bits: int) -> None:
    content = np.array([bits], dtype="<u2").tobytes()
    response = ask_binary(same(tmp_path, "FP16", ["n"]), SAME, {"inputs": [x_of("BF16", [1], 2)]}, content)

    # 2^-24 is FP16's smallest, so the last one fits
    assert response.status == (200 if bits == 0x3380 else 400)


def test_an_fp32_output_is_given_as_bf16_when_asked(tmp_path: Path) -> None:
    content = floats(1.5, 1.00390625, 1.01171875, float("nan"), float("-inf"), 3.4e38)
    message = {
        "inputs": [x_of("FP32", [6], 24)],
        "outputs": [{"name": "y", "parameters": {"datatype": "BF16", "binary_data": True}}],
    }
    answer, output = split(ask_binary(same(tmp_path, "FP32", ["n"]), SAME, message, content))

    assert answer["outputs"][0]["datatype"] == "BF16"
    # ties go to the even neighbour; NaN stays NaN; what is too large becomes infinite
    assert [hex(bits) for bits in np.frombuffer(output, "<u2").tolist()] == [
        "0x3fc0", "0x3f80", "0x3f82", "0x7fc0", "0xff80", "0x7f80",
    ]  # fmt: skip


@pytest.mark.parametrize("bits", [0x7F800001, 0xFFFFFFFF, 0x7FC00000])
def test_not_a_number_stays_so_as_bf16(tmp_path: Path, bits: int) -> None:
    content = np.array([bits], dtype="<u4").tobytes()
    message = {
        "inputs": [x_of("FP32", [1], 4)],
        "outputs": [{"name": "y", "parameters": {"datatype": "BF16", "binary_data": True}}],
    }
    _, output = split(ask_binary(same(tmp_path, "FP32", ["n"]), SAME, message, content))

    assert int.from_bytes(output, "little") & 0x7FFF > 0x7F80


def test_what_json_cannot_say_comes_as_bytes(tmp_path: Path) -> None:
    content = floats(float("nan"), float("inf"))
    message = {"inputs": [x_of("FP32", [2], 8)], "parameters": {"binary_data_output": True}}

    assert split(ask_binary(same(tmp_path, "FP32", ["n"]), SAME, message, content))[1] == content


@pytest.mark.parametrize("padding", range(8))
def test_tensors_are_read_wherever_they_begin(tmp_path: Path, padding: int) -> None:
    service = same(tmp_path, "FP64", ["n"])
    content = np.arange(5, dtype="<f8").tobytes()
    message = {"id": "i" * padding, "inputs": [x_of("FP64", [5], 40)]}

    assert json.loads(ask_binary(service, SAME, message, content).body)["outputs"][0]["data"] == [0, 1, 2, 3, 4]


def test_several_tensors_lie_one_after_the_other_and_json_may_be_between(tmp_path: Path) -> None:
    service = SmallService({"sum": onnx_files.two_inputs(tmp_path / "sum.onnx")})

    def ab(first: dict[str, Any], second: dict[str, Any], *contents: bytes) -> Any:
        inputs = [{"shape": [2], "datatype": "FP32", **one} for one in (first, second)]
        response = ask_binary(service, "/v2/models/sum/infer", {"inputs": inputs}, *contents)
        return json.loads(response.body)["outputs"][0]["data"]

    binary = {"parameters": {"binary_data_size": 8}}
    assert ab({"name": "b", **binary}, {"name": "a", **binary}, floats(1, 2), floats(10, 20)) == [11.0, 22.0]
    assert ab({"name": "a", "data": [1, 2]}, {"name": "b", **binary}, floats(10, 20)) == [11.0, 22.0]


@pytest.mark.parametrize(
    ("for_all", "for_one", "is_binary"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True), (None, None, False)],
)
def test_an_outputs_own_wish_overrides_the_requests(
    service: SmallService, for_all: bool | None, for_one: bool | None, is_binary: bool
) -> None:
    parameters = {} if for_all is None else {"binary_data_output": for_all}
    wanted = [{"name": "scores", "parameters": {} if for_one is None else {"binary_data": for_one}}]
    response = ask(service, "POST", INFER, {"inputs": [X], "parameters": parameters, "outputs": wanted})

    assert (HEADER in dict(response.headers)) == is_binary
    if is_binary:
        assert split(response)[1] == floats(0, 12)
    else:
        assert json.loads(response.body)["outputs"][0]["data"] == [0.0, 12.0]


def test_a_classification_may_be_binary(service: SmallService) -> None:
    wanted = [{"name": "scores", "parameters": {"classification": 1, "binary_data": True}}]

    assert split(ask(service, "POST", INFER, {"inputs": [X], "outputs": wanted}))[1] == bytes_tensor(b"12:1:yes")


def test_a_single_input_may_come_without_any_json(service: SmallService) -> None:
    response = ask(service, "POST", INFER, floats(1, 2, 3, -1, -2, -3), inference_header_content_length="0")
    answer, output = split(response)

    assert answer["outputs"][0]["shape"] == [2, 2]
    assert output == floats(0, 12, 0, -12)


def test_of_several_free_dimensions_the_first_is_as_long_as_the_data(tmp_path: Path) -> None:
    service = same(tmp_path, "FP32", ["a", "b", 2])
    answer, output = split(ask(service, "POST", SAME, floats(1, 2, 3, 4), inference_header_content_length="0"))

    assert (answer["outputs"][0]["shape"], output) == ([2, 1, 2], floats(1, 2, 3, 4))


def test_a_whole_body_is_one_text(tmp_path: Path) -> None:
    response = ask(same(tmp_path, "BYTES", ["n"]), "POST", SAME, b"a text", inference_header_content_length="0")

    assert split(response)[1] == bytes_tensor(b"a text")


@pytest.mark.parametrize("body", [b"", b"1234567", floats(1, 2)])
def test_a_raw_body_of_a_wrong_size_is_refused(service: SmallService, body: bytes) -> None:
    assert error_of(ask(service, "POST", INFER, body, inference_header_content_length="0"), 400)


def test_two_inputs_cannot_come_without_json(tmp_path: Path) -> None:
    service = SmallService({"sum": onnx_files.two_inputs(tmp_path / "sum.onnx")})
    response = ask(service, "POST", "/v2/models/sum/infer", floats(1), inference_header_content_length="0")

    assert "several inputs" in error_of(response, 400)


@pytest.mark.parametrize("length", ["-1", "99999", "1e2", "", "0x10", "٣", "9" * 5000, "+5", " 5 5", "5.0"])
def test_a_length_of_json_that_is_none_is_refused(service: SmallService, length: str) -> None:
    response = ask(service, "POST", INFER, {"inputs": [X]}, inference_header_content_length=length)

    assert HEADER in error_of(response, 400)


@pytest.mark.parametrize(
    ("parameters", "contents"),
    [
        ({"binary_data_size": 12}, b""),
        ({"binary_data_size": 12}, floats(1, 2)),
        ({"binary_data_size": 8}, floats(1, 2)),
        ({"binary_data_size": 12}, floats(1, 2, 3, 4)),
        ({"binary_data_size": 16}, floats(1, 2, 3, 4)),
        ({"binary_data_size": 0}, b""),
        ({"binary_data_size": 2**63 - 1}, floats(1, 2, 3)),
        ({"binary_data_size": 12, "shared_memory_region": "r"}, floats(1, 2, 3)),
        ({}, floats(1, 2, 3)),
    ],
)
def test_bytes_that_are_missing_or_left_over_are_refused(
    service: SmallService, parameters: dict[str, object], contents: bytes
) -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": parameters}

    assert error_of(ask_binary(service, INFER, {"inputs": [tensor]}, contents), 400)
    assert service.running == 0


def test_a_tensor_that_ends_behind_the_body_is_told_so(service: SmallService) -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 13}}

    assert "ends before" in error_of(ask_binary(service, INFER, {"inputs": [tensor]}, floats(1, 2, 3)), 400)


def test_bytes_behind_json_data_are_refused(service: SmallService) -> None:
    assert "belong to no input" in error_of(ask_binary(service, INFER, {"inputs": [X]}, b"x"), 400)


@pytest.mark.parametrize(
    "content",
    [b"\1", b"\1\0\0\0", b"\xff\xff\xff\xffab", bytes_tensor(b"\xff"), bytes_tensor(b"a", b"b"), b"", b"\0\0\0\0\0"],
)
def test_text_that_is_not_what_its_lengths_say_is_refused(tmp_path: Path, content: bytes) -> None:
    message = {"inputs": [x_of("BYTES", [1], len(content))]}

    assert error_of(ask_binary(same(tmp_path, "BYTES", ["n"]), SAME, message, content), 400)


def test_a_boolean_byte_is_zero_or_one(tmp_path: Path) -> None:
    message = {"inputs": [x_of("BOOL", [2], 2)]}

    assert "0 and 1" in error_of(ask_binary(same(tmp_path, "BOOL", ["n"]), SAME, message, b"\1\2"), 400)


@given(st.sampled_from(NUMBERS).flatmap(lambda name: st.tuples(st.just(name), arrays.arrays(
    tensors.ELEMENTS[name][0], arrays.array_shapes(max_dims=4, max_side=4)
))))  # fmt: skip
def test_any_array_survives_both_forms(case: tuple[str, np.ndarray[Any, Any]]) -> None:
    datatype, array = case
    shape = list(array.shape)
    content = tensors.to_bytes(datatype, array)

    back = tensors.from_bytes(spec(datatype, shape), datatype, shape, memoryview(b"." + content)[1:])
    assert back.flags.aligned
    assert back.tobytes() == content
    try:
        data = json.loads(bytes(tensors.to_json("y", array)))
    except InvalidInputError:
        assert not np.isfinite(array).all()
        return
    for form in (data, np.array(data, dtype=object).reshape(shape).tolist()):
        again = tensors.from_json(
            spec(datatype, shape), datatype, shape, form, numbers_only=datatype not in ("BOOL", "BYTES")
        )
        np.testing.assert_array_equal(again, array)


@given(st.lists(st.text()))
def test_any_text_survives_as_bytes(texts: list[str]) -> None:
    array = np.array([*texts, None], dtype=object)[:-1]
    content = tensors.to_bytes("BYTES", array)

    assert tensors.from_bytes(spec("BYTES", [-1]), "BYTES", [len(texts)], content).tolist() == texts


@given(st.binary(max_size=64), st.lists(st.integers(0, 5), max_size=3), st.sampled_from([*NUMBERS, "BYTES"]))
def test_any_bytes_are_an_array_or_an_error(content: bytes, shape: list[int], datatype: str) -> None:
    try:
        array = tensors.from_bytes(spec(datatype, shape), datatype, shape, content)
    except InvalidInputError:
        return
    assert list(array.shape) == shape
    assert tensors.to_bytes(datatype, array) == content
