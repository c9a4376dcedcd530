"""Open Inference Protocol requests by hand, answered without a socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from edge_agent.local_api.routes import Request, Response, respond
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
INFER = "/v2/models/linear/infer"
X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


def same(folder: Path, datatype: str, shape: list[str | int]) -> SmallService:
    """A service whose only model, "same", gives back its input x as y."""
    path = onnx_files.identity(folder / f"{datatype}.onnx", ONNX_TYPES[datatype], shape)
    return SmallService({"same": path})


def ask(service: SmallService, method: str, path: str, body: object = None, **headers: str) -> Response:
    """One request; a body that is not bytes is sent as JSON, `content_type="x"` is the header content-type."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return respond(Request(method=method, path=path, body=content, headers=named), service)


def ask_json(service: SmallService, path: str, **message: Any) -> Any:
    """The parsed answer to a POST that must succeed."""
    response = ask(service, "POST", path, message)
    assert response.status == 200, response.body
    return json.loads(response.body)


def ask_binary(service: SmallService, path: str, message: object, *contents: bytes) -> Response:
    """A POST of JSON and the bytes behind it."""
    head = json.dumps(message).encode()
    return ask(
        service,
        "POST",
        path,
        head + b"".join(contents),
        content_type="application/octet-stream",
        inference_header_content_length=str(len(head)),
    )


def split(response: Response) -> tuple[Any, bytes]:
    """The JSON of a binary answer, and its bytes."""
    assert response.status == 200, response.body
    assert response.content_type == "application/octet-stream"
    length = int(dict(response.headers)["Inference-Header-Content-Length"])
    return json.loads(response.body[:length]), response.body[length:]


def error_of(response: Response, status: int) -> str:
    """The text of an error that must have `status`."""
    answer = json.loads(response.body)
    assert (response.status, list(answer)) == (status, ["error"]), response.body
    return str(answer["error"])


def bytes_tensor(*elements: bytes) -> bytes:
    """BYTES elements on the wire."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def floats(*values: float) -> bytes:
    """FP32 elements on the wire."""
    return np.array(values, dtype="<f4").tobytes()
