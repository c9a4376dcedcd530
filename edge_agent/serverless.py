"""A Lambda-style handler over the same runtime: `edge_agent.serverless.handler`.

The environment says what is served:
- EDGEFLEET_MODELS="kws=/opt/kws.onnx,vww=/opt/vww.onnx", or one variable each,
  EDGEFLEET_MODEL_KWS=/opt/kws.onnx (served as "kws": names are in lower case);
- EDGEFLEET_CACHE_DIR=/tmp/edgefleet keeps optimised graphs for the next cold start; without it nothing is written.
Models are loaded once, at the first event, and stay for the life of the process.

Events: an API Gateway HTTP API (payload 2.0) or REST API (1.0) request, or a plain {"model", "inputs"}. A request is
answered at the paths of `local_api.routes`, /v2 and its binary tensors among them, with statusCode, headers and
body; what is not text goes in and out as base64. A query string and the stage in front of the path are left out.
A plain event is answered with what /predict answers, or with {"error", "status"}.
Time: a call ends with 504 when the platform's remaining time, less `TIME_MARGIN_S` for the answer, is over.
Invariant: an event never raises; only a wrong environment does. Importing this loads no model and no runtime.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec.structs import replace

from edge_agent.errors import ConfigError
from edge_agent.local_api.routes import DEFAULT_MAX_BODY_BYTES, Request, Response, error_response, respond
from edge_agent.local_api.service import DEFAULT_CALL, CallOptions

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from edge_agent.errors import AgentError
    from edge_agent.local_api.service import InferenceService
    from edge_agent.prediction import Prediction

MODELS_VARIABLE = "EDGEFLEET_MODELS"
MODEL_PREFIX = "EDGEFLEET_MODEL_"
CACHE_VARIABLE = "EDGEFLEET_CACHE_DIR"
TIME_MARGIN_S = 0.2
"""Of the time that the platform leaves, what the answer needs on its way."""
_SHORTEST_S = 0.001

_loading = threading.Lock()
_service: InferenceService | None = None


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """Answer one event. Raises ConfigError or ModelLoadError when the environment names no usable model."""
    service = _in_time(_loaded(), context)
    if not is_http(event):
        return _plain_answer(respond(_plain_request(event), service))
    request = _http_request(event)
    response = request if isinstance(request, Response) else respond(request, service)
    is_text = _is_text(response)
    body = b"" if _method(event) == "HEAD" else response.body
    return {
        "statusCode": response.status,
        "headers": {"content-type": response.content_type, **{name.lower(): value for name, value in response.headers}},
        "body": body.decode() if is_text else base64.b64encode(body).decode(),
        "isBase64Encoded": not is_text,
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
            from pathlib import Path

            from edge_agent.agent import Agent
            from edge_agent.config import AgentConfig, RuntimeSection

            cache_dir = os.environ.get(CACHE_VARIABLE)
            runtime = RuntimeSection(tune=False, cache_dir=Path(cache_dir) if cache_dir else None)
            _service = Agent(models=models_of(os.environ), config=AgentConfig(runtime=runtime))
        return _service


class _Hurried:
    """The service, every call of which ends in time."""

    def __init__(self, service: InferenceService, *, timeout_s: float) -> None:
        self._service, self._timeout_s = service, timeout_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def infer(self, model: str, inputs: Mapping[str, ArrayLike], options: CallOptions = DEFAULT_CALL) -> Prediction:
        return self._service.infer(model, inputs, self._in_time(options))

    def infer_many(
        self, model: str, items: Sequence[Mapping[str, ArrayLike]], options: CallOptions = DEFAULT_CALL
    ) -> list[Prediction | AgentError]:
        return self._service.infer_many(model, items, self._in_time(options))

    def _in_time(self, options: CallOptions) -> CallOptions:
        timeout_s = self._timeout_s if options.timeout_s is None else min(self._timeout_s, options.timeout_s)
        return replace(options, timeout_s=timeout_s)


def _in_time(service: InferenceService, context: object) -> InferenceService:
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    if remaining is None:
        return service
    timeout_s = max(_SHORTEST_S, remaining() / 1000 - TIME_MARGIN_S)
    return cast("InferenceService", _Hurried(service, timeout_s=timeout_s))


def _is_text(response: Response) -> bool:
    kind = response.content_type.partition(";")[0].strip()
    is_plain = all(name.lower() != "content-encoding" for name, _ in response.headers)
    return is_plain and (kind.startswith("text/") or kind.endswith(("/json", "+json")))


def _path(event: Mapping[str, Any]) -> str:
    """The path without a query, and without the stage that payload 2.0 puts in front of it."""
    path = str(event.get("rawPath") or event.get("path") or "/predict").partition("?")[0]
    context = event.get("requestContext")
    stage = context.get("stage") if isinstance(context, Mapping) else None
    if "rawPath" in event and isinstance(stage, str) and stage and path.startswith(f"/{stage}/"):
        return path[len(stage) + 1 :]
    return path


def _headers(event: Mapping[str, Any]) -> dict[str, str]:
    headers = event.get("headers")
    if isinstance(headers, Mapping):
        return {str(name).lower(): str(value) for name, value in headers.items()}
    several = event.get("multiValueHeaders")  # all that a load balancer sends when it is set up so
    if isinstance(several, Mapping):
        return {str(name).lower(): ", ".join(map(str, values)) for name, values in several.items() if values}
    return {}


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
    return Request(method=_method(event), path=_path(event), body=body, headers=_headers(event))


def _plain_request(event: Mapping[str, Any]) -> Request:
    try:
        body = msgspec.json.encode(dict(event))
    except (TypeError, ValueError, RecursionError):
        body = b""  # not JSON: respond says so
    return Request(method="POST", path="/predict", body=body)


def _plain_answer(response: Response) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(response.body)
    return answer if response.status == 200 else {**answer, "status": response.status}
