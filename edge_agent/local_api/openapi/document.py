"""The paths of the local API, and the document made of them.

Statuses that HTTP itself may bring on any request (a body too long, a head too large, a request too slow) are
told once, in the description; what an operation answers for its own reasons is listed with it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from edge_agent.local_api.encoding import encode_json
from edge_agent.local_api.oip.infer import JSON_LENGTH
from edge_agent.local_api.openapi.schemas import STRING, Schema, ref, schemas
from edge_agent.local_api.routes import BINARY_TYPE, JSON_TYPE, METRICS_TYPE
from edge_agent.version import AGENT_VERSION

_DESCRIPTION = """Inference on this device: edgefleet's own endpoints, and Open Inference Protocol v2.

Every error is {"error": "..."}. Beside the statuses listed with each operation, any request may be answered with
400 (not HTTP/1.1), 403 (asked for by a web page of another origin), 408 (too slow),
413 (a body too large, also once expanded), 414, 417, 431 or 503 (as much work as the agent accepts, with Retry-After).
Bodies may be gzip or deflate; answers are, above 16 KiB, when Accept-Encoding says so. GET is answered for HEAD too."""
_REASONS = {
    "400": "The request is wrong.",
    "404": "There is no such model, version, prediction or region.",
    "413": "The body is too large.",
    "415": "The body is of another kind or coding.",
    "500": "The model failed; the agent's log says why.",
    "501": "Not supported here.",
    "503": "Overloaded, or the model does not fit into memory.",
    "504": "The call's timeout passed.",
}
_RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
_RUNS = ("500", "503", "504")
_NAMES = {"model": "The model's name.", "version": "The version that is to answer.", "region": "The region's name."}
_EXAMPLE_TENSOR = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


@cache
def document_json() -> bytes:
    """The document."""
    return encode_json(
        {
            "openapi": "3.1.0",
            "info": {"title": "edgefleet local API", "version": AGENT_VERSION, "description": _DESCRIPTION},
            "servers": [{"url": "/"}],
            "paths": {**_native(), **_server(), **_models(), **_repository(), **_shared_memory()},
            "components": {"schemas": schemas()},
        }
    )


def _content(schema: Schema, media: str = JSON_TYPE) -> Schema:
    return {media: {"schema": schema}}


def _error(status: str) -> Schema:
    answer: Schema = {"description": _REASONS[status], "content": _content(ref("Error"))}
    return {**answer, "headers": _RETRY} if status == "503" else answer


def _operation(
    summary: str, answer: Schema, *errors: str, body: Schema | None = None, also: Schema | None = None
) -> Schema:
    operation: Schema = {"summary": summary, "operationId": _identifier(summary)}
    if body is not None:
        operation["requestBody"] = body
        errors = (*errors, "400", "413", "415")
    responses = {"200": {"description": "Done.", "content": answer}}
    responses |= {status: _error(status) for status in sorted(set(errors))}
    operation["responses"] = {**responses, **(also or {})}
    return operation


def _identifier(summary: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in summary).split()
    return "".join([words[0].lower(), *(word.capitalize() for word in words[1:])])


def _body(schema: Schema, example: Any = None, *, required: bool = True) -> Schema:
    content = _content(schema)
    if example is not None:
        content[JSON_TYPE]["example"] = example
    return {"required": required, "content": content}


def _path(*names: str, **operations: Schema) -> Schema:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _NAMES[name],
            "schema": {**STRING, "minLength": 1},
        }
        for name in names
    ]
    return {**({"parameters": parameters} if parameters else {}), **operations}


def _native() -> Schema:
    outcome = {"anyOf": [ref("Outcome"), ref("Outcomes")]}
    not_ready = {"503": {"description": "No call can be answered.", "content": _content(ref("Health"))}}
    sample = {"model": "linear", "inputs": {"x": [[1, 2, 3]]}}
    return {
        "/health": _path(get=_operation("Health", _content(ref("Health")), also=not_ready)),
        "/models": _path(get=_operation("Models that answer", _content(ref("Models")))),
        "/metrics": _path(get=_operation("Metrics for Prometheus", _content(STRING, METRICS_TYPE))),
        "/openapi.json": _path(get=_operation("This document", _content({"type": "object"}))),
        "/predict": _path(
            post=_operation(
                "Predict",
                _content(ref("Prediction")),
                "404",
                *_RUNS,
                body=_body(ref("PredictRequest"), sample),
            )
        ),
        "/batch": _path(
            post=_operation(
                "Predict for many samples",
                _content(ref("Predictions")),
                "404",
                *_RUNS,
                body=_body(ref("BatchRequest"), {"model": "linear", "inputs": [{"x": [[1, 2, 3]]}, [[3, 2, 1]]]}),
            )
        ),
        "/outcomes": _path(
            post=_operation("Report outcomes", _content(ref("OutcomesAccepted")), "404", body=_body(outcome))
        ),
    }


def _server() -> Schema:
    not_ready = {"503": {"description": "No model answers.", "content": _content(ref("NotReady"))}}
    unsupported = {"get": _unsupported("Read {}"), "post": _unsupported("Set {}")}
    return {
        "/v2": _path(get=_operation("Server metadata", _content(ref("ServerMetadata")))),
        "/v2/health/live": _path(get=_operation("Server live", _content(ref("Live")))),
        "/v2/health/ready": _path(get=_operation("Server ready", _content(ref("Ready")), also=not_ready)),
        "/v2/models/stats": _path(get=_operation("Statistics of all models", _content(ref("Statistics")))),
        "/v2/logging": _path(**_named(unsupported, "log settings")),
        "/v2/trace/setting": _path(**_named(unsupported, "trace settings")),
        "/v2/models/{model}/trace/setting": _path("model", **_named(unsupported, "a model's trace settings")),
    }


def _unsupported(summary: str) -> Schema:
    return {"summary": summary, "responses": {"501": _error("501"), "415": _error("415")}}


def _named(operations: Schema, what: str) -> Schema:
    named = {}
    for method, operation in operations.items():
        summary = operation["summary"].format(what)
        named[method] = {**operation, "summary": summary, "operationId": _identifier(summary)}
    return named


def _models() -> Schema:
    paths: Schema = {}
    for prefix, names, of in (
        ("/v2/models/{model}", ("model",), "Model"),
        ("/v2/models/{model}/versions/{version}", ("model", "version"), "Version"),
    ):
        not_ready = {"503": {"description": "It does not answer.", "content": _content(ref("NotReady"))}}
        paths[prefix] = _path(*names, get=_operation(f"{of} metadata", _content(ref("ModelMetadata")), "404"))
        paths[f"{prefix}/ready"] = _path(
            *names, get=_operation(f"{of} ready", _content(ref("ModelReady")), "404", also=not_ready)
        )
        paths[f"{prefix}/config"] = _path(*names, get=_operation(f"{of} config", _content(ref("ModelConfig")), "404"))
        paths[f"{prefix}/stats"] = _path(*names, get=_operation(f"{of} statistics", _content(ref("Statistics")), "404"))
        paths[f"{prefix}/infer"] = _path(*names, post=_infer(f"{of} inference"))
    return paths


def _infer(summary: str) -> Schema:
    body = _body(ref("InferRequest"), {"id": "1", "inputs": [_EXAMPLE_TENSOR]})
    body["content"][BINARY_TYPE] = {
        "schema": {
            "description": "The JSON of an InferRequest and then its tensors, little-endian, in order; or, with"
            f" {JSON_LENGTH} 0, the data of a single input alone."
        }
    }
    answer = {**_content(ref("InferResponse")), BINARY_TYPE: {"schema": {}}}
    operation = _operation(summary, answer, "404", *_RUNS, body=body)
    operation["parameters"] = [
        {
            "name": JSON_LENGTH,
            "in": "header",
            "description": "The length of the JSON in bytes, when tensors follow it.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ]
    operation["responses"]["200"]["headers"] = {
        JSON_LENGTH: {"description": "As in the request.", "schema": {"type": "integer", "minimum": 1}}
    }
    return operation


def _repository() -> Schema:
    load = _body(ref("LoadRequest"), required=False)
    index = _body(ref("IndexRequest"), {"ready": True}, required=False)
    return {
        "/v2/repository/index": _path(post=_operation("Models of the repository", _content(ref("Index")), body=index)),
        "/v2/repository/models/{model}/load": _path(
            "model",
            post=_operation("Load a model", _content(ref("Empty")), "404", "500", "501", "503", body=load),
        ),
        "/v2/repository/models/{model}/unload": _path(
            "model", post=_operation("Unload a model", _content(ref("Empty")), "404", body=load)
        ),
    }


def _shared_memory() -> Schema:
    paths: Schema = {}
    for kind, of in (("systemsharedmemory", "system"), ("cudasharedmemory", "CUDA")):
        base, region = f"/v2/{kind}", f"/v2/{kind}/region/{{region}}"
        status, done = _content(ref("Regions")), _content(ref("Empty"))
        paths[f"{base}/status"] = _path(get=_operation(f"All {of} shared memory", status))
        paths[f"{base}/unregister"] = _path(post=_operation(f"Unregister all {of} shared memory", done, "415"))
        paths[f"{region}/status"] = _path("region", get=_operation(f"A {of} shared memory region", status, "404"))
        paths[f"{region}/unregister"] = _path(
            "region", post=_operation(f"Unregister a {of} shared memory region", done, "415")
        )
    paths["/v2/systemsharedmemory/region/{region}/register"] = _path(
        "region",
        post=_operation("Register system shared memory", _content(ref("Empty")), body=_body(ref("RegionRequest"))),
    )
    paths["/v2/cudasharedmemory/region/{region}/register"] = _path(
        "region", post={**_unsupported("Register CUDA shared memory"), "operationId": "registerCudaSharedMemory"}
    )
    return paths
