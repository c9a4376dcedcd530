"""The local API's endpoints: a request in bytes to a response in bytes. No sockets, no threads.

The HTTP server and the serverless handler both answer from here. Invariants: `respond` never raises; an
error is {"error": "..."} that says what to change; what went wrong inside is logged, never sent.

A further protocol (Open Inference Protocol, /v2) is a further table of paths beside `_ENDPOINTS`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_agent.errors import (
    AgentError,
    InferenceError,
    InvalidInputError,
    UnknownModelError,
    UnknownPredictionError,
    UserError,
)
from edge_agent.local_api import encoding
from edge_agent.local_api.encoding import Inputs
from edge_agent.local_api.service import InferenceService

DEFAULT_MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_BATCH_ITEMS = 10_000
MAX_OUTCOMES = 10_000
RETRY_AFTER_S = 1
"""What a caller is told to wait when the agent has as much work as it accepts."""
RETRY_AFTER = ("Retry-After", str(RETRY_AFTER_S))

JSON_TYPE = "application/json"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# curl -d and most HTTP libraries call any body a form unless told otherwise: what counts is that it parses
_ACCEPTED_TYPES = frozenset({"", "application/json", "application/x-www-form-urlencoded", "text/plain", "text/json"})
_OWN_PAGE = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?\Z")
_FAILED_INSIDE = "the agent failed to answer this request: its log says why"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A whole HTTP request. `path` is without its query; header names are in lower case."""

    method: str
    path: str
    body: bytes | bytearray = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """A whole HTTP response; Content-Length and Connection are the sender's to add."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()


def respond(request: Request, service: InferenceService) -> Response:
    """The answer to `request`. A HEAD is answered as its GET; the sender leaves out the body."""
    methods = _ENDPOINTS.get(request.path)
    if methods is None:
        return error_response(404, f"there is nothing at {request.path[:200]}: try {', '.join(_ENDPOINTS)}")
    endpoint = methods.get("GET" if request.method == "HEAD" else request.method)
    if endpoint is None:
        allowed = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
        return error_response(405, f"{request.path} takes {allowed}", headers=(("Allow", allowed),))
    if request.method == "POST" and (refusal := _refuse_media(request)) is not None:
        return refusal
    try:
        return endpoint(request, service)
    except AgentError as error:
        return _agent_error(error)
    except Exception:  # noqa: BLE001 - logged with its trace; one bad request must not end the thread that serves
        _LOG.exception("answering %s %s failed", request.method, request.path)
        return error_response(500, _FAILED_INSIDE)


def error_response(status: int, message: str, *, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """The one form of every error."""
    return Response(status=status, body=encoding.encode_json({"error": message}), headers=headers)


def overloaded_response() -> Response:
    """The answer when the agent has as much work as it accepts."""
    return error_response(
        503,
        "the agent has as much work as it accepts: try again shortly",
        headers=(RETRY_AFTER,),
    )


def refuse_foreign_page(request: Request) -> Response | None:
    """The refusal of a request that a browser makes for a web page that is not this machine's own; else None.

    Any page that a person opens may send requests to loopback addresses; browsers name the page in `Origin`
    (RFC 6454, section 7). Programs send none.
    """
    origin = request.headers.get("origin")
    if origin is None or _OWN_PAGE.match(origin):
        return None
    return error_response(403, f"web pages of {origin[:200]} may not use this device's models")


def _refuse_media(request: Request) -> Response | None:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in _ACCEPTED_TYPES and not media.endswith("+json"):
        return error_response(415, f"{request.path} takes {JSON_TYPE}, not {media[:80]}")
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        return error_response(415, f"the body is encoded as {coding[:80]}: send it plain")
    return None


def _agent_error(error: AgentError) -> Response:
    if isinstance(error, UnknownModelError | UnknownPredictionError):
        return error_response(404, str(error))
    if isinstance(error, UserError):
        return error_response(400, str(error))
    if error.retryable:
        return error_response(503, str(error), headers=(RETRY_AFTER,))
    return error_response(500, _told_inside(error))


def _told_inside(error: Exception) -> str:
    _LOG.error("a request failed: %s", error, exc_info=error)
    return (
        "the model failed on this input: the agent's log says why"
        if isinstance(error, InferenceError)
        else _FAILED_INSIDE
    )


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(status=status, body=encoding.encode_json(value))


def _health(_: Request, service: InferenceService) -> Response:
    health = service.health()
    return _json({"ready": health.ready, "reasons": health.reasons}, status=200 if health.ready else 503)


def _models(_: Request, service: InferenceService) -> Response:
    return _json({"models": service.describe_models()})


def _metrics(_: Request, service: InferenceService) -> Response:
    return Response(status=200, body=service.metrics_text().encode(), content_type=METRICS_TYPE)


def _predict(request: Request, service: InferenceService) -> Response:
    body = encoding.decode_predict(request.body)
    model = body.model if body.model is not None else _only_model(service)
    prediction = service.infer(model, _by_name(service, model, body.inputs))
    return _json(encoding.describe_prediction(prediction))


def _batch(request: Request, service: InferenceService) -> Response:
    body = encoding.decode_batch(request.body)
    if len(body.inputs) > MAX_BATCH_ITEMS:
        raise InvalidInputError(f"a batch of {len(body.inputs)} items exceeds {MAX_BATCH_ITEMS}: split it")
    model = body.model if body.model is not None else _only_model(service)
    return _json({"predictions": [_batch_item(service, model, item) for item in body.inputs]})


def _batch_item(service: InferenceService, model: str, item: Inputs | InvalidInputError) -> dict[str, Any]:
    if isinstance(item, InvalidInputError):
        return {"error": str(item)}
    try:
        return encoding.describe_prediction(service.infer(model, _by_name(service, model, item)))
    except UnknownModelError:
        raise
    except AgentError as error:
        acceptable = isinstance(error, UserError) or error.retryable
        return {"error": str(error) if acceptable else _told_inside(error)}
    except Exception as error:  # noqa: BLE001 - logged with its trace; the other items are unharmed
        return {"error": _told_inside(error)}


def _outcomes(request: Request, service: InferenceService) -> Response:
    outcomes = encoding.decode_outcomes(request.body)
    if isinstance(outcomes, encoding.Outcome):
        service.report_outcome(outcomes.id, label=outcomes.label, value=outcomes.value, correct=outcomes.correct)
        return _json({"accepted": 1, "rejected": []})
    if len(outcomes) > MAX_OUTCOMES:
        raise InvalidInputError(f"{len(outcomes)} outcomes exceed {MAX_OUTCOMES}: split them")
    rejected = []
    for index, outcome in enumerate(outcomes):
        try:
            if isinstance(outcome, InvalidInputError):
                raise outcome
            service.report_outcome(outcome.id, label=outcome.label, value=outcome.value, correct=outcome.correct)
        except UserError as error:
            rejected.append({"index": index, "error": str(error)})
    return _json({"accepted": len(outcomes) - len(rejected), "rejected": rejected})


def _only_model(service: InferenceService) -> str:
    names = sorted({description.name for description in service.describe_models()})
    if len(names) == 1:
        return names[0]
    if not names:
        raise UnknownModelError("no model is loaded yet: look at /health")
    raise InvalidInputError(f'say which "model": {", ".join(names)}')


def _by_name(service: InferenceService, model: str, inputs: Inputs) -> Mapping[str, Any]:
    if isinstance(inputs, dict):
        return inputs
    for description in service.describe_models():
        if description.name == model:
            if len(description.inputs) == 1:
                return {description.inputs[0].name: inputs}
            names = ", ".join(spec.name for spec in description.inputs)
            raise InvalidInputError(f"{model} has several inputs: send an object with {names}")
    raise UnknownModelError(f"no model {model[:80]!r} is loaded here")


_ENDPOINTS: dict[str, dict[str, Callable[[Request, InferenceService], Response]]] = {
    "/health": {"GET": _health},
    "/predict": {"POST": _predict},
    "/batch": {"POST": _batch},
    "/outcomes": {"POST": _outcomes},
    "/models": {"GET": _models},
    "/metrics": {"GET": _metrics},
}
