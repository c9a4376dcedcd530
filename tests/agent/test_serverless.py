"""The Lambda-style handler over the real agent, as the platform calls it."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent import serverless
from edge_agent.errors import ConfigError, ModelLoadError
from edge_agent.serverless import TIME_MARGIN_S, handler, models_of
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files

YES = {"inputs": {"x": [[1, 2, 3]]}}


@pytest.fixture(autouse=True)
def cold_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process that has answered nothing yet, with one model in its environment."""
    monkeypatch.setattr(serverless, "_service", None)
    monkeypatch.setenv("EDGEFLEET_MODEL_LINEAR", str(onnx_files.linear(tmp_path / "linear.onnx")))
    yield
    if serverless._service is not None:
        serverless._service.close()  # type: ignore[attr-defined]  # it is the Agent, which a platform never closes


def http_event(method: str, path: str, body: str | None = None, **more: Any) -> dict[str, Any]:
    """An event of an API Gateway HTTP API, payload version 2.0."""
    return {
        "version": "2.0",
        "rawPath": path,
        "headers": {"Content-Type": "application/json"},
        "requestContext": {"http": {"method": method, "path": path}},
        "body": body,
        **more,
    }


def test_a_plain_event_is_answered_like_predict() -> None:
    answer = handler({"model": "linear", **YES}, None)

    assert answer["model"] == "linear"
    assert answer["outputs"] == {"scores": [[0.0, 12.0]]}


def test_the_model_is_loaded_once_for_many_events() -> None:
    handler(YES, None)
    loaded = serverless._service

    assert handler(YES, None)["outputs"]
    assert serverless._service is loaded


@pytest.mark.parametrize("event", [{}, {"inputs": 5}, {"inputs": {"x": {1, 2}}}, {"model": "other", **YES}])
def test_a_wrong_plain_event_answers_an_error_and_its_status(event: dict[str, Any]) -> None:
    answer = handler(event, None)

    assert answer["status"] in (400, 404)
    assert answer["error"]


@pytest.mark.parametrize("encoded", [False, True])
def test_an_api_gateway_request_is_answered_in_its_form(encoded: bool) -> None:
    body = json.dumps(YES)
    event = http_event("POST", "/predict", base64.b64encode(body.encode()).decode() if encoded else body)

    answer = handler({**event, "isBase64Encoded": encoded}, None)

    assert answer["statusCode"] == 200
    assert answer["headers"] == {"content-type": "application/json"}
    assert answer["isBase64Encoded"] is False
    assert json.loads(answer["body"])["outputs"] == {"scores": [[0.0, 12.0]]}


def test_an_older_rest_api_request_is_answered_too() -> None:
    answer = handler({"httpMethod": "POST", "path": "/predict", "headers": None, "body": json.dumps(YES)}, None)

    assert answer["statusCode"] == 200


def test_health_is_answered() -> None:
    assert json.loads(handler(http_event("GET", "/health"), None)["body"])["ready"] is True
    assert handler(http_event("HEAD", "/health"), None)["body"] == ""


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (http_event("POST", "/nowhere", "{}"), 404),
        (http_event("GET", "/predict"), 405),
        (http_event("POST", "/predict", "{"), 400),
        (http_event("POST", "/predict", "%%%", isBase64Encoded=True), 400),
        (http_event("POST", "/predict", "ü", isBase64Encoded=True), 400),
        ({**http_event("POST", "/predict"), "body": 5}, 400),
        (http_event("POST", "/predict", " " * (16 * 1024 * 1024 + 1)), 413),
        (http_event("POST", "/predict", json.dumps(YES), headers={"content-type": "image/png"}), 415),
        ({"rawPath": "/predict", "body": "{}"}, 400),
        ({"requestContext": None}, 405),
    ],
)
def test_a_wrong_request_is_answered_with_its_status(event: dict[str, Any], status: int) -> None:
    answer = handler(event, None)

    assert answer["statusCode"] == status
    assert json.loads(answer["body"])["error"]


