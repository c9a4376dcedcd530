"""The local API's endpoints: a request in bytes to a response in bytes. No sockets, no threads.

The HTTP server and the serverless handler both answer from here. Invariants: `respond` never raises, but for
WouldWaitError, which says that the same request must be asked again where waiting is allowed; an error is
{"error": "..."} that says what to change; what went wrong inside is logged, never sent.

The Open Inference Protocol (/v2) is the package `oip`, loaded when the first request asks for it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from edge_agent.errors import (
    AgentError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    MemoryBudgetError,
    OverloadedError,
    UnknownModelError,
    UnknownPredictionError,
    UserError,
    WouldWaitError,
)
from edge_agent.local_api import encoding
from edge_agent.local_api.encoding import Inputs
from edge_agent.local_api.service import InferenceService
from edge_agent.prediction import Prediction

DEFAULT_MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_BATCH_ITEMS = 10_000
MAX_OUTCOMES = 10_000
RETRY_AFTER_S = 1
"""What a caller is told to wait when the agent has as much work as it accepts."""
RETRY_AFTER = ("Retry-After", str(RETRY_AFTER_S))

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# curl -d and most HTTP libraries call any body a form unless told otherwise: what counts is that it parses
_ACCEPTED_TYPES = frozenset({"", "application/json", "application/x-www-form-urlencoded", "text/plain", "text/json"})
_V2 = "/v2"
_OWN_PAGE = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?\Z")
_FAILED_INSIDE = "the agent failed to answer this request: its log says why"

_LOG = logging.getLogger(__name__)


class Request(Struct, frozen=True, kw_only=True):
    """A whole HTTP request. `path` is without its query; header names are in lower case."""

    method: str
    path: str
    body: bytes | bytearray = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Response(Struct, frozen=True, kw_only=True):
    """A whole HTTP response; Content-Length and Connection are the sender's to add."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()


def respond(request: Request, service: InferenceService, *, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> Response:
    """The answer to `request`. A HEAD is answered as its GET; the sender leaves out the body.

    `max_body_bytes` bounds what a compressed body may expand to. Raises WouldWaitError, and nothing else.
    """
    methods = _methods_at(request.path)
    if methods is None:
        return error_response(404, f"there is nothing at {request.path[:200]}: try {', '.join(_ENDPOINTS)}, {_V2}")
    endpoint = methods.get("GET" if request.method == "HEAD" else request.method)
    if endpoint is None:
        allowed = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
        return error_response(405, f"{request.path} takes {allowed}", headers=(("Allow", allowed),))
    if request.method == "POST" and (refusal := _refuse_media(request)) is not None:
        return refusal
    try:
        if "content-encoding" in request.headers:
            plain = _expanded(request, max_body_bytes)
            if isinstance(plain, Response):
                return plain
            request = plain
        response = endpoint(request, service)
        return _compressed(request, response) if "accept-encoding" in request.headers else response
    except AgentError as error:
        return _agent_error(error)
    except WouldWaitError:
        raise
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


def refuse_shared_memory(request: Request) -> Response | None:
    """The refusal of a request about system shared memory where the config does not allow it; else None."""
    if not request.path.startswith("/v2/systemsharedmemory"):
        return None
    return error_response(501, "shared memory is switched off here: http.shared_memory in the agent's config allows it")


def _refuse_media(request: Request) -> Response | None:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media in _ACCEPTED_TYPES or media.endswith("+json"):
        return None
    if media == BINARY_TYPE and request.path.startswith(_V2):
        return None
    return error_response(415, f"{request.path[:200]} takes {JSON_TYPE}, not {media[:80]}")


def _expanded(request: Request, max_body_bytes: int) -> Request | Response:
    from edge_agent.local_api import compression

    coding = request.headers["content-encoding"].strip().lower()
    if coding in ("", "identity") or not request.body:
        return request
    if not compression.is_known(coding):
        return error_response(415, f"the body is encoded as {coding[:80]}: send it plain, as gzip, or as deflate")
    body = compression.expand(request.body, coding, max_bytes=max_body_bytes)
    if body is None:
        return error_response(413, f"the body exceeds {max_body_bytes} bytes once it is expanded: send less")
    return replace(request, body=body)


def _compressed(request: Request, response: Response) -> Response:
    from edge_agent.local_api import compression

    if len(response.body) < compression.MIN_COMPRESSED_BYTES:
        return response
    headers = (*response.headers, ("Vary", "Accept-Encoding"))
    coding = compression.choose(request.headers["accept-encoding"])
    if coding is None:
        return replace(response, headers=headers)
    body = compression.compress(response.body, coding)
    return replace(response, body=body, headers=(*headers, ("Content-Encoding", coding)))


def _methods_at(path: str) -> Mapping[str, Callable[[Request, InferenceService], Response]] | None:
    methods = _ENDPOINTS.get(path)
    if methods is None and (path.startswith("/v2/") or path == _V2):
        from edge_agent.local_api.oip import endpoints

        return endpoints.find(path)
    return methods


def _agent_error(error: AgentError) -> Response:
    if isinstance(error, UnknownModelError | UnknownPredictionError):
        return error_response(404, str(error))
    if isinstance(error, UserError):
        return error_response(400, str(error))
    if isinstance(error, DeadlineExceededError):
        return error_response(504, str(error))
    if isinstance(error, OverloadedError):
        wait_s = max(RETRY_AFTER_S, math.ceil(error.retry_after_s))
        return error_response(503, str(error), headers=(("Retry-After", str(wait_s)),))
    if isinstance(error, MemoryBudgetError):
        return error_response(503, str(error))
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


def _openapi(_: Request, service: InferenceService) -> Response:
    from edge_agent.local_api.openapi.document import document_json

    return Response(status=200, body=document_json())


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
    items = [_item_by_name(service, model, item) for item in body.inputs]
    answers = iter(service.infer_many(model, [item for item in items if not isinstance(item, InvalidInputError)]))
    return _json(
        {
            "predictions": [
                _batch_answer(item if isinstance(item, InvalidInputError) else next(answers)) for item in items
            ]
        }
    )


def _item_by_name(
    service: InferenceService, model: str, item: Inputs | InvalidInputError
) -> Mapping[str, Any] | InvalidInputError:
    try:
        return item if isinstance(item, InvalidInputError) else _by_name(service, model, item)
    except InvalidInputError as error:
        return error


def _batch_answer(answer: Prediction | AgentError) -> dict[str, Any]:
    if not isinstance(answer, AgentError):
        return encoding.describe_prediction(answer)
    acceptable = isinstance(answer, UserError) or answer.retryable
    return {"error": str(answer) if acceptable else _told_inside(answer)}


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
    specs = service.describe_model(model).inputs
    if len(specs) == 1:
        return {specs[0].name: inputs}
    names = ", ".join(spec.name for spec in specs)
    raise InvalidInputError(f"{model} has several inputs: send an object with {names}")


_ENDPOINTS: dict[str, dict[str, Callable[[Request, InferenceService], Response]]] = {
    "/health": {"GET": _health},
    "/predict": {"POST": _predict},
    "/batch": {"POST": _batch},
    "/outcomes": {"POST": _outcomes},
    "/models": {"GET": _models},
    "/metrics": {"GET": _metrics},
    "/openapi.json": {"GET": _openapi},
}
