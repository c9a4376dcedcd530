"""The protocol's paths and what answers them.

`find` reads a path once, from the left; names in it are percent-decoded and case-sensitive. What this server
has no use for but clients ask (CUDA shared memory, trace and log settings) answers 501, except for the
questions that have a true answer: there is no CUDA region, and to unregister none succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge_agent.local_api.encoding import encode_json
from edge_agent.local_api.oip import describing
from edge_agent.local_api.oip.infer import JSON_LENGTH, infer
from edge_agent.local_api.oip.messages import decode_index, decode_load, decode_region
from edge_agent.local_api.oip.shared_memory import REGIONS
from edge_agent.local_api.routes import BINARY_TYPE, Request, Response, error_response
from edge_agent.local_api.service import InferenceService, RepositoryState

Endpoint = Callable[[Request, InferenceService], Response]
Methods = Mapping[str, Endpoint]
ModelEndpoint = Callable[[Request, InferenceService, str, str | None], Response]


def find(path: str) -> Methods | None:
    """What answers each method at `path`, None when nothing does."""
    fixed = _FIXED.get(path)
    if fixed is not None:
        return fixed
    parts = path.split("/")[2:]
    if "%" in path:
        decoded = _decoded(parts)
        if decoded is None:
            return None
        parts = decoded
    match parts:
        case ["models", name, *rest] if name:
            return _model(name, rest)
        case ["repository", "models", name, "load" | "unload" as action] if name:
            change = _load if action == "load" else _unload
            return {"POST": lambda request, service: change(request, service, name)}
        case ["systemsharedmemory", "region", name, action] if name:
            return _region(name, action)
        case ["cudasharedmemory", "region", name, action] if name:
            return _cuda_region(name, action)
    return None


def _decoded(parts: list[str]) -> list[str] | None:
    from urllib.parse import unquote_to_bytes  # few names need it, and it is not small

    try:
        return [unquote_to_bytes(part.encode("latin-1")).decode() for part in parts]
    except UnicodeDecodeError:
        return None


def _model(name: str, rest: list[str]) -> Methods | None:
    version = None
    if rest[:1] == ["versions"] and len(rest) > 1 and rest[1]:
        version, rest = rest[1], rest[2:]
    if version is None and rest == ["trace", "setting"]:
        return _UNSUPPORTED_SETTINGS
    if len(rest) > 1 or "" in rest:
        return None
    entry = _OF_MODEL.get(rest[0] if rest else "")
    if entry is None:
        return None
    method, endpoint = entry
    return {method: lambda request, service: endpoint(request, service, name, version)}


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(status=status, body=encode_json(value))


def _infer(request: Request, service: InferenceService, name: str, version: str | None) -> Response:
    answer = infer(service, name, version, request.body, request.headers)
    if answer.json_bytes is None:
        return Response(status=200, body=answer.body)
    return Response(
        status=200,
        body=answer.body,
        content_type=BINARY_TYPE,
        headers=((JSON_LENGTH, str(answer.json_bytes)),),
    )


def _metadata(_: Request, service: InferenceService, name: str, version: str | None) -> Response:
    return _json(describing.model_metadata(service, name, version))


def _config(_: Request, service: InferenceService, name: str, version: str | None) -> Response:
    return _json(describing.model_config(service, name, version))


def _model_statistics(_: Request, service: InferenceService, name: str, version: str | None) -> Response:
    return _json(describing.statistics(service, name, version))


def _model_ready(_: Request, service: InferenceService, name: str, version: str | None) -> Response:
    entry = describing.entry_of(service, name, version)
    if entry.state is RepositoryState.READY:
        return _json({"name": name, "ready": True})
    error = f"{name} is {entry.state.value}{': ' if entry.reason else ''}{entry.reason}"
    return _json({"name": name, "ready": False, "error": error}, status=503)


def _server(_: Request, service: InferenceService) -> Response:
    return _json(describing.server_metadata())


def _live(_: Request, service: InferenceService) -> Response:
    return _json({"live": True})


def _ready(_: Request, service: InferenceService) -> Response:
    health = service.health()
    if health.ready:
        return _json({"ready": True})
    return _json({"ready": False, "error": "; ".join(health.reasons)}, status=503)


def _statistics(_: Request, service: InferenceService) -> Response:
    return _json(describing.statistics(service, None, None))


def _index(request: Request, service: InferenceService) -> Response:
    only_ready = decode_index(request.body).ready
    return _json([entry for entry in service.repository() if not only_ready or entry.state is RepositoryState.READY])


def _load(request: Request, service: InferenceService, name: str) -> Response:
    if decode_load(request.body).parameters:
        return error_response(501, "a model is loaded as it is configured: no config or files in the request")
    service.load_model(name)
    return _json({})


def _unload(request: Request, service: InferenceService, name: str) -> Response:
    decode_load(request.body)
    service.unload_model(name)
    return _json({})


def _regions(_: Request, service: InferenceService) -> Response:
    return _json(REGIONS.status())


def _unregister_all(_: Request, service: InferenceService) -> Response:
    REGIONS.unregister(None)
    return _json({})


def _region(name: str, action: str) -> Methods | None:
    def status(_: Request, service: InferenceService) -> Response:
        region = REGIONS.find(name)
        if region is None:
            return error_response(404, f"no shared memory region {name[:80]!r} is registered")
        return _json([region.describe()])

    def register(request: Request, service: InferenceService) -> Response:
        body = decode_region(request.body)
        REGIONS.register(name=name, key=body.key, offset=body.offset, byte_size=body.byte_size)
        return _json({})

    def unregister(_: Request, service: InferenceService) -> Response:
        REGIONS.unregister(name)
        return _json({})

    by_action: dict[str, Methods] = {
        "status": {"GET": status},
        "register": {"POST": register},
        "unregister": {"POST": unregister},
    }
    return by_action.get(action)


def _cuda_region(name: str, action: str) -> Methods | None:
    def status(_: Request, service: InferenceService) -> Response:
        return error_response(404, f"no CUDA shared memory region {name[:80]!r} is registered")

    by_action: dict[str, Methods] = {
        "status": {"GET": status},
        "register": {"POST": _unsupported},
        "unregister": {"POST": _nothing_done},
    }
    return by_action.get(action)


def _no_regions(_: Request, service: InferenceService) -> Response:
    return _json([])


def _nothing_done(_: Request, service: InferenceService) -> Response:
    return _json({})


def _unsupported(request: Request, service: InferenceService) -> Response:
    return error_response(501, f"{request.path[:200]} is not supported here")


_OF_MODEL: dict[str, tuple[str, ModelEndpoint]] = {
    "infer": ("POST", _infer),
    "": ("GET", _metadata),
    "ready": ("GET", _model_ready),
    "config": ("GET", _config),
    "stats": ("GET", _model_statistics),
}
_UNSUPPORTED_SETTINGS: Methods = {"GET": _unsupported, "POST": _unsupported}
_FIXED: dict[str, Methods] = {
    "/v2": {"GET": _server},
    "/v2/health/live": {"GET": _live},
    "/v2/health/ready": {"GET": _ready},
    "/v2/models/stats": {"GET": _statistics},
    "/v2/repository/index": {"POST": _index},
    "/v2/systemsharedmemory/status": {"GET": _regions},
    "/v2/systemsharedmemory/unregister": {"POST": _unregister_all},
    "/v2/cudasharedmemory/status": {"GET": _no_regions},
    "/v2/cudasharedmemory/unregister": {"POST": _nothing_done},
    "/v2/trace/setting": _UNSUPPORTED_SETTINGS,
    "/v2/logging": _UNSUPPORTED_SETTINGS,
}
