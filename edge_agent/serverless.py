"""A Lambda-style handler over the same runtime: `edge_agent.serverless.handler`.

The models come from the environment: EDGEFLEET_MODELS="kws=/opt/kws.onnx,vww=/opt/vww.onnx", or one variable
each, EDGEFLEET_MODEL_KWS=/opt/kws.onnx (served as "kws"; names are in lower case). They are loaded once, at
the first event, and stay for the life of the process.

Events: an API Gateway HTTP API or REST API request (the paths of `local_api.routes`, answered with
statusCode, headers and body), or a plain {"model", "inputs"}, answered with what /predict answers, or with
{"error", "status"}. Invariant: an event never raises; only a wrong environment does.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent.errors import ConfigError
from edge_agent.local_api.routes import DEFAULT_MAX_BODY_BYTES, Request, Response, error_response, respond

if TYPE_CHECKING:
    from edge_agent.local_api.service import InferenceService

MODELS_VARIABLE = "EDGEFLEET_MODELS"
MODEL_PREFIX = "EDGEFLEET_MODEL_"

_loading = threading.Lock()
_service: InferenceService | None = None


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """Answer one event. Raises ConfigError or ModelLoadError when the environment names no usable model."""
    service = _loaded()
    if not is_http(event):
        return _plain_answer(respond(_plain_request(event), service))
    request = _http_request(event)
    response = request if isinstance(request, Response) else respond(request, service)
    return {
        "statusCode": response.status,
        "headers": {"content-type": response.content_type, **{name.lower(): value for name, value in response.headers}},
        "body": "" if _method(event) == "HEAD" else response.body.decode(),
        "isBase64Encoded": False,
    }


def models_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Model files by name, from the environment. Raises ConfigError."""
    models = {
        name.removeprefix(MODEL_PREFIX).lower(): path
        for name, path in environment.items()
        if name.startswith(MODEL_PREFIX) and path
    }
    for entry in filter(None, (part.strip() for part in environment.get(MODELS_VARIABLE, "").split(","))):
        name, separator, path = entry.partition("=")
        if not separator or not name.strip() or not path.strip():
            raise ConfigError(f'{MODELS_VARIABLE} holds {entry[:80]!r}: write it as "name=path,name=path"')
        models[name.strip()] = path.strip()
    if not models:
        raise ConfigError(f"no model to serve: set {MODEL_PREFIX}NAME=path or {MODELS_VARIABLE}=name=path")
    return models


def is_http(event: Mapping[str, Any]) -> bool:
    """Whether the event is an API Gateway request rather than a plain one."""
    return "requestContext" in event or "rawPath" in event or "httpMethod" in event


def _loaded() -> InferenceService:
    global _service  # noqa: PLW0603 - a function's process is reused between events, and so are its models
    with _loading:
        if _service is None:
            from edge_agent.agent import Agent

            _service = Agent(models=models_of(os.environ))
        return _service


def _method(event: Mapping[str, Any]) -> str:
    context = event.get("requestContext")
    http = context.get("http") if isinstance(context, Mapping) else None
    method = http.get("method") if isinstance(http, Mapping) else None
    return str(method or event.get("httpMethod") or ("GET" if event.get("body") is None else "POST")).upper()


def _http_request(event: Mapping[str, Any]) -> Request | Response:
    text = event.get("body") or ""
    if not isinstance(text, str):
        return error_response(400, "the event's body is not text")
    try:
        body = base64.b64decode(text, validate=True) if event.get("isBase64Encoded") else text.encode()
    except (binascii.Error, ValueError):
        return error_response(400, "the event's body says it is base64, and is not")
    if len(body) > DEFAULT_MAX_BODY_BYTES:
        return error_response(413, f"the body exceeds {DEFAULT_MAX_BODY_BYTES} bytes: send less")
    headers = event.get("headers")
    return Request(
        method=_method(event),
        path=str(event.get("rawPath") or event.get("path") or "/predict"),
        body=body,
        headers={str(name).lower(): str(value) for name, value in headers.items()}
        if isinstance(headers, Mapping)
        else {},
    )


def _plain_request(event: Mapping[str, Any]) -> Request:
    try:
        body = msgspec.json.encode(dict(event))
    except (TypeError, ValueError, RecursionError):
        body = b""  # not JSON: respond says so
    return Request(method="POST", path="/predict", body=body)


def _plain_answer(response: Response) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(response.body)
    return answer if response.status == 200 else {**answer, "status": response.status}
