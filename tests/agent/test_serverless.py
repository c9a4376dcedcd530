"""The Lambda-style handler over the real agent, as the platform calls it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import serverless
from edge_agent.errors import ConfigError, ModelLoadError
from edge_agent.serverless import handler, models_of
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