def binary_request(x: np.ndarray, **parameters: object) -> tuple[bytes, str]:
    """The body of an Open Inference Protocol request with binary data, and the length of its JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, **parameters}}).encode()
    return text + x.tobytes(), str(len(text))


def v1_event(method: str, path: str, body: str | None, **headers: str) -> dict[str, Any]:
    """An event of an API Gateway REST API."""
    return {"httpMethod": method, "path": path, "headers": headers, "body": body, "requestContext": {"stage": "prod"}}


@pytest.mark.parametrize("payload", ["1.0", "2.0"])
def test_binary_tensors_go_in_and_come_out_as_base64(payload: str) -> None:
    body, length = binary_request(np.array([[1, 2, 3]], dtype=np.float32))
    headers = {"content-type": "application/octet-stream", "Inference-Header-Content-Length": length}
    text = base64.b64encode(body).decode()
    event = (
        http_event("POST", "/v2/models/linear/infer", text, headers=headers)
        if payload == "2.0"
        else v1_event("POST", "/v2/models/linear/infer", text, **headers)
    )

    answer = handler({**event, "isBase64Encoded": True}, None)

    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, True)
    content = base64.b64decode(answer["body"])
    split = int(answer["headers"]["inference-header-content-length"])
    assert json.loads(content[:split])["model_name"] == "linear"
    assert np.frombuffer(content[split:], dtype=np.float32).tolist() == [0.0, 12.0]


def test_json_of_the_open_inference_protocol_is_text() -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]})

    answer = handler(http_event("POST", "/v2/models/linear/infer", body), None)

    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, False)
    assert json.loads(answer["body"])["outputs"][0]["data"] == [0.0, 12.0]
    assert json.loads(handler(http_event("GET", "/v2/health/ready"), None)["body"]) == {"ready": True}


def test_a_compressed_answer_is_base64() -> None:
    headers = {"content-type": "application/json", "accept-encoding": "gzip"}
    body = json.dumps({"inputs": {"x": [[0.1, 0.2, 0.3]] * 2000}})

    answer = handler(http_event("POST", "/predict", body, headers=headers), None)

    assert answer["headers"]["content-encoding"] == "gzip"
    assert answer["isBase64Encoded"] is True
    assert len(json.loads(gzip.decompress(base64.b64decode(answer["body"])))["outputs"]["scores"]) == 2000


def test_the_stage_and_the_query_are_no_part_of_the_path() -> None:
    event = http_event("GET", "/prod/health?verbose=1", rawQueryString="verbose=1")
    event["requestContext"]["stage"] = "prod"

    assert handler(event, None)["statusCode"] == 200
    assert handler(http_event("GET", "/product/health"), None)["statusCode"] == 404


def test_headers_may_come_with_several_values() -> None:
    event = v1_event("POST", "/predict", json.dumps(YES))
    event |= {"headers": None, "multiValueHeaders": {"Content-Type": ["application/json"]}}

    assert handler(event, None)["statusCode"] == 200
    event["multiValueHeaders"] = {"Content-Type": ["image/png"]}
    assert handler(event, None)["statusCode"] == 415


@dataclass
class Context:
    """What the platform says of an invocation."""

    left_ms: int

    def get_remaining_time_in_millis(self) -> int:
        return self.left_ms


def test_a_call_ends_before_the_platform_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = SmallService({"linear": onnx_files.linear(tmp_path / "l.onnx")})
    monkeypatch.setattr(service, "close", lambda: None, raising=False)
    monkeypatch.setattr(serverless, "_service", service)

    assert handler(YES, Context(3000))["outputs"]
    assert service.calls[-1].timeout_s == pytest.approx(3.0 - TIME_MARGIN_S)
    body, length = binary_request(np.ones((1, 3), dtype=np.float32), timeout=1_000_000)
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": length}
    event = http_event("POST", "/v2/models/linear/infer", base64.b64encode(body).decode(), headers=headers)
    for left_ms, timeout_s in ((60_000, 1.0), (700, 0.5), (100, 0.001)):
        assert handler({**event, "isBase64Encoded": True}, Context(left_ms))["statusCode"] == 200
        assert service.calls[-1].timeout_s == pytest.approx(timeout_s)


def test_importing_the_handler_loads_neither_a_runtime_nor_a_network_library() -> None:
    script = "import sys; from edge_agent.serverless import handler; print(*sys.modules, sep=chr(10))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    ).stdout

    names = set(loaded.split())
    assert "edge_agent.serverless" in names
    assert names.isdisjoint(
        {"onnxruntime", "paho", "sqlite3", "psutil", "asyncio", "ssl", "edge_agent.telemetry.recorder"}
    )


def test_models_are_named_by_one_variable_or_by_one_each() -> None:
    assert models_of({"EDGEFLEET_MODEL_KWS": "/a", "EDGEFLEET_MODELS": "vww=/b, ic=/c", "PATH": "/bin"}) == {
        "kws": "/a",
        "vww": "/b",
        "ic": "/c",
    }


@pytest.mark.parametrize("environment", [{}, {"EDGEFLEET_MODELS": ""}, {"EDGEFLEET_MODEL_X": ""}])
def test_an_environment_without_a_model_says_what_to_set(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="EDGEFLEET_MODEL_NAME=path"):
        models_of(environment)


@pytest.mark.parametrize("value", ["kws", "=/a", "kws=", "a=/a,b"])
def test_an_unreadable_list_of_models_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="EDGEFLEET_MODELS"):
        models_of({"EDGEFLEET_MODELS": value})


def test_a_model_that_does_not_load_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "late.onnx"
    monkeypatch.setenv("EDGEFLEET_MODEL_LINEAR", str(path))
    with pytest.raises((ModelLoadError, ConfigError), match=r"late\.onnx"):
        handler(YES, None)

    onnx_files.linear(path)

    assert handler(YES, None)["outputs"]
