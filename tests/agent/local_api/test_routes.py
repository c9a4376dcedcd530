"""The endpoints, as pure functions of a request's bytes, over models that really run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from edge_agent.errors import AgentError, InferenceError, OverloadedError
from edge_agent.local_api.routes import MAX_BATCH_ITEMS, MAX_OUTCOMES, Request, Response, respond
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files

YES = {"inputs": {"x": [[1, 2, 3]]}}


def post(service: SmallService, path: str, body: Any, **headers: str) -> Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return respond(Request(method="POST", path=path, body=content, headers=headers), service)


def get(service: SmallService, path: str) -> Response:
    return respond(Request(method="GET", path=path), service)


def error_of(response: Response) -> str:
    answer = json.loads(response.body)
    assert list(answer) == ["error"]
    return str(answer["error"])


def test_a_prediction_has_its_outputs_its_class_and_what_made_it(service: SmallService) -> None:
    response = post(service, "/predict", {"model": "linear", **YES})

    answer = json.loads(response.body)
    assert (response.status, response.content_type) == (200, "application/json")
    assert answer.pop("latency_us") > 0
    assert answer == {
        "id": "p1",
        "model": "linear",
        "version": "1.0.0",
        "variant": "fp32",
        "arm": "main",
        "outputs": {"scores": [[0.0, 12.0]]},
        "label": "yes",
        "class": 1,
    }


@pytest.mark.parametrize("body", [YES, {"inputs": [[1, 2, 3]]}, {"model": "linear", "inputs": [[1, 2, 3]]}])
def test_the_only_model_and_its_only_input_need_no_name(service: SmallService, body: object) -> None:
    assert json.loads(post(service, "/predict", body).body)["outputs"] == {"scores": [[0.0, 12.0]]}


def test_with_two_models_the_caller_must_say_which(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    response = post(SmallService({"a": path, "b": path}), "/predict", YES)

    assert response.status == 400
    assert "a, b" in error_of(response)


def test_with_no_model_at_all_the_caller_is_sent_to_health() -> None:
    response = post(SmallService({}), "/predict", YES)

    assert response.status == 404
    assert "/health" in error_of(response)


def test_a_bare_list_for_a_model_with_two_inputs_is_told_their_names(tmp_path: Path) -> None:
    service = SmallService({"sum": onnx_files.two_inputs(tmp_path / "sum.onnx")})

    assert "a, b" in error_of(post(service, "/predict", {"inputs": [1, 2]}))
    assert json.loads(post(service, "/predict", {"inputs": {"a": [1], "b": [2]}}).body)["outputs"] == {"total": [3.0]}


@pytest.mark.parametrize("inputs", [[[1]], {"x": [[1]]}])
def test_an_unknown_model_is_not_found(service: SmallService, inputs: object) -> None:
    response = post(service, "/predict", {"model": "other", "inputs": inputs})

    assert response.status == 404
    assert "other" in error_of(response)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"model": "linear"}',
        b'{"inputs": 5}',
        b'{"inputs": null}',
        b'{"inputs": {"x": NaN}}',
        b'{"inputs": {"x": [[1, 2, 1e999]]}}',
        b'{"inputs": {"x": [[1, 2, 1e39]]}}',
        b'{"inputs": {"x": [[1, 2]]}}',
        b'{"inputs": {"x": [[1, 2, null]]}}',
        b'{"inputs": {"x": [["1", "2", "3"]]}}',
        b'{"inputs": {"x": {"y": 1}}}',
        b'{"inputs": {"x": [[1, 2], [3]]}}',
        b'{"inputs": {"x": [["a", 2], [3]]}}',
        b'{"inputs": {"x": []}}',
        b'{"inputs": {"x": ' + b"[" * 50 + b"1" + b"]" * 50 + b"}}",
        b'{"inputs": {"x": ' + b"[" * 50_000 + b"}}",
        b'{"inputs": {"x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
        b'{"inputs": {"x": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}}",
        b'{"inputs": {"x": [[1, 2, 3]]}, "model": 5}',
        b'{"inputs": {"x": [[1, 2, 3]]}} trailing',
        b"\xff\xfe",
        b'{"inputs": {"\xff": [[1]]}}',
        b"\x00" * 100,
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/batch", "/outcomes"])
def test_a_malformed_body_is_the_callers_error_and_is_explained(service: SmallService, path: str, body: bytes) -> None:
    response = post(service, path, body)

    assert response.status == 400
    assert len(error_of(response)) > 10


@pytest.mark.parametrize("is_named", [True, False])
def test_a_small_body_cannot_reserve_terabytes_of_text(service: SmallService, is_named: bool) -> None:
    tensor = [["a" * 1_000_000, *[""] * 1_000_000]]
    response = post(service, "/predict", {"inputs": {"x": tensor} if is_named else tensor})

    assert response.status == 400
    assert "shape [1, 1000001]" in error_of(response)


def test_text_goes_in_and_comes_out(tmp_path: Path) -> None:
    service = SmallService({"same": onnx_files.identity(tmp_path / "same.onnx", TensorProto.STRING, ["n"])})

    assert json.loads(post(service, "/predict", {"inputs": ["ü", "b"]}).body)["outputs"] == {"y": ["ü", "b"]}
    assert json.loads(post(service, "/batch", {"inputs": [["ü"], [1]]}).body)["predictions"][0]["outputs"]["y"] == ["ü"]


def test_large_whole_numbers_keep_every_digit(tmp_path: Path) -> None:
    service = SmallService({"same": onnx_files.identity(tmp_path / "same.onnx", TensorProto.INT64, ["n"])})

    assert json.loads(post(service, "/predict", {"inputs": [2**62 + 1]}).body)["outputs"] == {"y": [2**62 + 1]}


def test_what_json_cannot_say_is_null(tmp_path: Path) -> None:
    service = SmallService({"log": onnx_files.logarithm(tmp_path / "log.onnx")})

    answer = json.loads(post(service, "/predict", {"inputs": [[-1], [0], [1]]}).body)

    assert answer["outputs"] == {"y": [[None], [None], [0.0]]}


def test_a_bad_item_of_a_batch_is_its_own_error_only(service: SmallService) -> None:
    items: list[object] = [{"x": [[1, 2, 3]]}, {"x": [[1, 2]]}, [[-1, -2, -3]], {"x": [["a", "b", "c"]]}, 5, {}, None]
    response = post(service, "/batch", {"model": "linear", "inputs": items})

    answers = json.loads(response.body)["predictions"]
    assert response.status == 200
    assert [answer.get("class") for answer in answers] == [1, None, 0, None, None, None, None]
    assert [list(answer) == ["error"] for answer in answers] == [False, True, False, True, True, True, True]
    assert "shape [1, 2]" in answers[1]["error"]


def test_an_empty_batch_has_no_predictions(service: SmallService) -> None:
    assert json.loads(post(service, "/batch", {"inputs": []}).body) == {"predictions": []}


def test_a_batch_for_an_unknown_model_is_not_found_as_a_whole(service: SmallService) -> None:
    assert post(service, "/batch", {"model": "other", "inputs": [[[1]], {"x": 1}]}).status == 404


def test_a_batch_has_a_limit(service: SmallService) -> None:
    response = post(service, "/batch", {"inputs": [[1]] * (MAX_BATCH_ITEMS + 1)})

    assert response.status == 400
    assert str(MAX_BATCH_ITEMS) in error_of(response)


@pytest.mark.parametrize("truth", [{"label": 5}, {"label": "yes"}, {"value": 1.5}, {"value": 2}, {"correct": False}])
def test_an_outcome_is_reported(service: SmallService, truth: dict[str, object]) -> None:
    response = post(service, "/outcomes", {"id": "p1", **truth})

    assert json.loads(response.body) == {"accepted": 1, "rejected": []}
    assert service.outcomes == [("p1", next(iter(truth.values())))]


@pytest.mark.parametrize(
    "body",
    [
        {"id": "p1"},
        {"id": "p1", "label": 1, "correct": True},
        {"id": "p1", "label": True},
        {"id": "p1", "value": "x"},
        {"label": 1},
        {"id": 5, "label": 1},
        {"outcomes": {"id": "p1", "label": 1}},
    ],
)
def test_an_outcome_that_is_none_or_two_is_refused(service: SmallService, body: object) -> None:
    assert post(service, "/outcomes", body).status == 400
    assert service.outcomes == []


def test_an_outcome_of_an_unknown_prediction_is_not_found(service: SmallService) -> None:
    assert post(service, "/outcomes", {"id": "x", "label": 1}).status == 404


def test_bad_outcomes_among_several_are_named_and_the_others_count(service: SmallService) -> None:
    body = {"outcomes": [{"id": "p1", "label": 1}, {"id": "x", "label": 1}, {"id": "p2"}, 7, {"id": "p3", "label": 0}]}
    answer = json.loads(post(service, "/outcomes", body).body)

    assert answer["accepted"] == 2
    assert [rejected["index"] for rejected in answer["rejected"]] == [1, 2, 3]
    assert service.outcomes == [("p1", 1), ("p3", 0)]


def test_outcomes_have_a_limit(service: SmallService) -> None:
    body = {"outcomes": [{"id": "p1", "label": 1}] * (MAX_OUTCOMES + 1)}

    assert post(service, "/outcomes", body).status == 400
    assert service.outcomes == []


def test_health_is_ready_with_a_model_and_gives_its_reasons_without(service: SmallService) -> None:
    assert json.loads(get(service, "/health").body) == {"ready": True, "reasons": []}
    service.unload_model("linear")

    response = get(service, "/health")

    assert response.status == 503
    assert json.loads(response.body) == {"ready": False, "reasons": ["no model is loaded yet"]}


def test_models_are_described_with_their_signature(service: SmallService) -> None:
    (model,) = json.loads(get(service, "/models").body)["models"]

    assert model["name"] == "linear"
    assert model["phase"] == "HEALTHY"
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert model["labels"] == ["no", "yes"]


def test_metrics_are_prometheus_text(service: SmallService) -> None:
    response = get(service, "/metrics")

    assert response.content_type.startswith("text/plain; version=0.0.4")
    assert response.body == b"edgefleet_models 1\n"


@pytest.mark.parametrize("path", ["/", "/predict/", "/PREDICT", "/v2/", "/v3", "*", "/../health", "/héalth"])
def test_an_unknown_path_is_not_found_and_told_what_there_is(service: SmallService, path: str) -> None:
    response = get(service, path)

    assert response.status == 404
    assert "/predict" in error_of(response)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("HEAD", "/predict", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/models", "GET, HEAD"),
        ("OPTIONS", "/batch", "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(service: SmallService, method: str, path: str, allowed: str) -> None:
    response = respond(Request(method=method, path=path, body=b"{}"), service)

    assert response.status == 405
    assert response.headers == (("Allow", allowed),)


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("content-type", "application/json; charset=utf-8", 200),
        ("content-type", "application/x-www-form-urlencoded", 200),
        ("content-type", "application/vnd.api+json", 200),
        ("content-encoding", "identity", 200),
        ("content-type", "image/png", 415),
        ("content-type", "multipart/form-data; boundary=x", 415),
        ("content-encoding", "gzip", 400),
        ("content-encoding", "br", 415),
        ("content-encoding", "gzip, gzip", 415),
    ],
)
def test_a_body_of_another_kind_is_refused(service: SmallService, header: str, value: str, status: int) -> None:
    assert post(service, "/predict", YES, **{header: value}).status == status


@pytest.mark.parametrize(
    "fault", [InferenceError("/secret/path.onnx failed"), RuntimeError("secret"), AgentError("secret"), MemoryError()]
)
def test_what_goes_wrong_inside_is_logged_and_not_sent(
    service: SmallService, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    service.fault = fault
    with caplog.at_level(logging.ERROR):
        response = post(service, "/predict", YES)
        batch = post(service, "/batch", {"inputs": [[[1, 2, 3]]]})

    assert response.status == 500
    assert "secret" not in error_of(response)
    expected = isinstance(fault, AgentError)  # a service raises nothing else for one item
    assert batch.status == (200 if expected else 500)
    answer = json.loads(batch.body)
    assert "secret" not in (answer["predictions"][0] if expected else answer)["error"]
    assert caplog.records[0].exc_info is not None


def test_a_full_agent_says_when_to_come_back(service: SmallService) -> None:
    service.fault = OverloadedError("too much work")

    response = post(service, "/predict", YES)

    assert response.status == 503
    assert dict(response.headers) == {"Retry-After": "1"}
