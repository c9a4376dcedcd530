"""JSON inference: what is accepted, what comes back, and how every wrong request is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edge_agent.errors import DeadlineExceededError, MemoryBudgetError, OverloadedError, WouldWaitError
from edge_agent.local_api.routes import Request, respond
from tests.agent.local_api.oip.asking import INFER, X, ask, ask_json, error_of, same
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files


def test_an_inference_says_what_answered_and_echoes_the_id(service: SmallService) -> None:
    assert ask_json(service, INFER, id="7", inputs=[X]) == {
        "model_name": "linear",
        "model_version": "1.0.0",
        "id": "7",
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.0, 12.0]}],
    }


@pytest.mark.parametrize("data", [[[1, 2, 3], [-1, -2, -3]], [1, 2, 3, -1, -2, -3], [1.0, 2, 3, -1, -2e0, -3]])
def test_data_may_be_flat_or_nested(service: SmallService, data: object) -> None:
    answer = ask_json(service, INFER, inputs=[{**X, "shape": [2, 3], "data": data}])

    assert answer["outputs"][0]["data"] == [0.0, 12.0, 0.0, -12.0]
    assert "id" not in answer


@pytest.mark.parametrize("data", [[[[1], [2]], [[3], [4]], [[5], [6]]], [1, 2, 3, 4, 5, 6]])
def test_dimensions_of_one_may_be_nested_too(tmp_path: Path, data: object) -> None:
    tensor = {"name": "x", "shape": [3, 2, 1], "datatype": "INT8", "data": data}
    answer = ask_json(same(tmp_path, "INT8", ["a", "b", "c"]), "/v2/models/same/infer", inputs=[tensor])

    assert answer["outputs"][0] == {"name": "y", "datatype": "INT8", "shape": [3, 2, 1], "data": [1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("UINT16", [0, 65_535]),
        ("UINT32", [0, 2**32 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT8", [-128, 127]),
        ("INT16", [-32_768, 32_767]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP16", [-65_504.0, 6.103515625e-05]),
        ("FP32", [1.5, 3.4028234663852886e38]),
        ("FP64", [0.1, 1.7976931348623157e308]),
        ("BYTES", ["", "ü and \u0000 and \U0001f600"]),
    ],
)
def test_every_type_keeps_its_extreme_values(tmp_path: Path, datatype: str, data: list[Any]) -> None:
    service = same(tmp_path, datatype, ["n"])
    tensor = {"name": "x", "shape": [2], "datatype": datatype, "data": data}

    (output,) = ask_json(service, "/v2/models/same/infer", inputs=[tensor])["outputs"]

    assert output == {"name": "y", "datatype": datatype, "shape": [2], "data": data}


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("UINT8", [1.5]),
        ("UINT64", [2**64]),
        ("UINT64", [-1]),
        ("INT64", [2**63]),
        ("INT64", [1e300]),
        ("FP16", [65_520]),
        ("FP32", [1e39]),
        ("FP32", [10**400]),
        ("FP64", [10**400]),
        ("FP32", [True]),
        ("FP32", ["1"]),
        ("FP32", ["NaN"]),
        ("FP32", [None]),
        ("FP32", [{}]),
        ("INT8", [False]),
        ("BOOL", [1]),
        ("BOOL", ["true"]),
        ("BYTES", [1]),
        ("BYTES", [None]),
        ("BYTES", [True]),
    ],
)
def test_what_a_type_cannot_hold_is_refused_and_never_wrapped(tmp_path: Path, datatype: str, data: list[Any]) -> None:
    service = same(tmp_path, datatype, ["n"])
    tensor = {"name": "x", "shape": [1], "datatype": datatype, "data": data}

    assert error_of(ask(service, "POST", "/v2/models/same/infer", {"inputs": [tensor]}), 400)
    assert service.running == 0


def test_a_whole_number_may_be_written_with_a_point(tmp_path: Path) -> None:
    tensor = {"name": "x", "shape": [2], "datatype": "INT32", "data": [3.0, 4]}

    assert ask_json(same(tmp_path, "INT32", ["n"]), "/v2/models/same/infer", inputs=[tensor])["outputs"][0]["data"] == [
        3,
        4,
    ]


@pytest.mark.parametrize("data", [[["x"], "y"], ["x", ["y"]], [["x", "y"]], ["xy"], [[["x"]], [["y"]]]])
def test_a_text_is_no_list_of_its_letters(tmp_path: Path, data: object) -> None:
    service = same(tmp_path, "BYTES", ["n", 1])
    tensor = {"name": "x", "shape": [2, 1], "datatype": "BYTES", "data": data}

    assert error_of(ask(service, "POST", "/v2/models/same/infer", {"inputs": [tensor]}), 400)


def two_types(folder: Path) -> SmallService:
    """y = x where on is true, else 0: one input is BOOL, the other FP32."""
    path = onnx_files.save(
        folder / "where.onnx",
        [helper.make_node("Where", ["on", "x", "zero"], ["y"])],
        inputs=[
            helper.make_tensor_value_info("on", TensorProto.BOOL, ["n"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        ],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        initializers=[helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])],
    )
    return SmallService({"where": path})


def test_inputs_come_in_any_order_and_a_boolean_is_no_number(tmp_path: Path) -> None:
    service = two_types(tmp_path)
    on = {"name": "on", "shape": [2], "datatype": "BOOL", "data": [True, False]}
    x = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2.5]}

    assert ask_json(service, "/v2/models/where/infer", inputs=[x, on])["outputs"][0]["data"] == [1.0, 0.0]
    response = ask(service, "POST", "/v2/models/where/infer", {"inputs": [{**x, "data": [True, 2]}, on]})
    assert "x" in error_of(response, 400)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "z"},
        {"name": 5},
        {"shape": [3]},
        {"shape": [1, 4]},
        {"shape": [-1, 3]},
        {"shape": [1.5]},
        {"shape": "1,3"},
        {"shape": [2**62, 2**62]},
        {"shape": [1] * 40},
        {"shape": []},
        {"shape": [0, 3], "data": []},
        {"datatype": "INT32"},
        {"datatype": "FP16"},
        {"datatype": "FLOAT"},
        {"datatype": "BF16"},
        {"datatype": None},
        {"data": []},
        {"data": None},
        {"data": 5},
        {"data": [1, 2, 3, 4]},
        {"data": [[1, 2], [3]]},
        {"data": [[1], [2], [3]]},
        {"data": [[1, 2, [3]]]},
        {"data": [[1, 2], 3]},
        {"data": [1, [2, 3]]},
        {"data": [[[[[[[[[[[1, 2, 3]]]]]]]]]]]},
        {"parameters": {"binary_data_size": 12}},
        {"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 12}},
        {"parameters": {"binary_data_size": -1}},
        {"parameters": {"binary_data_size": True}},
        {"parameters": []},
    ],
)
def test_an_input_that_does_not_fit_is_refused(service: SmallService, change: dict[str, object]) -> None:
    assert len(error_of(ask(service, "POST", INFER, {"inputs": [{**X, **change}]}), 400)) > 10
    assert service.running <= 1  # its shape alone is for the model to judge


@pytest.mark.parametrize(
    "message",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        {},
        {"inputs": None},
        {"inputs": {}},
        {"inputs": []},
        {"inputs": [X, X]},
        {"inputs": [{**X, "name": "z"}, X]},
        {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32"}]},
        {"inputs": [X] * 300},
        {"inputs": [X], "id": 7},
        {"inputs": [X], "parameters": 7},
        {"inputs": [X], "parameters": {"timeout": -1}},
        {"inputs": [X], "parameters": {"timeout": 10**30}},
        {"inputs": [X], "parameters": {"timeout": "1"}},
        {"inputs": [X], "parameters": {"priority": -1}},
        {"inputs": [X], "parameters": {"key": 5}},
        {"inputs": [X], "parameters": {"sequence_id": 5, "sequence_start": True}},
        {"inputs": [X], "outputs": {}},
        {"inputs": [X], "outputs": [{"name": "other"}]},
        {"inputs": [X], "outputs": [{"name": "scores"}, {"name": "scores"}]},
        {"inputs": [X], "outputs": [{}]},
        {"inputs": [X], "outputs": [{"name": "scores", "parameters": {"classification": -1}}]},
        {"inputs": [X], "outputs": [{"name": "scores", "parameters": {"datatype": "BF16"}}]},
        {"inputs": [X], "outputs": [{"name": "scores", "parameters": {"datatype": "FP16", "binary_data": True}}]},
        {"inputs": [X], "outputs": [{"name": "scores", "parameters": {"shared_memory_region": "r"}}]},
    ],
)
def test_a_wrong_request_never_reaches_the_model(service: SmallService, message: object) -> None:
    assert len(error_of(ask(service, "POST", INFER, message), 400)) > 10
    assert service.calls == [] or message == {"inputs": []}


def test_fields_that_may_be_null_may_be(service: SmallService) -> None:
    tensor = {**X, "parameters": None}

    assert ask_json(service, INFER, id=None, parameters=None, inputs=[tensor], outputs=None)["outputs"]
    assert ask_json(service, INFER, inputs=[X], outputs=[], parameters={"unknown": {"of": "ours"}})["outputs"]


def test_only_the_outputs_that_are_asked_for_come_in_their_order(tmp_path: Path) -> None:
    path = onnx_files.save(
        tmp_path / "both.onnx",
        [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        outputs=[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("a", "b")],
    )
    service = SmallService({"both": path})
    x = {"name": "x", "shape": [1], "datatype": "FP32", "data": [-2]}

    def names(*outputs: str) -> list[str]:
        wanted = [{"name": name} for name in outputs]
        answer = ask_json(service, "/v2/models/both/infer", inputs=[x], outputs=wanted)
        return [output["name"] for output in answer["outputs"]]

    assert names() == ["a", "b"]
    assert names("b") == ["b"]
    assert names("b", "a") == ["b", "a"]


def test_an_output_that_json_cannot_say_is_refused_with_the_way_out(tmp_path: Path) -> None:
    service = SmallService({"log": onnx_files.logarithm(tmp_path / "log.onnx")})

    def outcome(value: float) -> Any:
        tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}
        return ask(service, "POST", "/v2/models/log/infer", {"inputs": [tensor]})

    assert "binary_data" in error_of(outcome(-1), 400)
    assert "binary_data" in error_of(outcome(0), 400)
    assert json.loads(outcome(1).body)["outputs"][0]["data"] == [0.0]


def test_parameters_become_the_calls_options(service: SmallService) -> None:
    def options(**parameters: object) -> Any:
        ask_json(service, INFER, inputs=[X], parameters=parameters)
        return service.calls[-1]

    assert options(timeout=1_500_000).timeout_s == 1.5
    assert options(timeout=0).timeout_s is None
    assert options(key="user-5").key == "user-5"
    # the protocol counts downwards from 1, the highest; without one a call comes after 100
    assert [options(priority=level).priority for level in (1, 2, 100, 0, 101, 102, 10**9)] == [
        100, 99, 1, 0, 0, -1, -100,
    ]  # fmt: skip


def test_the_prediction_id_is_given_to_who_asks(service: SmallService) -> None:
    assert "parameters" not in ask_json(service, INFER, inputs=[X])
    assert ask_json(service, INFER, inputs=[X], parameters={"prediction_id": True})["parameters"] == {
        "prediction_id": "p1"
    }


def test_a_version_in_the_path_is_the_version_that_answers(service: SmallService, tmp_path: Path) -> None:
    service.add("linear", onnx_files.linear(tmp_path / "b.onnx", weight=3.0), version="2.0.0", arm="b")

    answer = ask_json(service, "/v2/models/linear/versions/2.0.0/infer", inputs=[X])
    old = ask_json(service, "/v2/models/linear/versions/1.0.0/infer", inputs=[X])

    assert (answer["model_version"], answer["outputs"][0]["data"]) == ("2.0.0", [0.0, 18.0])
    assert (old["model_version"], old["outputs"][0]["data"]) == ("1.0.0", [0.0, 12.0])
    assert "9" in error_of(ask(service, "POST", "/v2/models/linear/versions/9/infer", {"inputs": [X]}), 404)


def test_a_signature_is_that_of_the_model_that_answers_now(service: SmallService, tmp_path: Path) -> None:
    ask_json(service, INFER, inputs=[X])
    service.paths["linear"] = onnx_files.two_inputs(tmp_path / "sum.onnx")
    service.load_model("linear")
    inputs = [{"name": name, "shape": [1], "datatype": "FP32", "data": [2]} for name in ("a", "b")]

    assert ask_json(service, INFER, inputs=inputs)["outputs"][0]["data"] == [4.0]


@pytest.mark.parametrize(
    ("count", "best"),
    [(1, ["12:1:yes"]), (2, ["12:1:yes", "0:0:no"]), (9, ["12:1:yes", "0:0:no"])],
)
def test_a_classification_is_the_best_classes_with_their_labels(
    service: SmallService, count: int, best: list[str]
) -> None:
    wanted = [{"name": "scores", "parameters": {"classification": count}}]
    answer = ask_json(service, INFER, inputs=[X], outputs=wanted)

    assert answer["outputs"] == [{"name": "scores", "datatype": "BYTES", "shape": [1, len(best)], "data": best}]


def test_classes_beyond_the_labels_have_none_and_ties_keep_their_order(tmp_path: Path) -> None:
    service = SmallService({"linear": onnx_files.linear(tmp_path / "m.onnx", weight=0.0, classes=40)}, labels=("a",))
    wanted = [{"name": "scores", "parameters": {"classification": 40}}]
    answer = ask_json(service, INFER, inputs=[{**X, "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}], outputs=wanted)

    assert answer["outputs"][0]["shape"] == [2, 40]
    assert answer["outputs"][0]["data"] == ["0:0:a", *(f"0:{index}" for index in range(1, 40))] * 2


def test_a_hundred_ties_keep_the_order_of_their_classes(tmp_path: Path) -> None:
    tensor = {"name": "x", "shape": [100], "datatype": "FP32", "data": [0, 1] * 50}
    wanted = [{"name": "y", "parameters": {"classification": 100}}]
    (output,) = ask_json(same(tmp_path, "FP32", ["n"]), "/v2/models/same/infer", inputs=[tensor], outputs=wanted)[
        "outputs"
    ]

    assert [int(text.split(":")[1]) for text in output["data"]] == [*range(1, 100, 2), *range(0, 100, 2)]


def test_scores_keep_the_digits_that_tell_them_apart(tmp_path: Path) -> None:
    value = float(np.float32(0.1)) + 2**-27
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [0.1, value]}
    wanted = [{"name": "y", "parameters": {"classification": 2}}]
    answer = ask_json(same(tmp_path, "FP32", ["n"]), "/v2/models/same/infer", inputs=[tensor], outputs=wanted)

    first, second = (np.float32(text.split(":")[0]) for text in answer["outputs"][0]["data"])
    assert (first, second) == (np.float32(value), np.float32(0.1))
    assert first > second


def test_text_has_no_best_classes(tmp_path: Path) -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    wanted = [{"name": "y", "parameters": {"classification": 1}}]
    message = {"inputs": [tensor], "outputs": wanted}

    assert "y" in error_of(ask(same(tmp_path, "BYTES", ["n"]), "POST", "/v2/models/same/infer", message), 400)


@pytest.mark.parametrize(
    ("fault", "status", "retry_after"),
    [
        (OverloadedError("full", retry_after_s=2.3), 503, "3"),
        (OverloadedError("full", retry_after_s=0.05), 503, "1"),
        (DeadlineExceededError("too late"), 504, None),
        (MemoryBudgetError("too big"), 503, None),
        (RuntimeError("secret"), 500, None),
    ],
)
def test_what_fails_has_its_status(
    service: SmallService, fault: Exception, status: int, retry_after: str | None
) -> None:
    service.fault = fault

    response = ask(service, "POST", INFER, {"inputs": [X]})

    assert "secret" not in error_of(response, status)
    assert dict(response.headers).get("Retry-After") == retry_after


@pytest.mark.parametrize("path", [INFER, "/predict"])
def test_a_call_that_would_wait_is_given_back_to_be_asked_again(service: SmallService, path: str) -> None:
    service.fault = WouldWaitError("busy")
    body = json.dumps({"inputs": [X] if path == INFER else [[1, 2, 3]]}).encode()

    with pytest.raises(WouldWaitError):
        respond(Request(method="POST", path=path, body=body), service)
